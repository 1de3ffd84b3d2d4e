"""What can be told from the metrics of PPO to go wrong: one table of rules.

Read by `health`, which judges by it, and by docs/guardrails.md, which shows it. Numbers in, numbers
out; nothing is remembered here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailAction, GuardrailRule
from rlhf_api.v1alpha1.guardrails import EXPLAINED_BY_A_SOUND_CRITIC

Numbers = Mapping[Metric, float]
"""The metrics of one update."""

START_UPDATES = 10
"""Updates whose median is a metric's start, and whose mean is its level later."""

LENGTHS = (Metric.RESPONSE_TOKENS_P50, Metric.RESPONSE_TOKENS_P05, Metric.RESPONSE_TOKENS_P95)

SHORT_ANSWER = 8.0
"""Tokens below which the shortest answers count as equally long: of a few tokens the 5 % quantile
changes by factors with noise alone."""


@dataclass(frozen=True)
class Past:
    """What a rule knows of the updates before.

    Attributes:
        starts: median of each of the rule's `start_of` over the last `START_UPDATES` updates of the
            warm-up, or over those so far.
        best: highest mean of `best_of` over `START_UPDATES` updates in a row; NaN before the first.
    """

    starts: Mapping[Metric, float] = field(default_factory=dict)
    best: float = math.nan

    @property
    def start(self) -> float:
        """That of the first metric of `start_of`; NaN for a rule that has none."""
        return next(iter(self.starts.values()), math.nan)


Quantity = Callable[[Numbers, Past], float]


@dataclass(frozen=True)
class HealthRule:
    """One row of the table.

    Attributes:
        rule: its name.
        reads: metrics without which an update is not judged by it.
        quantity: what is compared with the threshold; NaN where it has no meaning.
        meaning: the quantity in words.
        threshold: its limit, where no guardrail sets another.
        above: whether a quantity above the threshold breaks the rule, else one below.
        warmup: updates at the start that are not judged; a rule with `start_of` waits for
            `START_UPDATES` at least.
        consecutive: updates in a row that break the rule, or mend it.
        evidence: a format of the numbers behind it.
        remedy: what to do.
        start_of: metrics whose starts the quantity needs, that which is told first.
        best_of: metric whose best level it needs.
        only_if: a second condition for the rule to be broken.
        action: what follows, where no guardrail sets another.
    """

    rule: GuardrailRule
    reads: tuple[Metric, ...]
    quantity: Quantity
    meaning: str
    threshold: float
    above: bool
    warmup: int
    consecutive: int
    evidence: str
    remedy: str
    start_of: tuple[Metric, ...] = ()
    best_of: Metric | None = None
    only_if: Callable[[Numbers, Past, float], bool] = lambda numbers, past, threshold: True
    action: GuardrailAction = GuardrailAction.OBSERVE

    def breaks(self, value: float, numbers: Numbers, past: Past) -> bool:
        """Whether an update with that quantity is beyond the threshold."""
        beyond = value > self.threshold if self.above else value < self.threshold
        return beyond and self.only_if(numbers, past, self.threshold)


def _metric(metric: Metric) -> Quantity:
    return lambda numbers, past: numbers[metric]


def _share_of_start(metric: Metric) -> Quantity:
    def share(numbers: Numbers, past: Past) -> float:
        return numbers[metric] / past.start if past.start > 0 else math.nan

    return share


def _repetition(numbers: Numbers, past: Past) -> float:
    return 1 - _share_of_start(Metric.DISTINCT_2)(numbers, past)


def _critic_growth(numbers: Numbers, past: Past) -> float:
    # A start that is tiny beside the returns of today, as where rewards were 0 until now, is no
    # baseline: a critic that has learned nothing yet has a loss about that of the mean.
    baseline = max(past.start, numbers[Metric.CRITIC_LOSS_OF_MEAN] / 2)
    return numbers[Metric.CRITIC_LOSS] / baseline if baseline > 0 else math.nan


def _critic_is_poor(numbers: Numbers, past: Past, threshold: float) -> bool:
    # The loss of the mean comes first: the explained variance alone forgives values that are all
    # too low, as they are while returns grow faster than the critic can follow.
    return (
        numbers[Metric.CRITIC_LOSS] > numbers[Metric.CRITIC_LOSS_OF_MEAN]
        and numbers[Metric.EXPLAINED_VARIANCE] < EXPLAINED_BY_A_SOUND_CRITIC
    )


