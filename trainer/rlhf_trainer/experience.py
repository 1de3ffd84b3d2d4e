"""Experience: what one rollout taught, token by token, and what PPO derives from it.

Called by the PPO stage. What must be global (moments, counts) is reduced over ranks here; the
formulas are in `rl`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.distributed import Ranks, gather_objects
from rlhf_trainer.rl import (
    Moments,
    clip_scores,
    gae,
    masked_moments,
    penalise_missing_eos,
    scale_by_running_std,
    token_kl,
    token_rewards,
    whiten,
)
from rlhf_trainer.rollout import Rollout


@dataclass(frozen=True)
class Experience:
    """One rank's share of a rollout with everything that the update reads.

    Shapes: old_logprobs, ref_logprobs, values Float[batch, response]; scores Float[batch], as the
    reward model gave them. Columns after a response's end hold numbers that mean nothing.
    """

    rollout: Rollout
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool[batch, response], true on every action."""
        return self.rollout.response_mask

    def kl(self, estimator: str = "K1") -> Tensor:
        """Float[batch, response], actor against reference, 0 after a response's end."""
        per_token = token_kl(self.old_logprobs, self.ref_logprobs, estimator)  # type: ignore[arg-type]
        return torch.where(self.mask, per_token, 0.0)

    def answer_kl(self) -> Tensor:
        """Float[batch], K1 in nats an answer."""
        return self.kl().sum(dim=1)


@dataclass(frozen=True)
class Lesson:
    """What the update learns from. Shapes: Float[batch, response] each, 0 outside of the mask."""

    rewards: Tensor
    advantages: Tensor
    returns: Tensor


@torch.no_grad()
def collect(
    rollout: Rollout,
    *,
    actor: Callable[..., Any],
    reference: Callable[..., Any],
    critic: Callable[..., Any],
    reward_model: Callable[..., Any],
    temperature: float,
    micro_batch_size: int,
) -> Experience:
    """Evaluate all four models on a rollout.

    Old log-probabilities are computed by the training engine and not taken from the sampler, so
    that the probability ratio of unchanged weights is 1 whatever the sampler's numerics.
    """
    width = rollout.responses.shape[1]
    parts: list[tuple[Tensor, ...]] = []
    for start in range(0, len(rollout.responses), micro_batch_size):
        rows = rollout.rows(start, start + micro_batch_size)
        sequences = rows.sequences
        parts.append(
            (
                actor(*sequences, width, temperature).logprobs,
                reference(*sequences, width, temperature).logprobs,
                response_values(critic, rows),
                last_scores(reward_model, rows),
            )
        )
    old_logprobs, ref_logprobs, values, scores = (
        torch.cat(column) for column in zip(*parts, strict=True)
    )
    return Experience(rollout, old_logprobs, ref_logprobs, values, scores)


def response_values(critic: Callable[..., Any], rollout: Rollout) -> Tensor:
    """Float[batch, response]: the value of the state before each action."""
    width = rollout.responses.shape[1]
    numbers: Tensor = critic(*rollout.sequences)
    return numbers[:, -width - 1 : -1]


def last_scores(reward_model: Callable[..., Any], rollout: Rollout) -> Tensor:
    """Float[batch]: the score at each sequence's last real token."""
    numbers: Tensor = reward_model(*rollout.sequences)
    return numbers.gather(1, rollout.last_index.unsqueeze(1)).squeeze(1)


def shaped_scores(
    experience: Experience, spec: PPOStage, moments: Moments, ranks: Ranks
) -> tuple[Tensor, Moments]:
    """Scores clipped, penalised and scaled, Float[batch], and the running moments after them.

    The moments take in this rollout's scores of all ranks before they scale it.
    """
    scores = clip_scores(experience.scores, spec.score_clip)
    scores = penalise_missing_eos(scores, experience.rollout.ended, spec.missing_eos_penalty)
    if spec.reward_scaling == "None":
        return scores, moments
    for found in gather_objects(ranks, Moments.from_values(scores)):
        moments = moments.merge(found)
    return scale_by_running_std(scores, moments), moments


def lesson(experience: Experience, scores: Tensor, spec: PPOStage, kl_coef: float) -> Lesson:
    """Token rewards, advantages (not normalised) and returns."""
    lengths = experience.rollout.response_lengths
    rewards = token_rewards(scores, experience.kl(spec.kl_estimator), lengths, kl_coef)
    advantages, returns = gae(
        rewards, experience.values, experience.mask, spec.gamma, spec.gae_lambda
    )
    return Lesson(rewards, advantages, returns)


def global_moments(x: Tensor, mask: Tensor, ranks: Ranks) -> Moments:
    """Moments over the real tokens of all ranks."""
    merged = Moments()
    for found in gather_objects(ranks, masked_moments(x, mask)):
        merged = merged.merge(found)
    return merged


def normalized(advantages: Tensor, mask: Tensor, ranks: Ranks) -> Tensor:
    """Advantages with mean 0 and variance 1 over the real tokens of all ranks."""
    moments = global_moments(advantages, mask, ranks)
    return whiten(advantages, mask, moments.mean, moments.variance)


def minibatches(
    experience: Experience, lesson: Lesson, size: int, generator: torch.Generator
) -> Iterator[tuple[Experience, Lesson]]:
    """This rank's rows in a new order, `size` at a time.

    Ranks draw the same order of their own rows and never exchange them, so which rows share a
    minibatch depends on the number of ranks; what a minibatch adds up to does not.
    """
    order = torch.randperm(len(experience.scores), generator=generator)
    for start in range(0, len(order), size):
        at = order[start : start + size].to(experience.scores.device)
        yield selected(experience, lesson, at)


def selected(experience: Experience, lesson: Lesson, at: Tensor) -> tuple[Experience, Lesson]:
    """The rows at Long[n] indices."""
    rollout = experience.rollout
    rows = Rollout(
        *(
            getattr(rollout, name)[at]
            for name in (
                "prompts",
                "prompt_lengths",
                "responses",
                "response_lengths",
                "ended",
                "sampled_logprobs",
            )
        )
    )
    return (
        Experience(
            rows,
            experience.old_logprobs[at],
            experience.ref_logprobs[at],
            experience.values[at],
            experience.scores[at],
        ),
        Lesson(lesson.rewards[at], lesson.advantages[at], lesson.returns[at]),
    )
