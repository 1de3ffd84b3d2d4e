"""Verdicts on histories of metrics: what trips each rule, what does not, what is remembered."""

import json
import math
import random
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_api.names import GuardrailAction, GuardrailRule, Metric
from rlhf_api.v1alpha1 import Guardrail
from rlhf_trainer.health import Health, Judgement
from rlhf_trainer.health_rules import HEALTH_RULES, START_UPDATES

Update = dict[Metric, float]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guardrails.md"

HEALTHY: Update = {
    Metric.CRITIC_LOSS: 2.0,
    Metric.CRITIC_LOSS_OF_MEAN: 5.0,
    Metric.EXPLAINED_VARIANCE: 0.6,
    Metric.KL: 4.0,
    Metric.CLIP_SHARE: 0.1,
    Metric.ENTROPY: 1.5,
    Metric.DISTINCT_2: 0.5,
    Metric.EOS_RATE: 0.9,
    Metric.RESPONSE_TOKENS_P50: 40.0,
    Metric.REWARD: 1.0,
    Metric.REWARD_STD: 2.0,
}
SEEDS = range(5)


def noisy(
    seed: int, updates: int, noise: float = 0.2, **changes: float
) -> Iterator[dict[Metric, float]]:
    """A healthy history, changed, each number with its own noise of that share of it."""
    draw = random.Random(seed)
    middle = HEALTHY | {Metric(name): value for name, value in changes.items()}
    for _ in range(updates):
        yield {metric: value * (1 + draw.gauss(0, noise)) for metric, value in middle.items()}


def judged(health: Health, history: Iterable[Update], first: int = 1) -> list[Judgement]:
    return [health.judge(step, update) for step, update in enumerate(history, first)]


def broken(judgements: Iterable[Judgement]) -> list[set[GuardrailRule]]:
    return [
        {reading.rule for reading in judgement.readings if reading.broken}
        for judgement in judgements
    ]


def ever(judgements: Iterable[Judgement]) -> set[GuardrailRule]:
    return set().union(*broken(judgements))


def verdict_at(rule: GuardrailRule, *guardrails: Guardrail, history: Iterable[Update]) -> list[int]:
    """The updates, from 1, after which `rule` is broken."""
    found = broken(judged(Health(guardrails), history))
    return [step for step, rules in enumerate(found, 1) if rule in rules]


# What an unhealthy history looks like from the twentieth update on.
UNHEALTHY: dict[GuardrailRule, dict[str, float]] = {
    # Growth of an unscaled critic's loss, and how it fares beside the mean: see docs/guardrails.md.
    GuardrailRule.CRITIC_LOSS_DIVERGING: {"critic_loss": 13.0, "critic_loss_of_mean": 3.6},
    GuardrailRule.NEGATIVE_KL: {"kl": -2.0},
    GuardrailRule.CLIP_SHARE_HIGH: {"clip_share": 0.8},
    GuardrailRule.KL_ABOVE_LIMIT: {"kl": 120.0},
    GuardrailRule.ENTROPY_COLLAPSE: {"entropy": 0.05},
    GuardrailRule.REPETITION_HIGH: {"distinct_2": 0.05},
    GuardrailRule.EOS_RATE_LOW: {"eos_rate": 0.05},
    GuardrailRule.LENGTH_OUT_OF_RANGE: {"response_tokens_p50": 4.0},
    GuardrailRule.REWARD_COLLAPSE: {"reward": -5.0},
    GuardrailRule.SCORE_STD_COLLAPSE: {"reward_std": 0.05},
    GuardrailRule.NON_FINITE: {"policy_loss": math.nan},
}

# Near the limit, on its good side.
GOOD: list[tuple[GuardrailRule, dict[str, float]]] = [
    # A critic that keeps up with growing returns, and one that is bad but not worse.
    (GuardrailRule.CRITIC_LOSS_DIVERGING, {"critic_loss": 13.0, "critic_loss_of_mean": 26.0}),
    (GuardrailRule.CRITIC_LOSS_DIVERGING, {"critic_loss": 2.5, "critic_loss_of_mean": 0.7}),
    (GuardrailRule.CLIP_SHARE_HIGH, {"clip_share": 0.25}),
    (GuardrailRule.KL_ABOVE_LIMIT, {"kl": 25.0}),
    (GuardrailRule.ENTROPY_COLLAPSE, {"entropy": 0.4}),
    (GuardrailRule.REPETITION_HIGH, {"distinct_2": 0.4}),
    (GuardrailRule.EOS_RATE_LOW, {"eos_rate": 0.5}),
    (GuardrailRule.LENGTH_OUT_OF_RANGE, {"response_tokens_p50": 75.0}),
    (GuardrailRule.LENGTH_OUT_OF_RANGE, {"response_tokens_p50": 22.0}),
    (GuardrailRule.REWARD_COLLAPSE, {"reward": 9.0}),
    (GuardrailRule.REWARD_COLLAPSE, {"reward": 0.2}),
    (GuardrailRule.SCORE_STD_COLLAPSE, {"reward_std": 0.6}),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rule", GuardrailRule)
def test_an_unhealthy_history_breaks_its_rule_alone(rule: GuardrailRule, seed: int) -> None:
    health = Health()
    before = judged(health, noisy(seed, 20))
    after = judged(health, noisy(seed + 100, 30, **UNHEALTHY[rule]), 21)
    assert ever(before) == set()
    assert ever(after) == {rule}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("rule", "changes"), GOOD)
