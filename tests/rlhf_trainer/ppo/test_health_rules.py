"""Each rule of health: histories that break it and that do not, noisy ones among them."""

import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from health_histories import HEALTHY, SEEDS, Update, ever, judged, noisy, verdict_at

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailAction, GuardrailRule
from rlhf_trainer.ppo.health import Health
from rlhf_trainer.ppo.health_rules import HEALTH_RULES

PAGE = Path(__file__).resolve().parents[3] / "docs" / "guardrails.md"

# What an unhealthy history looks like from the twentieth update on.
UNHEALTHY: dict[GuardrailRule, dict[str, float]] = {
    # Growth of an unscaled critic's loss, and how it fares beside the mean: see docs/guardrails.md.
    GuardrailRule.CRITIC_LOSS_DIVERGING: {
        "critic_loss": 13.0,
        "critic_loss_of_mean": 3.6,
        "explained_variance": 0.1,
    },
    GuardrailRule.NEGATIVE_KL: {"kl": -0.2},
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

# Near the limit of a rule, on its good side.
GOOD: list[tuple[GuardrailRule, dict[str, float]]] = [
    # A critic that keeps up with growing returns, and one that is bad but not worse.
    (
        GuardrailRule.CRITIC_LOSS_DIVERGING,
        {"critic_loss": 13.0, "critic_loss_of_mean": 26.0, "explained_variance": 0.1},
    ),
    (
        GuardrailRule.CRITIC_LOSS_DIVERGING,
        {"critic_loss": 2.5, "critic_loss_of_mean": 0.7, "explained_variance": 0.1},
    ),
    # One whose values are all too low by the same amount, and right beside each other.
    (
        GuardrailRule.CRITIC_LOSS_DIVERGING,
        {"critic_loss": 13.0, "critic_loss_of_mean": 3.6, "explained_variance": 0.8},
    ),
    (GuardrailRule.NEGATIVE_KL, {"kl": 0.01}),
    (GuardrailRule.CLIP_SHARE_HIGH, {"clip_share": 0.25}),
    (GuardrailRule.KL_ABOVE_LIMIT, {"kl": 25.0}),
    (GuardrailRule.ENTROPY_COLLAPSE, {"entropy": 0.4}),
    (GuardrailRule.REPETITION_HIGH, {"distinct_2": 0.4}),
    (GuardrailRule.EOS_RATE_LOW, {"eos_rate": 0.5}),
    (GuardrailRule.LENGTH_OUT_OF_RANGE, {"response_tokens_p50": 75.0}),
    (GuardrailRule.LENGTH_OUT_OF_RANGE, {"response_tokens_p50": 22.0}),
    (GuardrailRule.LENGTH_OUT_OF_RANGE, {"response_tokens_p05": 14.0}),
    (GuardrailRule.LENGTH_OUT_OF_RANGE, {"response_tokens_p95": 120.0}),
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
    assert ever(judged(health, noisy(seed + 100, 60, **changes), 21)) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_long_noisy_healthy_history_breaks_nothing(seed: int) -> None:
    assert ever(judged(Health(), noisy(seed, 1000, noise=0.3))) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_kl_that_is_a_little_below_0_for_long_is_told(seed: int) -> None:
    rule = GuardrailRule.NEGATIVE_KL
    below, above = {"kl": -0.01}, {"kl": 0.01}
    history = [*noisy(seed, 19, **below), *noisy(seed, 1, **above), *noisy(seed, 19, **below)]
    assert verdict_at(rule, history=history) == []
    history += noisy(seed, 1, **below)
    assert verdict_at(rule, history=history) == [40]


@pytest.mark.parametrize("answers", [8, 64])
@pytest.mark.parametrize("true_kl", [1e-5, 1e-3, 0.02, 0.1, 1.0])
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
                Metric.EXPLAINED_VARIANCE: max(0.0, middle),
            }

    diverging = GuardrailRule.CRITIC_LOSS_DIVERGING
    assert verdict_at(diverging, history=history(9.9, 65.0, (-0.2, -2.9)))
    assert not verdict_at(diverging, history=history(0.61, 0.7, (0.0, 0.95)))
    assert not verdict_at(diverging, history=history(0.61, 0.003, (0.0, 0.97)))
    # A critic with a tenfold learning rate: its loss grows, but it explains the returns.
    assert not verdict_at(diverging, history=history(9.9, 16.5, (0.0, 0.88)))


def sparse(seed: int, updates: int, hits: Callable[[int], float]) -> Iterator[Update]:
    """Rewards of 0 or, in `hits` of all answers, 1, and a critic that has learned nothing yet.

    As measured on the default settings: values near 0, and between the hits only the KL penalty.
    """
    draw = random.Random(seed)
    answers, penalty = 64, 0.03
    for at in range(updates):
        share = sum(draw.random() < hits(at) for _ in range(answers)) / answers
        # Divided by a running deviation of about 0.07.
        square = share / 0.07**2
        yield HEALTHY | {
            Metric.CRITIC_LOSS: 0.5 * (square + penalty * math.exp(draw.gauss(0, 0.2))),
            Metric.CRITIC_LOSS_OF_MEAN: 0.5 * (square * (1 - share) + penalty),
            Metric.EXPLAINED_VARIANCE: 0.0,
        }


@pytest.mark.parametrize("seed", SEEDS)
def test_a_start_of_almost_no_reward_is_no_baseline(seed: int) -> None:
    """The loss grows by hundreds when the first answers are rewarded, and nothing is wrong."""
    diverging = GuardrailRule.CRITIC_LOSS_DIVERGING
    history = list(sparse(seed, 60, lambda at: 0.0 if at < 10 else 0.08))
    losses = [update[Metric.CRITIC_LOSS] for update in history]
    assert max(losses) > 200 * losses[0]
    assert not verdict_at(diverging, history=history)
    # Of a policy that has found it out the critic must learn.
    found = sparse(seed, 60, lambda at: 0.0 if at < 10 else 0.9)
    assert verdict_at(diverging, history=found)


QUANTILES = (Metric.RESPONSE_TOKENS_P05, Metric.RESPONSE_TOKENS_P50, Metric.RESPONSE_TOKENS_P95)


@pytest.mark.parametrize(
    ("metric", "tokens"),
    [
        (Metric.RESPONSE_TOKENS_P05, 1.0),
        (Metric.RESPONSE_TOKENS_P05, 100.0),
        (Metric.RESPONSE_TOKENS_P50, 12.0),
        (Metric.RESPONSE_TOKENS_P50, 160.0),
        (Metric.RESPONSE_TOKENS_P95, 15.0),
        (Metric.RESPONSE_TOKENS_P95, 200.0),
    ],
)
def test_each_quantile_of_the_length_is_judged_both_ways(metric: Metric, tokens: float) -> None:
    rule = GuardrailRule.LENGTH_OUT_OF_RANGE
    history = [HEALTHY] * 20 + [HEALTHY | {metric: tokens}] * 5
    assert verdict_at(rule, history=history) == [25]
    (reading,) = (r for r in judged(Health(), history)[-1].readings if r.rule == rule)
    assert f"{tokens:.4g}" in reading.evidence
    assert "at the start 30, 40 and 60; the furthest moved by" in reading.evidence


def test_the_shortest_answers_of_a_few_tokens_are_judged_alike() -> None:
    short = HEALTHY | dict(zip(QUANTILES, (1.0, 20.0, 60.0), strict=True))
    history = [short] * 20 + [short | {Metric.RESPONSE_TOKENS_P05: 7.0}] * 20
    assert not verdict_at(GuardrailRule.LENGTH_OUT_OF_RANGE, history=history)


def answered(
    seed: int, updates: int, answers: int, draw: Callable[[np.random.Generator, int], np.ndarray]
) -> Iterator[Update]:
    """Lengths of so many answers an update, at least 1 and at most 1024 tokens."""
    generator = np.random.default_rng(seed)
    for _ in range(updates):
        lengths = np.clip(np.round(draw(generator, answers)), 1, 1024)
        found = np.quantile(lengths, (0.05, 0.5, 0.95))
        yield HEALTHY | dict(zip(QUANTILES, map(float, found), strict=True))


def usual(generator: np.random.Generator, answers: int) -> np.ndarray:
    """Lengths as of chat: a median of 120 tokens, widely spread."""
    return np.asarray(generator.lognormal(math.log(120), 0.5, answers))


def partly_empty(generator: np.random.Generator, answers: int) -> np.ndarray:
    """A fifth of the answers says nothing."""
    return np.where(generator.random(answers) < 0.2, 1, usual(generator, answers))


def partly_endless(generator: np.random.Generator, answers: int) -> np.ndarray:
    """A fifth of the answers never ends."""
    return np.where(generator.random(answers) < 0.2, 1024, usual(generator, answers))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("answers", [16, 64])
@pytest.mark.parametrize(
    "draw",
    [usual, lambda generator, answers: generator.geometric(1 / 30, answers)],
    ids=["chat", "random letters"],
)
def test_lengths_that_only_vary_break_nothing(
    draw: Callable[[np.random.Generator, int], np.ndarray], answers: int, seed: int
) -> None:
    assert ever(judged(Health(), answered(seed, 1000, answers, draw))) == set()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("draw", [partly_empty, partly_endless])
def test_a_fifth_of_the_answers_breaks_the_rule(
    draw: Callable[[np.random.Generator, int], np.ndarray], seed: int
) -> None:
    health, rule = Health(), GuardrailRule.LENGTH_OUT_OF_RANGE
    judged(health, answered(seed, 20, 64, usual))
    after = list(answered(seed + 100, 30, 64, draw))
    median = [update[Metric.RESPONSE_TOKENS_P50] for update in after]
    assert min(median) > 60
    assert max(median) < 360
    assert ever(judged(health, after, 21)) == {rule}


def test_answers_that_never_ended_do_not_break_eos_rate_low() -> None:
    history = [HEALTHY | {Metric.EOS_RATE: 0.1}] * 60
    assert not verdict_at(GuardrailRule.EOS_RATE_LOW, history=history)


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
