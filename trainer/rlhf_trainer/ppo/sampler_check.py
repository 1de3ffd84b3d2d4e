"""Whether our own decode loop samples what the actor computes; where not, `generate` samples.

Called by the PPO stage once at each start, before the self-checks. All ranks decode equally much
and come to the same verdict.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.generation.cache import CacheError, selects_rows
from rlhf_trainer.models.engine import PlacedModel
from rlhf_trainer.ppo.collection import Collector, policy_model
from rlhf_trainer.ppo.models import FIELD
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.ppo.self_checks import check_rollout, short_sampling
from rlhf_trainer.run.distributed import any_rank, reduce_max

logger = logging.getLogger(__name__)

DRIFT_BOUND = {"FP32": 1e-4, "BF16": 0.02}
"""Largest mean |difference of log-probabilities| in nats a token, by precision."""


def with_exact_sampler(collector: Collector, prompts: Sequence[Prompt]) -> Collector:
    """The same collector, which samples by `generate` where a warning says why."""
    reason = _refusal(collector, prompts)
    # One rank's reason is every rank's: they must sample alike.
    if not any_rank(collector.ranks, reason is not None):
        return collector
    logger.warning(
        "%s.model: %s; answers are sampled by transformers' generate, which is slower: it computes "
        "each row until the longest beside it has ended",
        FIELD,
        reason or "another rank's check of the decode loop failed",
    )
    return replace(collector, decodes=False)


def _refusal(collector: Collector, prompts: Sequence[Prompt]) -> str | None:
    actor = collector.models.actor
    model = policy_model(actor)
    if not selects_rows(model):
        return f"rows of what {type(model).__name__} keeps of its past cannot be left out"
    sampler = collector.sampler(actor, short_sampling(collector.sampling))
    try:
        rollout = check_rollout(sampler, prompts, collector.spec, collector.ranks)
    except CacheError as error:
        return f"{type(model).__name__} cannot be decoded token by token: {error}"
    return drift_refusal(rollout, actor, collector)


@torch.no_grad()
def drift_refusal(rollout: Rollout, actor: PlacedModel, collector: Collector) -> str | None:
    """Why sampled log-probabilities are not those of one plain forward pass; None if they are."""
    spec: PPOStage = collector.spec
    width = rollout.responses.shape[1]
    expected = actor(*rollout.sequences, width, spec.temperature).logprobs
    difference = (rollout.sampled_logprobs - expected).abs()
    difference = torch.where(rollout.response_mask, difference, 0.0)
    mean = float(difference.sum() / rollout.response_mask.sum())
    # A maximum over ranks would pass over NaN.
    worst = reduce_max([mean if math.isfinite(mean) else math.inf], collector.ranks)[0]
    if worst <= DRIFT_BOUND[spec.precision]:
        return None
    row, token = divmod(int(difference.nan_to_num(nan=math.inf).argmax()), width)
    return (
        "self-check decoding: mean |difference of log pi| between the decode loop and one forward "
        f"pass is {worst:.3g} nats a token, more than {DRIFT_BOUND[spec.precision]:g} in "
        f"{spec.precision}, on this rank most ({float(difference[row, token]):.3g}) at token "
        f"{token + 1} of the answer to a prompt of {int(rollout.prompt_lengths[row])} tokens"
    )
