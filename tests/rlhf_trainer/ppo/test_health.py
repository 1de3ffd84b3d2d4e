"""Verdicts on histories of metrics: what trips each rule, what does not, what is remembered."""

import json
import math
from collections.abc import Iterable
from itertools import repeat
from typing import Any

import pytest
from health_histories import HEALTHY, Update, broken, judged, noisy, verdict_at
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailAction, GuardrailRule
from rlhf_api.v1alpha1 import Guardrail
from rlhf_trainer.ppo.health import Health
from rlhf_trainer.ppo.health_rules import HEALTH_RULES, START_UPDATES

BAD_KL = HEALTHY | {Metric.KL: 51.0}
KL = GuardrailRule.KL_ABOVE_LIMIT


def test_a_verdict_needs_updates_in_a_row_and_as_many_to_mend() -> None:
    history: list[Update] = [
        *[BAD_KL] * 2,
        HEALTHY,
        *[BAD_KL] * 3,  # 4 to 6
        *[HEALTHY] * 2,
        BAD_KL,
        *[HEALTHY] * 3,  # 10 to 12
        BAD_KL,
    ]
    assert verdict_at(KL, history=history) == [6, 7, 8, 9, 10, 11]


def test_only_a_change_is_marked_as_one() -> None:
    judgements = judged(Health(), [BAD_KL] * 5 + [HEALTHY] * 5)
    changed = [
        (step, reading.rule, reading.broken)
        for step, judgement in enumerate(judgements, 1)
        for reading in judgement.readings
        if reading.changed
    ]
    assert changed == [(3, KL, True), (8, KL, False)]


def test_a_guardrail_overrides_what_it_names_and_nothing_else() -> None:
    def at(**settings: Any) -> list[int]:
        guardrail = Guardrail(rule=KL, **settings)
        return verdict_at(KL, guardrail, history=[BAD_KL] * 8)[:1]

    assert at() == [3]
    assert at(threshold=60.0) == []
    assert at(threshold=0.0) == [3]
    assert at(warmup_updates=4) == [7]
    assert at(consecutive_updates=1) == [1]
    assert at(warmup_updates=2, consecutive_updates=2) == [4]


def test_a_quantity_at_the_threshold_holds() -> None:
    history = [HEALTHY | {Metric.KL: 50.0}] * 10
    assert not verdict_at(KL, history=history)


def test_the_start_is_the_end_of_the_warmup() -> None:
    """A start-up transient of the critic is left out by a longer warm-up."""
    falls = [HEALTHY | {Metric.CRITIC_LOSS: 0.01}] * START_UPDATES
    stays = [HEALTHY | {Metric.CRITIC_LOSS_OF_MEAN: 1.0, Metric.EXPLAINED_VARIANCE: 0.0}] * 40
    rule = GuardrailRule.CRITIC_LOSS_DIVERGING
    assert verdict_at(rule, history=falls + stays)[0] == 15
    longer = Guardrail(rule=rule, warmup_updates=2 * START_UPDATES)
    assert verdict_at(rule, longer, history=falls + stays) == []


def test_a_rule_with_a_start_waits_for_it_whatever_its_warmup() -> None:
    rule = GuardrailRule.ENTROPY_COLLAPSE
    none = Guardrail(rule=rule, warmup_updates=0, consecutive_updates=1, threshold=10.0)
    assert verdict_at(rule, none, history=[HEALTHY] * 12) == [11, 12]


@pytest.mark.parametrize(
    ("rule", "warmup", "expected"),
    [
        (KL, None, 1),
        (KL, 4, 5),
        (GuardrailRule.ENTROPY_COLLAPSE, None, START_UPDATES + 1),
        (GuardrailRule.ENTROPY_COLLAPSE, 0, START_UPDATES + 1),
        (GuardrailRule.ENTROPY_COLLAPSE, 20, 21),
    ],
)
def test_a_rule_is_judged_once_its_warmup_is_over(
    rule: GuardrailRule, warmup: int | None, expected: int
) -> None:
    health = Health([Guardrail(rule=rule, warmup_updates=warmup)])
    judged_at = [
        step
        for step, judgement in enumerate(judged(health, [HEALTHY] * 30), 1)
        if any(reading.judged for reading in judgement.readings if reading.rule == rule)
    ]
    assert judged_at == list(range(expected, 31))