def _length_factor(numbers: Numbers, past: Past) -> float:
    """Of the quantile that moved furthest."""

    def factor(metric: Metric) -> float:
        least = SHORT_ANSWER if metric == Metric.RESPONSE_TOKENS_P05 else 0.0
        now, start = max(numbers[metric], least), max(past.starts[metric], least)
        return max(now / start, start / now) if now > 0 and start > 0 else math.nan

    return max(factor(metric) for metric in LENGTHS)


def _lost_reward(numbers: Numbers, past: Past) -> float:
    return (past.best - numbers[Metric.REWARD]) / past.start if past.start > 0 else math.nan


_ROWS = (
    HealthRule(
        GuardrailRule.CRITIC_LOSS_DIVERGING,
        reads=(Metric.CRITIC_LOSS, Metric.CRITIC_LOSS_OF_MEAN, Metric.EXPLAINED_VARIANCE),
        start_of=(Metric.CRITIC_LOSS,),
        quantity=_critic_growth,
        only_if=_critic_is_poor,
        meaning="critic loss / its start, or half the loss of the mean return as every value where "
        "that is more; where the mean would do better and the explained variance is below "
        f"{EXPLAINED_BY_A_SOUND_CRITIC:g}",
        threshold=3.0,
        above=True,
        warmup=10,
        consecutive=5,
        evidence="critic loss {critic_loss:.4g}, which started at {start:.4g} and would be "
        "{critic_loss_of_mean:.4g} with the mean return as every value, is {value:.3g} times the "
        "larger of start and half of that; the explained variance is {explained_variance:.3g}",
        remedy="set valueNormalization PopArt, or rewardScaling RunningStdTotal where it is None, "
        "or raise criticLearningRate",
    ),
    HealthRule(
        GuardrailRule.NEGATIVE_KL,
        reads=(Metric.KL,),
        quantity=_metric(Metric.KL),
        meaning="mean KL (k1) in nats an answer, which noise alone takes below 0 for some updates",
        threshold=0.0,
        above=False,
        warmup=0,
        consecutive=20,
        evidence="KL is {kl:.4g} nats an answer",
        remedy="answers do not come from the policy whose probabilities are taken: look at "
        "sampler_drift, and at topK and topP, which bias KL",
    ),
    HealthRule(
        GuardrailRule.CLIP_SHARE_HIGH,
        reads=(Metric.CLIP_SHARE,),
        quantity=_metric(Metric.CLIP_SHARE),
        meaning="share of tokens whose ratio was clipped",
        threshold=0.4,
        above=True,
        warmup=0,
        consecutive=5,
        evidence="a share of {clip_share:.3g} of all tokens was clipped",
        remedy="lower learningRate or updateEpochs, or raise minibatchSize",
    ),
    HealthRule(
        GuardrailRule.KL_ABOVE_LIMIT,
        reads=(Metric.KL,),
        quantity=_metric(Metric.KL),
        meaning="mean KL (k1) in nats an answer",
        threshold=50.0,
        above=True,
        warmup=0,
        consecutive=3,
        evidence="KL is {kl:.4g} nats an answer",
        remedy="raise klCoef or lower learningRate; raise the threshold for long answers",
    ),
    HealthRule(
        GuardrailRule.ENTROPY_COLLAPSE,
        reads=(Metric.ENTROPY,),
        start_of=(Metric.ENTROPY,),
        quantity=_share_of_start(Metric.ENTROPY),
        meaning="entropy / its start",
        threshold=0.1,
        above=False,
        warmup=10,
        consecutive=10,
        evidence="entropy {entropy:.4g} is {value:.3g} of its start of {start:.4g}",
        remedy="raise entropyCoef or klCoef, or lower learningRate",
    ),
    HealthRule(
        GuardrailRule.REPETITION_HIGH,
        reads=(Metric.DISTINCT_2,),
        start_of=(Metric.DISTINCT_2,),
        quantity=_repetition,
        meaning="1 - distinct-2 / its start",
        threshold=0.5,
        above=True,
        warmup=10,
        consecutive=5,
        evidence="distinct-2 fell from {start:.3g} to {distinct_2:.3g}, by a share of {value:.3g}",
        remedy="read samples.jsonl; raise klCoef, or make the reward see repetition",
    ),
    HealthRule(
        GuardrailRule.EOS_RATE_LOW,
        reads=(Metric.EOS_RATE,),
        start_of=(Metric.EOS_RATE,),
        quantity=_metric(Metric.EOS_RATE),
        only_if=lambda numbers, past, threshold: past.start > threshold,
        meaning="share of answers that end, where it was above the threshold at the start",
        threshold=0.2,
        above=False,
        warmup=10,
        consecutive=5,
        evidence="a share of {eos_rate:.3g} of all answers ends, of {start:.3g} at the start",
        remedy="raise missingEosPenalty or maxResponseLength",
    ),
    HealthRule(
        GuardrailRule.LENGTH_OUT_OF_RANGE,
        reads=LENGTHS,
        start_of=LENGTHS,
        quantity=_length_factor,
        meaning="factor between the 5, 50 or 95 % quantile of the length of an answer, whichever "
        "moved furthest, and its start, either way; a 5 % quantile below 8 tokens counts as 8",
        threshold=3.0,
        above=True,
        warmup=10,
        consecutive=5,
        evidence="the 5, 50 and 95 % quantiles of the length are {response_tokens_p05:.4g}, "
        "{response_tokens_p50:.4g} and {response_tokens_p95:.4g} tokens, at the start "
        "{start_response_tokens_p05:.4g}, {start_response_tokens_p50:.4g} and "
        "{start_response_tokens_p95:.4g}; the furthest moved by a factor of {value:.3g}",
        remedy="read samples.jsonl; raise klCoef, or make the reward independent of length",
    ),
    HealthRule(
        GuardrailRule.REWARD_COLLAPSE,
        reads=(Metric.REWARD, Metric.REWARD_STD),
        start_of=(Metric.REWARD_STD,),
        best_of=Metric.REWARD,
        quantity=_lost_reward,
        meaning="(best mean of the reward over 10 updates - reward) / score deviation at the start",
        threshold=1.0,
        above=True,
        warmup=10,
        consecutive=5,
        evidence="reward {reward:.4g} is {value:.3g} deviations of {start:.4g} below its best mean "
        "of {best:.4g}",
        remedy="lower learningRate or raise klCoef, and train for fewer steps",
    ),
    HealthRule(
        GuardrailRule.SCORE_STD_COLLAPSE,
        reads=(Metric.REWARD_STD,),
        start_of=(Metric.REWARD_STD,),
        quantity=_share_of_start(Metric.REWARD_STD),
        meaning="standard deviation of the scores / its start",
        threshold=0.1,
        above=False,
        warmup=10,
        consecutive=10,
        evidence="the scores' deviation {reward_std:.4g} is {value:.3g} of its start of "
        "{start:.4g}",
        remedy="stop if the reward cannot rise any more, else raise klCoef or temperature",
    ),
    HealthRule(
        GuardrailRule.NON_FINITE,
        reads=(),
        quantity=lambda numbers, past: sum(not math.isfinite(each) for each in numbers.values()),
        meaning="number of metrics of the update that are NaN or infinite",
        threshold=0.0,
        above=True,
        warmup=0,
        consecutive=1,
        action=GuardrailAction.FAIL,
        evidence="{value:g} metrics are not finite: {nonfinite}",
        remedy="lower learningRate and criticLearningRate, or set precision FP32",
    ),
)

START_METRICS: dict[Metric, tuple[GuardrailRule, Metric]] = {
    Metric.CRITIC_LOSS_BASELINE: (GuardrailRule.CRITIC_LOSS_DIVERGING, Metric.CRITIC_LOSS),
    Metric.RESPONSE_TOKENS_P05_START: (
        GuardrailRule.LENGTH_OUT_OF_RANGE,
        Metric.RESPONSE_TOKENS_P05,
    ),
    Metric.RESPONSE_TOKENS_P50_START: (
        GuardrailRule.LENGTH_OUT_OF_RANGE,
        Metric.RESPONSE_TOKENS_P50,
    ),
    Metric.RESPONSE_TOKENS_P95_START: (
        GuardrailRule.LENGTH_OUT_OF_RANGE,
        Metric.RESPONSE_TOKENS_P95,
    ),
}
"""Metrics that are the start of another one as a rule knows it."""

HEALTH_RULES: dict[GuardrailRule, HealthRule] = {row.rule: row for row in _ROWS}
