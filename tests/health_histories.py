"""Histories of PPO's metrics for the tests of health, and what is judged of them."""

import random
from collections.abc import Iterable, Iterator

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailRule
from rlhf_api.v1alpha1 import Guardrail
from rlhf_trainer.ppo.health import Health, Judgement

Update = dict[Metric, float]

HEALTHY: Update = {
    Metric.CRITIC_LOSS: 2.0,
    Metric.CRITIC_LOSS_OF_MEAN: 5.0,
    Metric.EXPLAINED_VARIANCE: 0.6,
    Metric.KL: 4.0,
    Metric.CLIP_SHARE: 0.1,
    Metric.ENTROPY: 1.5,
    Metric.DISTINCT_2: 0.5,
    Metric.EOS_RATE: 0.9,
    Metric.RESPONSE_TOKENS_P05: 30.0,
    Metric.RESPONSE_TOKENS_P50: 40.0,
    Metric.RESPONSE_TOKENS_P95: 60.0,
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