def test_updates_without_a_rules_metrics_do_not_count_for_it() -> None:
    """While the critic warms up there is no entropy."""
    without: Update = {
        metric: value for metric, value in HEALTHY.items() if metric != Metric.ENTROPY
    }
    collapsed: Update = HEALTHY | {Metric.ENTROPY: 0.01}
    history: list[Update] = (
        [without] * 30 + [HEALTHY] * 10 + [collapsed] * 5 + [without] * 3 + [collapsed] * 5
    )
    assert verdict_at(GuardrailRule.ENTROPY_COLLAPSE, history=history) == [53]


def test_every_update_reads_all_rules_in_their_order() -> None:
    (first,) = judged(Health(), [HEALTHY])
    assert [reading.rule for reading in first.readings] == list(GuardrailRule)
    values = {reading.rule: reading.value for reading in first.readings}
    # 2 / (5 / 2): the start is less than half the loss of the mean.
    assert values[GuardrailRule.CRITIC_LOSS_DIVERGING] == 0.8
    assert values[GuardrailRule.NON_FINITE] == 0.0
    # There is no best level yet.
    assert values[GuardrailRule.REWARD_COLLAPSE] is None
    assert {r.rule: r.threshold for r in first.readings} == {
        rule: row.threshold for rule, row in HEALTH_RULES.items()
    }


def test_the_baseline_is_told_as_a_metric_from_the_first_update() -> None:
    losses = [2.0, 4.0, 9.0]
    found = judged(Health(), [HEALTHY | {Metric.CRITIC_LOSS: loss} for loss in losses])
    baselines = [judgement.metrics[Metric.CRITIC_LOSS_BASELINE] for judgement in found]
    assert baselines == [2.0, 3.0, 4.0]


def test_the_starts_of_all_quantiles_of_lengths_are_told() -> None:
    """The factor that LengthOutOfRange compares may come from any of them."""
    told = {
        Metric.RESPONSE_TOKENS_P05_START: Metric.RESPONSE_TOKENS_P05,
        Metric.RESPONSE_TOKENS_P50_START: Metric.RESPONSE_TOKENS_P50,
        Metric.RESPONSE_TOKENS_P95_START: Metric.RESPONSE_TOKENS_P95,
    }
    longer = {metric: 5 * HEALTHY[metric] for metric in told.values()}
    for judgement in judged(Health(), [HEALTHY] * 11 + [HEALTHY | longer] * 5):
        assert {start: judgement.metrics[start] for start in told} == {
            start: HEALTHY[metric] for start, metric in told.items()
        }
    without = {m: v for m, v in HEALTHY.items() if m not in told.values()}
    (first,) = judged(Health(), [without])
    assert first.metrics.keys() == {Metric.CRITIC_LOSS_BASELINE}


