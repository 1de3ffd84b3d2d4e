"""Whether our own decode loop samples what the actor computes; where not, `generate` samples. And
whether the loop's log-probabilities are the actor's, so that no pass has to compute them anew.

Called by the PPO stage once at each start, before the self-checks. All ranks decode equally much
and come to the same verdict.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.generation.cache import CacheError, selects_rows
from rlhf_trainer.models.placed import PlacedModel
from rlhf_trainer.ppo.collection import Collector, policy_model
from rlhf_trainer.ppo.experience import response_statistics
from rlhf_trainer.ppo.models import FIELD
from rlhf_trainer.ppo.old_logprobs import may_serve_as_old
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.self_checks import check_rollout, short_sampling
from rlhf_trainer.run.distributed import any_rank, reduce_max

logger = logging.getLogger(__name__)

DRIFT_BOUND = {"FP32": 1e-4, "BF16": 0.02}
"""Largest mean |difference of log-probabilities| in nats a token, by precision."""


class Drift(NamedTuple):
    """How far sampling is from one plain forward pass.

    Attributes:
        mean: |difference of log-probabilities| in nats a token, of the rank where it is largest.
        place: where on this rank it is largest, for messages.
    """

    mean: float
    place: str

    def refusal(self, precision: str) -> str | None:
        """Why such a loop is not used; None where it is."""
        if self.mean <= DRIFT_BOUND[precision]:
            return None
        return (
            "self-check decoding: mean |difference of log pi| between the decode loop and one "
            f"forward pass is {self.mean:.3g} nats a token, more than {DRIFT_BOUND[precision]:g} "
            f"in {precision}, on this rank most {self.place}"
        )


def with_exact_sampler(collector: Collector, prompts: Sequence[Prompt]) -> Collector:
    """The same collector, which samples by `generate` where a warning says why.

    Unless a checkpoint has brought it, its state learns whether log-probabilities of sampling serve
    as old ones.
    """
    spec, state = collector.spec, collector.state
    drift, reason = _looked_at(collector, prompts)
    # One rank's reason is every rank's: they must sample alike.
    decodes = not any_rank(collector.ranks, reason is not None)
    if state.sampled_logprobs is None:
        state.sampled_logprobs = decodes and may_serve_as_old(spec, drift)
    if decodes:
        logger.info(
            "log-probabilities of sampling are %.1e nats a token from those of training; old ones "
            "are %s",
            drift,
            "those of sampling" if state.sampled_logprobs else "computed anew",
        )
        return collector
    logger.warning(
        "%s.model: %s; answers are sampled by transformers' generate, which is slower: it computes "
        "each row until the longest beside it has ended",
        FIELD,
        reason or "another rank's check of the decode loop failed",
    )
    return replace(collector, decodes=False)


def _looked_at(collector: Collector, prompts: Sequence[Prompt]) -> tuple[float, str | None]:
    """How far the decode loop is off on any rank, and why this rank does not use it."""
    actor = collector.models.actor
    model = policy_model(actor)
    if not selects_rows(model):
        return math.inf, (
            f"rows of what {type(model).__name__} keeps of its past cannot be left out"
        )
    sampler = collector.sampler(actor, short_sampling(collector.sampling))
    try:
        rollout = check_rollout(sampler, prompts, collector.spec, collector.ranks)
    except CacheError as error:
        return math.inf, f"{type(model).__name__} cannot be decoded token by token: {error}"
    drift = drift_of(rollout, actor, collector)
    return drift.mean, drift.refusal(collector.spec.precision)


@torch.no_grad()
def drift_of(rollout: Rollout, actor: PlacedModel, collector: Collector) -> Drift:
    """How far sampled log-probabilities are from those of one plain forward pass."""
    expected = response_statistics(actor, rollout, collector.spec.temperature).logprobs
    difference = (rollout.sampled_logprobs - expected).abs()
    difference = torch.where(rollout.response_mask, difference, 0.0)
    mean = float(difference.sum() / rollout.response_mask.sum())
    # A maximum over ranks would pass over NaN.
    worst = reduce_max([mean if math.isfinite(mean) else math.inf], collector.ranks)[0]
    row, token = divmod(int(difference.nan_to_num(nan=math.inf).argmax()), expected.shape[1])
    return Drift(
        worst,
        f"({float(difference[row, token]):.3g}) at token {token + 1} of the answer to a prompt of "
        f"{int(rollout.prompt_lengths[row])} tokens",
    )
