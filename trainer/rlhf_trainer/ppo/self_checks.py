"""Checks of our own arithmetic on this machine, before PPO learns anything by it.

Called by the PPO stage once at each start. Eight answers to real prompts are sampled and evaluated
in several ways that must agree: what makes them differ would be taken for learning. Weights and
random states stay as they were, so that a run is the same with and without checks. All ranks run
equally many forward passes, which ZeRO 3 needs, and agree on the verdict.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.errors import SelfCheckError
from rlhf_trainer.generation.counter import Purpose, RowSeeds
from rlhf_trainer.generation.sampling import Sampling
from rlhf_trainer.models.engine import DTYPES
from rlhf_trainer.ppo.experience import last_scores, response_statistics
from rlhf_trainer.ppo.models import FIELD
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.samplers import Sampler
from rlhf_trainer.rl import masked_mean
from rlhf_trainer.run.checkpoint import restore_rng_state, rng_state
from rlhf_trainer.run.distributed import Ranks, reduce_max

logger = logging.getLogger(__name__)

ROWS = 8
TOKENS = 32
PADDING = 8

LOG_RATIO_BOUND = {"FP32": 1e-5, "BF16": 0.02}
"""Mean |log ratio| in nats a token that is too much, by precision."""
SCORE_BOUND = {"FP32": 1e-4, "BF16": 0.05}
"""Mean |change| of the scores, in their standard deviations, that is too much, by precision."""
ROUNDINGS = 2
"""Rounding steps of the largest score within which scores are all alike: see `score_change`."""


@dataclass(frozen=True, eq=False)
class Check:
    """One check.

    Attributes:
        name: for messages.
        field: what it is about.
        quantity: what is measured, with its unit.
        bounds: what it must stay below, by precision.
        remedy: what to do when it does.
    """

    name: str
    field: str
    quantity: str
    bounds: Mapping[str, float]
    remedy: str


_PADDING_REMEDY = (
    "the model reads padding or ignores position ids: try another attentionImplementation, or name "
    "a model that transformers implements"
)
_OR_ROUNDING = "; where scores lie close together beside their size, set precision FP32"
_SCORE_UNIT = "in standard deviations of the scores"
RATIO = Check(
    "ratio",
    f"{FIELD}.model",
    "mean |log pi - log pi_old| of unchanged weights, in nats a token,",
    LOG_RATIO_BOUND,
    "the forward pass is not repeatable: name a model without randomness (a dropout of its own), "
    "or try another attentionImplementation",
)
REFERENCE = Check(
    "reference",
    f"{FIELD}.model",
    "mean |log pi - log pi_ref| before the first step, in nats a token,",
    LOG_RATIO_BOUND,
    "actor and reference were loaded from the same files and must agree: try another zeroStage, "
    "and report it",
)
PADDING_OF_LOGPROBS = Check(
    "logprob padding",
    f"{FIELD}.model",
    "mean |change of log pi| by padding, in nats a token,",
    LOG_RATIO_BOUND,
    _PADDING_REMEDY,
)
PADDING_OF_SCORES = Check(
    "score padding",
    f"{FIELD}.rewardModel",
    f"mean |change of the score| by padding, {_SCORE_UNIT},",
    SCORE_BOUND,
    _PADDING_REMEDY,
)
ORDER_OF_SCORES = Check(
    "score order",
    f"{FIELD}.rewardModel",
    f"mean |change of the score| by the order of rows, {_SCORE_UNIT},",
    SCORE_BOUND,
    "rows of a batch influence each other: name a reward model that scores each row for itself",
)


@dataclass(frozen=True)
class Subjects:
    """What is checked; called with a rollout's rows, as in training.

    Attributes:
        actor: gives TokenStatistics; so does `reference`.
        reference: None where it is not to be compared, since the actor has learned.
        reward_model: gives numbers, Float[batch, time]; None where the stage has none.
        score_end: the token that it knows answers to end with, as in `collect`.
        critic: gives numbers likewise; None where it is not asked.
    """

    actor: Callable[..., Any]
    reference: Callable[..., Any] | None
    reward_model: Callable[..., Any] | None
    score_end: int | None = None
    critic: Callable[..., Any] | None = None


def short_sampling(sampling: Sampling) -> Sampling:
    """As the stage samples, but few tokens: more padding still fits the stage's longest row.

    Of all tokens: what `topK` and `topP` leave out makes the sampler's log-probabilities larger
    than the model's, which is no fault of either.
    """
    most = sampling.max_response_length
    tokens = min(TOKENS, most - _more_padding(most))
    return replace(sampling, max_response_length=tokens, top_k=0, top_p=1.0)


def run_self_checks(
    subjects: Subjects, sampler: Sampler, prompts: Sequence[Prompt], spec: PPOStage, ranks: Ranks
) -> Rollout:
    """Sample with `sampler` (see `short_sampling`) and check; all ranks call this together.

    Logs each deviation and the seconds that all of it took, and returns what was sampled.

    Raises:
        SelfCheckError: on every rank, naming each check that failed on any of them.
    """
    begun, before = time.monotonic(), rng_state()
    try:
        rollout = check_rollout(sampler, prompts, spec, ranks)
        measured = deviations(subjects, rollout, spec)
    finally:
        restore_rng_state(before)
    worst = reduce_max(list(measured.values()), ranks)
    agreed = dict(zip(measured, worst, strict=True))
    require_passed(agreed, spec.precision)
    summary = ", ".join(f"{check.name} {deviation:.1e}" for check, deviation in agreed.items())
    logger.info("self-checks passed in %.1f s: %s", time.monotonic() - begun, summary)
    return rollout


def check_rollout(
    sampler: Sampler, prompts: Sequence[Prompt], spec: PPOStage, ranks: Ranks
) -> Rollout:
    """What is checked, another one on each rank."""
    rows = range(ranks.rank * ROWS, (ranks.rank + 1) * ROWS)
    seeds = RowSeeds(spec.seed, rows, purpose=Purpose.CHECK)
    return sampler.sample([prompt.tokens.tolist() for prompt in spread(prompts)], seeds)


def spread(prompts: Sequence[Prompt], count: int = ROWS) -> list[Prompt]:
    """`count` prompts from the shortest to the longest, so that a batch of them needs padding."""
    by_length = sorted(prompts, key=lambda prompt: len(prompt.tokens))
    return [by_length[at * (len(prompts) - 1) // (count - 1)] for at in range(count)]


@torch.no_grad()
def deviations(subjects: Subjects, rollout: Rollout, spec: PPOStage) -> dict[Check, float]:
    """How far this rank is from what each check asks for; infinity where a number is not finite."""
    mask, size = rollout.response_mask, spec.rollout_micro_batch_size
    more = widened(rollout, _more_padding(spec.max_response_length))

    def logprobs(model: Callable[..., Any], rows: Rollout, at_a_time: int) -> Tensor:
        return evaluated(
            lambda part: response_statistics(model, part, spec.temperature).logprobs,
            rows,
            at_a_time,
        )

    old = logprobs(subjects.actor, rollout, size)
    with torch.enable_grad():
        # As an update of padded rows does: with a graph to learn from, in its own micro-batches.
        new = logprobs(subjects.actor, rollout, spec.micro_batch_size).detach()
    changes = {RATIO: mean_change(new, old, mask)}
    if subjects.reference is not None:
        reference = logprobs(subjects.reference, rollout, size)
        changes[REFERENCE] = mean_change(old, reference, mask)
    padded = logprobs(subjects.actor, more, size)
    alone = torch.zeros_like(old)
    for at, row in enumerate(alone_rows(rollout)):
        alone[at, : row.responses.shape[1]] = logprobs(subjects.actor, row, 1)[0]
    changes[PADDING_OF_LOGPROBS] = max(
        mean_change(padded, old, mask), mean_change(alone, old, mask)
    )
    if subjects.reward_model is not None:
        changes |= _score_deviations(subjects.reward_model, rollout, more, spec, subjects.score_end)
    return changes


def _score_deviations(
    model: Callable[..., Any],
    rollout: Rollout,
    more: Rollout,
    spec: PPOStage,
    score_end: int | None,
) -> dict[Check, float]:
    def scores(rows: Rollout, at_a_time: int = spec.rollout_micro_batch_size) -> Tensor:
        return evaluated(lambda part: last_scores(model, part, score_end), rows, at_a_time)

    expected = scores(rollout)
    alone = torch.cat([scores(row, 1) for row in alone_rows(rollout)])
    turned = scores(turned_rows(rollout)).roll(-1, 0)
    return {
        PADDING_OF_SCORES: max(
            score_change(scores(more), expected, spec.precision),
            score_change(alone, expected, spec.precision),
        ),
        ORDER_OF_SCORES: score_change(turned, expected, spec.precision),
    }


def require_passed(measured: Mapping[Check, float], precision: str) -> None:
    """Raise SelfCheckError, naming every check whose deviation is not below its bound."""
    failed = [check for check in measured if not measured[check] < check.bounds[precision]]
    if failed:
        raise SelfCheckError(
            "; ".join(_message(each, measured[each], precision) for each in failed)
        )


def widened(rollout: Rollout, columns: int) -> Rollout:
    """The same rows with more columns of padding on the left; what fills them is never read."""
    return replace(rollout, prompts=torch.nn.functional.pad(rollout.prompts, (columns, 0)))


def turned_rows(rollout: Rollout) -> Rollout:
    """The last row before the others: each stands elsewhere, and mostly beside other rows."""
    return Rollout(
        **{each.name: getattr(rollout, each.name).roll(1, 0) for each in fields(rollout)}
    )


def alone_rows(rollout: Rollout) -> Iterable[Rollout]:
    """Each row by itself, without any padding."""
    for at in range(len(rollout.responses)):
        row = rollout[at : at + 1]
        length = int(row.response_lengths)
        yield replace(
            row,
            prompts=row.prompts[:, row.prompts.shape[1] - int(row.prompt_lengths) :],
            responses=row.responses[:, :length],
            sampled_logprobs=row.sampled_logprobs[:, :length],
        )


def _more_padding(max_response_length: int) -> int:
    return min(PADDING, max_response_length // 2)


def evaluated(evaluate: Callable[[Rollout], Tensor], rows: Rollout, at_a_time: int) -> Tensor:
    starts = range(0, len(rows.responses), at_a_time)
    return torch.cat([evaluate(rows[start : start + at_a_time]) for start in starts])


def mean_change(actual: Tensor, expected: Tensor, mask: Tensor) -> float:
    return _finite(float(masked_mean((actual - expected).abs(), mask)))


def score_change(actual: Tensor, expected: Tensor, precision: str) -> float:
    """Mean |change| of Float[batch] in standard deviations.

    Scores that are all alike have none to speak of: what a score s is made of is rounded to that
    precision, so that two evaluations of it may lie eps |s| apart. Where the deviation is within
    `ROUNDINGS` such steps of the largest score, a change within them is 0.
    """
    change, deviation = float((actual - expected).abs().mean()), float(expected.std())
    if max(change, deviation) <= rounding_of(expected, precision):
        return 0.0
    return _finite(change / max(deviation, torch.finfo(torch.float32).tiny))


def rounding_of(numbers: Tensor, precision: str) -> float:
    """`ROUNDINGS` steps of that precision at the largest of `numbers`."""
    return ROUNDINGS * torch.finfo(DTYPES[precision]).eps * float(numbers.abs().max())


def _finite(number: float) -> float:
    # A maximum over ranks would pass over NaN.
    return number if math.isfinite(number) else math.inf


def _message(check: Check, deviation: float, precision: str) -> str:
    # A coarser precision may be all there is to it.
    or_rounding = _OR_ROUNDING if check.bounds is SCORE_BOUND and precision != "FP32" else ""
    return (
        f"{check.field}: self-check {check.name}: {check.quantity} is {deviation:.3g}, not below "
        f"{check.bounds[precision]:g} in {precision}; {check.remedy}{or_rounding}"
    )