def test_evidence_holds_the_numbers() -> None:
    history = [HEALTHY] * 20 + [
        HEALTHY
        | {
            Metric.CRITIC_LOSS: 13.0,
            Metric.CRITIC_LOSS_OF_MEAN: 3.6,
            Metric.EXPLAINED_VARIANCE: 0.1,
        }
    ] * 5
    reading = judged(Health(), history)[-1].readings[0]
    assert reading.broken
    assert reading.evidence == (
        "critic loss 13, which started at 2 and would be 3.6 with the mean return as every value, "
        "is 6.5 times the larger of start and half of that; the explained variance is 0.1; "
        "threshold 3"
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_ends_the_attempt_at_once(value: float) -> None:
    update = HEALTHY | {Metric.POLICY_LOSS: value, Metric.CRITIC_LOSS: value}
    (judgement,) = judged(Health(), [update])
    assert judgement.fired is not None
    assert judgement.fired.rule == GuardrailRule.NON_FINITE
    assert judgement.fired.evidence == (
        "2 metrics are not finite: critic_loss, policy_loss; threshold 0"
    )
    assert judgement.spoilt
    # What is not finite is no start of anything.
    assert judgement.metrics == {
        Metric.RESPONSE_TOKENS_P05_START: 30.0,
        Metric.RESPONSE_TOKENS_P50_START: 40.0,
        Metric.RESPONSE_TOKENS_P95_START: 60.0,
    }


def test_nonfinite_metrics_that_are_only_observed_spoil_nothing() -> None:
    observed = Guardrail(rule=GuardrailRule.NON_FINITE, action=GuardrailAction.OBSERVE)
    (judgement,) = judged(Health([observed]), [HEALTHY | {Metric.POLICY_LOSS: math.nan}])
    assert judgement.fired is None
    assert not judgement.spoilt
    assert [verdict.rule for verdict in judgement.verdicts] == [GuardrailRule.NON_FINITE]


def test_what_is_broken_is_a_verdict_of_the_update_that_found_it() -> None:
    judgements = judged(Health(), [BAD_KL] * 3 + [HEALTHY | {Metric.KL: 99.0}] * 3)
    (verdict,) = judgements[-1].verdicts
    assert (verdict.rule, verdict.action) == (KL, GuardrailAction.OBSERVE)
    assert (verdict.step, verdict.value, verdict.threshold) == (3, 51.0, 50.0)
    assert judgements[-1].fired is None


def test_the_strongest_action_comes_first() -> None:
    guardrails = [
        Guardrail(
            rule=GuardrailRule.CLIP_SHARE_HIGH,
            action=GuardrailAction.SUSPEND,
            consecutive_updates=3,
        ),
        Guardrail(rule=KL, action=GuardrailAction.FAIL),
        Guardrail(rule=GuardrailRule.NEGATIVE_KL, threshold=100.0, consecutive_updates=3),
    ]
    *_, last = judged(Health(guardrails), [BAD_KL | {Metric.CLIP_SHARE: 0.9}] * 3)
    assert [verdict.rule for verdict in last.verdicts] == [
        KL,
        GuardrailRule.CLIP_SHARE_HIGH,
        GuardrailRule.NEGATIVE_KL,
    ]
    assert last.fired is not None
    assert last.fired.rule == KL


@pytest.mark.parametrize("action", [GuardrailAction.SUSPEND, GuardrailAction.FAIL])
def test_a_rule_that_fired_starts_anew_and_no_other(action: GuardrailAction) -> None:
    health = Health([Guardrail(rule=KL, action=action)])
    history = repeat(BAD_KL | {Metric.CLIP_SHARE: 0.9}, 8)
    fired = [judgement.fired is not None for judgement in judged(health, history)]
    assert fired == [False, False, True, False, False, True, False, False]
    assert [verdict.rule for verdict in health.verdicts] == [GuardrailRule.CLIP_SHARE_HIGH]


def test_what_fired_is_remembered_until_it_is_heeded() -> None:
    """Whoever goes on from the state after it must know that it ended an attempt."""
    suspends = Guardrail(rule=KL, action=GuardrailAction.SUSPEND)
    kept = resumed([suspends], [suspends], [BAD_KL] * 3)
    (fired,) = kept.fired
    assert (fired.verdict.rule, fired.verdict.action, fired.verdict.step) == (KL, "Suspend", 3)
    assert fired.evidence == "KL is 51 nats an answer; threshold 50"
    assert kept.verdicts == ()
    kept.heed()
    assert kept.fired == ()
    going_on = resumed([suspends], [suspends], [BAD_KL] * 3)
    judged(going_on, [BAD_KL], 4)
    assert going_on.fired == ()


def test_what_fired_under_other_settings_is_nothing_to_heed() -> None:
    suspends = Guardrail(rule=KL, action=GuardrailAction.SUSPEND)
    assert resumed([suspends], [Guardrail(rule=KL)], [BAD_KL] * 3).fired == ()


def test_the_strongest_action_that_fired_comes_first() -> None:
    guardrails = [
        Guardrail(
            rule=GuardrailRule.CLIP_SHARE_HIGH,
            action=GuardrailAction.SUSPEND,
            consecutive_updates=3,
        ),
        Guardrail(rule=KL, action=GuardrailAction.FAIL),
    ]
    health = Health(guardrails)
    judged(health, [BAD_KL | {Metric.CLIP_SHARE: 0.9}] * 3)
    assert [each.verdict.rule for each in health.fired] == [KL, GuardrailRule.CLIP_SHARE_HIGH]


def test_what_stands_is_told_before_the_next_update() -> None:
    health = resumed([], [], [*[HEALTHY] * 9, *[BAD_KL] * 3])
    standing = {reading.rule: reading for reading in health.standing}
    assert list(standing) == list(GuardrailRule)
    assert [rule for rule, reading in standing.items() if reading.broken] == [KL]
    assert (standing[KL].value, standing[KL].threshold, standing[KL].changed) == (51.0, 50.0, False)
    assert standing[GuardrailRule.ENTROPY_COLLAPSE].start == HEALTHY[Metric.ENTROPY]
    assert standing[GuardrailRule.ENTROPY_COLLAPSE].value is None
    assert [rule for rule, reading in standing.items() if reading.judged] == [
        rule for rule, row in HEALTH_RULES.items() if max(row.warmup, START_UPDATES) < 12
    ]


def test_a_window_in_the_form_of_another_release_starts_anew() -> None:
    health = Health()
    judged(health, [BAD_KL] * 3)
    document = health.to_document()
    document[KL]["trend"] = 1.0
    other = Health()
    other.load(document)
    assert other.verdicts == ()
    assert broken(judged(other, [BAD_KL] * 3, 4))[-1] == {KL}


def resumed(before: list[Guardrail], after: list[Guardrail], history: Iterable[Update]) -> Health:
    """What was seen under some guardrails, gone on with under others."""
    first, second = Health(before), Health(after)
    judged(first, history)
    second.load(json.loads(json.dumps(first.to_document())))
    return second


SUSPEND = GuardrailAction.SUSPEND


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"action": SUSPEND}, [3]),
        ({"action": SUSPEND, "threshold": 80.0}, []),
        ({"threshold": 40.0}, [3]),
        ({"consecutive_updates": 2}, [2]),
        ({"warmup_updates": 4}, [7]),
        ({}, [1]),
    ],
)
def test_count_and_verdict_start_anew_where_a_setting_changed(
    changed: dict[str, Any], expected: list[int]
) -> None:
    """A verdict that another threshold gave must not end the attempt under this one."""
    health = resumed([], [Guardrail(rule=KL, **changed)], [BAD_KL] * 5)
    assert [verdict.rule for verdict in health.verdicts] == ([] if changed else [KL])
    assert [
        step for step, found in enumerate(broken(judged(health, [BAD_KL] * 8)), 1) if KL in found
    ][:1] == expected


