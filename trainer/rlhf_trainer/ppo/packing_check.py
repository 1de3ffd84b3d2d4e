"""Whether the models themselves keep packed rows of a rollout apart, as small copies of them do.

Called by the PPO stage once at each start, with what `self_checks` has sampled. Weights and random
states stay as they were.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.ppo.experience import last_scores, response_statistics, response_values
from rlhf_trainer.ppo.models import FIELD
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.self_checks import (
    LOG_RATIO_BOUND,
    SCORE_BOUND,
    Subjects,
    evaluated,
    mean_change,
    rounding_of,
    score_change,
)
from rlhf_trainer.run.checkpoint import restore_rng_state, rng_state
from rlhf_trainer.run.distributed import Ranks, any_rank, reduce_max

logger = logging.getLogger(__name__)


def sound_layout(
    subjects: Subjects, rollout: Rollout, layout: RowLayout, spec: PPOStage, ranks: Ranks
) -> RowLayout:
    """`layout`, or padded rows where the models themselves break what a copy of them promised.

    Held against the bounds of padding; all ranks call this together and get the same answer.
    """
    if any_rank(ranks, layout is RowLayout.PADDED):
        return RowLayout.PADDED
    before = rng_state()
    try:
        changes = packing_changes(subjects, rollout, layout, spec)
    finally:
        restore_rng_state(before)
    log_ratio, score, value = reduce_max(changes, ranks)
    bound = SCORE_BOUND[spec.precision]
    sound = log_ratio < LOG_RATIO_BOUND[spec.precision] and max(score, value) < bound
    logger.log(
        logging.INFO if sound else logging.WARNING,
        "%s: rows of a rollout %s: where they do, log pi changes by %.1e nats a token (below %g is "
        "sound), scores by %.1e and values by %.1e, in standard deviations of these and beyond "
        "their rounding (below %g is)",
        FIELD,
        "share sequences"
        if sound
        else "share no sequences, which is slower; another attentionImplementation may keep them "
        "apart",
        log_ratio,
        LOG_RATIO_BOUND[spec.precision],
        score,
        value,
        bound,
    )
    return layout if sound else RowLayout.PADDED


@torch.no_grad()
def packing_changes(
    subjects: Subjects, rollout: Rollout, layout: RowLayout, spec: PPOStage
) -> tuple[float, float, float]:
    """How far log-probabilities, scores and values are from those of padded rows, as the checks of
    padding measure it; 0 where there is no such model."""
    mask, scoring = rollout.response_mask, spec.rollout_micro_batch_size

    def logprobs(rows: Rollout) -> Tensor:
        return response_statistics(subjects.actor, rows, spec.temperature).logprobs

    with torch.enable_grad():
        # As the update evaluates it.
        packed = _packed(logprobs, rollout, layout, spec.micro_batch_size).detach()
    changed = mean_change(packed, evaluated(logprobs, rollout, scoring), mask)

    def change(
        model: Callable[..., Any] | None, ask: Callable[[Callable[..., Any], Rollout], Tensor]
    ) -> float:
        if model is None:
            return 0.0
        evaluate = partial(ask, model)
        numbers = _packed(evaluate, rollout, layout, scoring), evaluated(evaluate, rollout, scoring)
        together, alone = (each[mask] if each.dim() > 1 else each for each in numbers)
        # In doubt rows share sequences: learning is no more exact than rounding.
        if float((together - alone).abs().mean()) <= rounding_of(alone, spec.precision):
            return 0.0
        return score_change(together, alone, spec.precision)

    return (
        changed,
        change(subjects.reward_model, partial(last_scores, score_end=subjects.score_end)),
        change(subjects.critic, response_values),
    )


def _packed(
    evaluate: Callable[[Rollout], Tensor], rollout: Rollout, layout: RowLayout, at_a_time: int
) -> Tensor:
    """The same with as many rows in one sequence, and at least two: where the least is computed,
    rows of like length would stand alone."""
    return evaluated(
        lambda rows: evaluate(rows.in_one_sequence(layout)), rollout, max(2, at_a_time)
    )