def test_a_good_history_breaks_no_rule(
    rule: GuardrailRule, changes: dict[str, float], seed: int
) -> None:
    health = Health()
    judged(health, noisy(seed, 20))
    assert rule not in ever(judged(health, noisy(seed + 100, 60, **changes), 21))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_noisy_healthy_history_breaks_nothing(seed: int) -> None:
    assert ever(judged(Health(), noisy(seed, 1000, noise=0.3))) == set()


@pytest.mark.parametrize("answers", [8, 64])
@pytest.mark.parametrize("true_kl", [0.0, 0.02, 0.1, 1.0])
def test_noise_of_an_unbiased_kl_near_zero_breaks_nothing(true_kl: float, answers: int) -> None:
    """k1 of one answer has about the variance 2 KL; a start has many updates near 0."""
    draw = random.Random(answers)
    deviation = math.sqrt(2 * true_kl / answers)
    history = [HEALTHY | {Metric.KL: draw.gauss(true_kl, deviation)} for _ in range(500)]
    if true_kl == 0.1 and answers == 8:
        assert min(update[Metric.KL] for update in history) < -0.1
    assert ever(judged(Health(), history)) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_critic_as_measured_diverges_and_a_cured_one_does_not(seed: int) -> None:
    """Shapes of a toy whose returns grow, without any remedy and with scaled rewards."""
    draw = random.Random(seed)

    def history(first: float, peak: float, explained: tuple[float, float]) -> Iterator[Update]:
        for at in range(150):
            share = at / 149
            middle = explained[0] + share * (explained[1] - explained[0]) + draw.gauss(0, 0.05)
            loss = first + (peak - first) * min(1.0, 2 * share)
            loss *= math.exp(draw.gauss(0, 0.2))
            # The toy's explained variance counts a wrong mean: it is 1 - mean square / variance.
            yield HEALTHY | {
                Metric.CRITIC_LOSS: loss,
                Metric.CRITIC_LOSS_OF_MEAN: loss / (1 - min(middle, 0.99)),
            }

    diverging = GuardrailRule.CRITIC_LOSS_DIVERGING
    assert verdict_at(diverging, history=history(9.9, 65.0, (-0.2, -2.9)))
    assert not verdict_at(diverging, history=history(0.61, 0.7, (0.0, 0.95)))
    assert not verdict_at(diverging, history=history(0.61, 0.003, (0.0, 0.97)))
    # A critic with a tenfold learning rate: its loss grows, but it explains the returns.
    assert not verdict_at(diverging, history=history(9.9, 16.5, (0.0, 0.88)))


def test_the_length_is_judged_both_ways() -> None:
    rule = GuardrailRule.LENGTH_OUT_OF_RANGE
    for median in (12.0, 160.0):
        history = [HEALTHY] * 20 + [HEALTHY | {Metric.RESPONSE_TOKENS_P50: median}] * 5
        assert verdict_at(rule, history=history) == [25]


def test_answers_that_never_ended_do_not_break_eos_rate_low() -> None:
    history = [HEALTHY | {Metric.EOS_RATE: 0.1}] * 60
    assert not verdict_at(GuardrailRule.EOS_RATE_LOW, history=history)


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
    stays = [HEALTHY | {Metric.CRITIC_LOSS_OF_MEAN: 1.0}] * 40
    rule = GuardrailRule.CRITIC_LOSS_DIVERGING
    assert verdict_at(rule, history=falls + stays)[0] == 15
    longer = Guardrail(rule=rule, warmup_updates=2 * START_UPDATES)
    assert verdict_at(rule, longer, history=falls + stays) == []


def test_a_rule_with_a_start_waits_for_it_whatever_its_warmup() -> None:
    rule = GuardrailRule.ENTROPY_COLLAPSE
    none = Guardrail(rule=rule, warmup_updates=0, consecutive_updates=1, threshold=10.0)
    assert verdict_at(rule, none, history=[HEALTHY] * 12) == [11, 12]


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
    assert values[GuardrailRule.CRITIC_LOSS_DIVERGING] == 1.0
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


def test_evidence_holds_the_numbers() -> None:
    history = [HEALTHY] * 20 + [
        HEALTHY | {Metric.CRITIC_LOSS: 13.0, Metric.CRITIC_LOSS_OF_MEAN: 3.6}
    ] * 5
    reading = judged(Health(), history)[-1].readings[0]
    assert reading.broken
    assert reading.evidence == (
        "critic loss 13 is 6.5 times its start of 2, and above 3.6, that of the mean return; the "
        "explained variance is 0.6; threshold 3"
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
    assert judgement.metrics == {}


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
        rule: HEALTHY[row.start_of]
        for rule, row in HEALTH_RULES.items()
        if row.start_of is not None
    }
    assert {each.rule: each.best for each in last.readings if each.best is not None} == {
        GuardrailRule.REWARD_COLLAPSE: HEALTHY[Metric.REWARD]
    }


NUMBERS = st.floats(-5, 5) | st.sampled_from([math.nan, math.inf, 0.0])
UPDATES = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys(HEALTHY, NUMBERS)), min_size=1, max_size=40
)


@settings(max_examples=60, deadline=None)
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


def test_the_page_holds_the_table_and_names_no_other_rule() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    expected = [
        f"| `{row.rule}` | {row.meaning} | {'>' if row.above else '<'} {row.threshold:g} "
        f"| {row.warmup} | {row.consecutive} | `{row.action}` | {row.remedy} |"
        for row in (HEALTH_RULES[rule] for rule in GuardrailRule)
    ]
    assert [row for row in rows if row.count("|") == 8] == expected
    words = {*GuardrailRule, *GuardrailAction}
    assert {row.split("`")[1] for row in rows} - words == {"events.jsonl"}