@pytest.mark.parametrize(
    ("changed", "start"),
    [
        ({"action": SUSPEND}, 1.5),
        ({"threshold": 0.5}, 1.5),
        ({"consecutive_updates": 1}, 1.5),
        ({"warmup_updates": 20}, 0.01),
    ],
)
def test_the_baseline_starts_anew_with_the_warmup_alone(
    changed: dict[str, Any], start: float
) -> None:
    rule = GuardrailRule.ENTROPY_COLLAPSE
    collapsed = HEALTHY | {Metric.ENTROPY: 0.01}
    health = resumed([], [Guardrail(rule=rule, **changed)], [HEALTHY] * 12)
    (judgement,) = judged(health, [collapsed], 13)
    (reading,) = (each for each in judgement.readings if each.rule == rule)
    assert reading.start == start


def test_a_reading_tells_start_and_best_where_its_rule_has_them() -> None:
    last = judged(Health(), [HEALTHY] * 12)[-1]
    assert {each.rule: each.start for each in last.readings if each.start is not None} == {
        rule: HEALTHY[row.start_of[0]] for rule, row in HEALTH_RULES.items() if row.start_of
    }
    assert {each.rule: each.best for each in last.readings if each.best is not None} == {
        GuardrailRule.REWARD_COLLAPSE: HEALTHY[Metric.REWARD]
    }


def test_the_quantity_follows_from_what_is_told_while_the_best_rises() -> None:
    rising = [HEALTHY | {Metric.REWARD: float(step)} for step in range(1, 30)]
    judgements, rule = judged(Health(), rising), GuardrailRule.REWARD_COLLAPSE
    readings = [each for one in judgements for each in one.readings if each.rule == rule]
    for metrics, reading in zip(rising[12:], readings[12:], strict=True):
        expected = ((reading.best or 0) - metrics[Metric.REWARD]) / (reading.start or 1)
        assert reading.value == pytest.approx(expected)


NUMBERS = st.floats(-5, 5) | st.sampled_from([math.nan, math.inf, 0.0])
UPDATES = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys(HEALTHY, NUMBERS)), min_size=1, max_size=40
)


@settings(max_examples=60)
@given(UPDATES, st.integers(0, 40))
def test_judging_goes_on_from_a_checkpoint_as_if_never_stopped(
    history: list[Update], cut: int
) -> None:
    guardrails = [
        Guardrail(
            rule=rule,
            consecutive_updates=2,
            action=GuardrailAction.SUSPEND if rule == KL else None,
        )
        for rule in GuardrailRule
    ]
    whole, first, second = (Health(guardrails) for _ in range(3))
    cut = min(cut, len(history))
    before = judged(first, history[:cut])
    second.load(json.loads(json.dumps(first.to_document(), allow_nan=False)))
    assert before + judged(second, history[cut:], cut + 1) == judged(whole, history)
    assert second.to_document() == whole.to_document()


def test_what_is_remembered_does_not_grow() -> None:
    health = Health()
    judged(health, noisy(0, 50))
    size = len(json.dumps(health.to_document()))
    judged(health, noisy(1, 500), 51)
    assert len(json.dumps(health.to_document())) < 1.1 * size
