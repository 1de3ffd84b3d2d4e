"""Right parts of PPO made wrong, one at a time, as published systems have had them.

`ablated("dropout on")` is a context inside of which the mistake is made. The tests of this folder
use it in their own process; ranks of their own run the functions at the end.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import stage_runs
import tiny
import torch
from torch import Tensor, nn

from rlhf_api.errors import RLHFError
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import failure_of
from rlhf_trainer.generation.decoding import Decoder, Responses
from rlhf_trainer.models.heads import Actor
from rlhf_trainer.ppo import experience
from rlhf_trainer.ppo import models as ppo_models
from rlhf_trainer.ppo.experience import normalized
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.rl import kl, masked_moments
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.stages import ppo

right_responses = Decoder.respond
right_forward = Actor.forward
right_rewards = experience.token_rewards
Rewards = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def leave_dropout_on(model: nn.Module) -> None:
    """Training mode with the dropout that GPT-2 was made with."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1


def responses_without_eos(decoder: Decoder, *given: Any) -> Responses:
    found = right_responses(decoder, *given)
    lengths = torch.where(found.ended, found.lengths - 1, found.lengths)
    return replace(found, lengths=lengths.clamp(min=1))


def rewards_at(place: Callable[[Tensor, int], Tensor]) -> Rewards:
    """The score at a place found from lengths and width."""

    def rewards(scores: Tensor, kl: Tensor, lengths: Tensor, kl_coef: float) -> Tensor:
        penalty = right_rewards(torch.zeros_like(scores), kl, lengths, kl_coef)
        at = place(lengths, kl.shape[1]).unsqueeze(1)
        return penalty.scatter_add(1, at, scores.unsqueeze(1))

    return rewards


def score_on_every_token(scores: Tensor, kl: Tensor, lengths: Tensor, kl_coef: float) -> Tensor:
    penalty = right_rewards(torch.zeros_like(scores), kl, lengths, kl_coef)
    mask = torch.arange(kl.shape[1]) < lengths.unsqueeze(1)
    return penalty + torch.where(mask, scores.unsqueeze(1), 0.0)


def penalty_turned(scores: Tensor, kl: Tensor, lengths: Tensor, kl_coef: float) -> Tensor:
    return right_rewards(scores, kl, lengths, -kl_coef)


def kl_turned(logprobs: Tensor, ref_logprobs: Tensor, estimator: Any) -> Tensor:
    return kl.token_kl(ref_logprobs, logprobs, estimator)


def moments_of_one_rank(x: Tensor, mask: Tensor, ranks: Ranks) -> Any:
    return masked_moments(x, mask)


def noise_in_the_update(actor: Actor, *given: Any, entropy: bool = False, **settings: Any) -> Any:
    """Log-probabilities are off where entropies are asked for, which the update alone does."""
    found = right_forward(actor, *given, entropy=entropy, **settings)
    if not entropy:
        return found
    off = 0.5 * torch.randn_like(found.logprobs)
    return found._replace(logprobs=found.logprobs + off)


ABLATIONS: Mapping[str, tuple[Any, str, Any]] = {
    "dropout on": (ppo_models, "switch_off_dropout", leave_dropout_on),
    "noise in the update": (Actor, "forward", noise_in_the_update),
    "EOS not counted": (Decoder, "respond", responses_without_eos),
    "EOS taken for padding": (
        Rollout,
        "response_mask",
        property(lambda self: self.responses != tiny.tokenizer().eos_token_id),
    ),
    "EOS mask off": (
        Rollout,
        "response_mask",
        property(lambda self: torch.ones_like(self.responses, dtype=torch.bool)),
    ),
    "score a token early": (
        experience,
        "token_rewards",
        rewards_at(lambda lengths, width: (lengths - 2).clamp(min=0)),
    ),
    "score a token late": (
        experience,
        "token_rewards",
        rewards_at(lambda lengths, width: lengths.clamp(max=width - 1)),
    ),
    "score at the first token": (
        experience,
        "token_rewards",
        rewards_at(lambda lengths, width: torch.zeros_like(lengths)),
    ),
    "score on every token": (experience, "token_rewards", score_on_every_token),
    "KL sign flipped": (experience, "token_kl", kl_turned),
    "KL rewarded": (experience, "token_rewards", penalty_turned),
    "whitening per rank": (experience, "global_moments", moments_of_one_rank),
}


@contextmanager
def ablated(name: str | None) -> Iterator[None]:
    """Inside, the mistake of that name is made; with None all is right."""
    if name is None:
        yield
        return
    where, what, wrong = ABLATIONS[name]
    with patch.object(where, what, wrong):
        yield


def run(ranks: Ranks, config: StageConfig, ablation: str | None) -> Any:
    """The PPO stage; the failure it ended with, or None."""
    with ablated(ablation):
        try:
            ppo.run(config, ranks, StopFlag())
        except RLHFError as error:
            return failure_of(error)
    return None


def run_with_fixed_answers(ranks: Ranks, config: StageConfig, ablation: str | None) -> None:
    """PPO on rollouts that depend on the prompts alone."""
    with ablated(ablation):
        stage_runs.run_with_fixed_answers(config, ranks)


def whitened(ranks: Ranks, ablation: str | None) -> tuple[Tensor, Tensor]:
    """A rank's advantages, before and after; rank 1 has better ones, and fewer."""
    draw = torch.Generator().manual_seed(ranks.rank)
    rows = 6 - 2 * ranks.rank
    advantages = torch.randn(rows, 5, generator=draw) * (1 + ranks.rank) + 2.0 * ranks.rank
    mask = torch.arange(5) < torch.randint(1, 6, (rows, 1), generator=draw)
    with ablated(ablation):
        return advantages[mask], normalized(advantages, mask, ranks)[mask]
