"""Health and verdicts: what of them is in the stream of events, and what is served."""

import logging

import pytest
from reporting import lines, scraped

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailRule
from rlhf_api.v1alpha1 import Guardrail, StageConfig
from rlhf_trainer.ppo.health import Health
from rlhf_trainer.run.report import Reporter


def test_what_a_rule_compares_with_is_served_where_it_has_one(reporter: Reporter) -> None:
    reporter.start(20, 0)
    health = Health()
    # The first after the ten that make the start, and the best level.
    for step in range(1, 12):
        metrics = {Metric.REWARD: 1.0, Metric.REWARD_STD: 2.0}
        reporter.health(step, health.judge(step, metrics).readings)
    text = scraped(reporter)
    labels = '{attempt="1",rlhfjob="demo",rule="RewardCollapse",stage="sft"}'
    assert f"rlhf_train_health_start{labels} 2.0" in text
    assert f"rlhf_train_health_best{labels} 1.0" in text
    # Both rules about the scores have a start.
    assert text.count("rlhf_train_health_start{") == 2
    assert text.count("rlhf_train_health_best{") == 1


def test_health_is_served_at_every_update_and_told_where_a_verdict_changes(
    reporter: Reporter, config: StageConfig, caplog: pytest.LogCaptureFixture
) -> None:
    reporter.start(10, 0)
    health = Health([Guardrail(rule=GuardrailRule.KL_ABOVE_LIMIT, consecutive_updates=2)])
    with caplog.at_level(logging.WARNING):
        for step, kl in enumerate([51.0, 52.0, 53.0, 1.0, 2.0], 1):
            reporter.health(step, health.judge(step, {Metric.KL: kl}).readings)
            text = scraped(reporter)
            labels = '{attempt="1",rlhfjob="demo",rule="KLAboveLimit",stage="sft"}'
            assert f"rlhf_train_health_value{labels} {kl}" in text
            assert f"rlhf_train_health_threshold{labels} 50.0" in text
            assert f"rlhf_train_health_verdict{labels} {float(step in (2, 3, 4))}" in text
            # There is no entropy: its rule has a threshold, but neither a value nor a verdict.
            assert text.count('rule="EntropyCollapse"') == 1

    _, first, second = lines(config)
    assert {key: first[key] for key in first if key != "time"} == {
        "type": "verdict",
        "step": 2,
        "totalSteps": 10,
        "epoch": 0.0,
        "metrics": {},
        "etaSeconds": None,
        "rule": "KLAboveLimit",
        "broken": True,
        "action": "Observe",
        "value": 52.0,
        "threshold": 50.0,
        "evidence": "KL is 52 nats an answer; threshold 50",
    }
    assert (second["step"], second["broken"], second["value"]) == (5, False, 2.0)
    assert [record.getMessage() for record in caplog.records] == [
        "KLAboveLimit is broken at step 2: KL is 52 nats an answer; threshold 50",
        "KLAboveLimit holds again at step 5: KL is 2 nats an answer; threshold 50",
    ]


def test_verdicts_of_a_checkpoint_are_served_and_told_before_the_first_update(
    reporter: Reporter, config: StageConfig
) -> None:
    health = Health()
    for step in (1, 2, 3):
        health.judge(step, {Metric.KL: 51.0})
    reporter.start(10, 3)
    reporter.resumed_health(3, health.standing, health.verdicts)

    text = scraped(reporter)
    broken, whole = (
        f'{{attempt="1",rlhfjob="demo",rule="{rule}",stage="sft"}}'
        for rule in ("KLAboveLimit", "NegativeKL")
    )
    assert f"rlhf_train_health_verdict{broken} 1.0" in text
    assert f"rlhf_train_health_value{broken} 51.0" in text
    assert f"rlhf_train_health_threshold{broken} 50.0" in text
    assert f"rlhf_train_health_verdict{whole} 0.0" in text
    assert f"rlhf_train_health_value{whole}" not in text
    told = lines(config)[-1]
    assert (told["type"], told["step"]) == ("verdicts", 3)
    rule = {"rule": "KLAboveLimit", "action": "Observe", "step": 3}
    assert told["verdicts"] == [rule | {"value": 51.0, "threshold": 50.0}]
