"""Experience: a rollout as all models see it, token by token, and the targets PPO makes of it.

Called by the PPO stage. What must be global (moments, counts) is reduced over ranks here; the
formulas are in `rl`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.models.score_statistics import ScoreStatistics
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.rl import (
    Moments,
    TokenStatistics,
    clip_scores,
    gae,
    masked_moments,
    penalise_missing_eos,
    running_scale,
    token_kl,
    token_rewards,
    whiten,
)
from rlhf_trainer.run.distributed import Ranks, filled, gather_objects, reduce_max

SCORES = "scores"
"""What rewards gave, among the names of an experience's numbers."""
NOTHING_SEEN = Moments()


@dataclass(frozen=True)
class Experience:
    """One rank's share of a rollout with everything that the update reads.

    Shapes: old_logprobs, ref_logprobs, values Float[batch, response]; scores Float[batch], as the
    reward model or the weighted sum of rewards gave them; rewards Float[batch] by name, before
    their weights, empty where the stage names none; recomputed Float[batch, response], the actor's
    log-probabilities by the training engine, None where it was not asked. Columns after a
    response's end hold numbers that mean nothing.
    """

    rollout: Rollout
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    scores: Tensor
    rewards: Mapping[str, Tensor] = field(default_factory=dict)
    recomputed: Tensor | None = None

    @property
    def mask(self) -> Tensor:
        """Bool[batch, response], true on every action."""
        return self.rollout.response_mask

    def __getitem__(self, rows: Tensor) -> "Experience":
        """The rows at Long[n] indices."""
        return Experience(
            self.rollout[rows],
            self.old_logprobs[rows],
            self.ref_logprobs[rows],
            self.values[rows],
            self.scores[rows],
            {name: scores[rows] for name, scores in self.rewards.items()},
            None if self.recomputed is None else self.recomputed[rows],
        )

    def within(
        self, tokens: int, layout: RowLayout = RowLayout.PADDED
    ) -> list[tuple[Tensor, "Experience"]]:
        """Parts of like length with the indices of their rows, as `Rollout.within`."""
        return [
            (rows, self[rows]._narrowed(rollout))
            for rows, rollout in self.rollout.within(tokens, layout)
        ]

    def _narrowed(self, rollout: Rollout) -> "Experience":
        width = rollout.responses.shape[1]
        return replace(
            self,
            rollout=rollout,
            old_logprobs=self.old_logprobs[:, :width],
            ref_logprobs=self.ref_logprobs[:, :width],
            values=self.values[:, :width],
            recomputed=None if self.recomputed is None else self.recomputed[:, :width],
        )

    def kl(self, estimator: str = "K1") -> Tensor:
        """Float[batch, response], actor against reference, 0 after a response's end."""
        per_token = token_kl(self.old_logprobs, self.ref_logprobs, estimator)  # type: ignore[arg-type]
        return torch.where(self.mask, per_token, 0.0)

    def answer_kl(self) -> Tensor:
        """Float[batch], K1 in nats an answer."""
        return self.kl().sum(dim=1)

    def numbers(self, estimator: str, kl_coef: float) -> dict[str, Tensor]:
        """All numbers that are learned from, by name, without those that mean nothing."""
        per_token = {
            "actor's log-probabilities": self.old_logprobs,
            "reference's log-probabilities": self.ref_logprobs,
            "sampler's log-probabilities": self.rollout.sampled_logprobs,
            "critic's values": self.values,
        }
        return {name: each[self.mask] for name, each in per_token.items()} | {
            SCORES: self.scores,
            # It may overflow where the log-probabilities do not: K2 is a square.
            "KL penalty": kl_coef * self.kl(estimator).sum(dim=1),
        }


@dataclass(frozen=True)
class Targets:
    """What the update learns from. Shapes: Float[batch, response] each, 0 outside of the mask."""

    rewards: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def numbers(self) -> dict[str, Tensor]:
        """All of them by name."""
        return {"advantages": self.advantages, "returns": self.returns}

    def __getitem__(self, rows: Tensor) -> "Targets":
        """The rows at Long[n] indices."""
        return Targets(self.rewards[rows], self.advantages[rows], self.returns[rows])

    def narrowed(self, width: int) -> "Targets":
        """The first `width` columns."""
        return Targets(self.rewards[:, :width], self.advantages[:, :width], self.returns[:, :width])


@torch.no_grad()
def collect(
    rollout: Rollout,
    *,
    actor: Callable[..., Any] | None,
    reference: Callable[..., Any],
    critic: Callable[..., Any],
    reward_model: Callable[..., Any] | None,
    temperature: float,
    tokens: int,
    ranks: Ranks,
    sampled: bool = False,
    score_end: int | None = None,
    layout: RowLayout = RowLayout.PADDED,
) -> Experience:
    """Evaluate all models on a rollout; scores are 0 where there is no reward model.

    Rows of like length share a pass of at most so many `tokens`, padding included, and by `layout`
    a sequence; all ranks call together and make equally many.

    `score_end` is the token that a reward model knows answers to end with: it stands for whatever
    ended one, for the score alone. What was cut off ends as it is.

    Old log-probabilities are computed by the training engine, so that the probability ratio of
    unchanged weights is 1 whatever the sampler's numerics; or they are those of sampling
    (`sampled`), where these are the same, and then there need be no `actor`.
    """
    own = rollout.within(tokens, layout)
    first, of_first = own[0]
    columns: list[tuple[Tensor, ...]] = []
    for (_, rows), counts in filled(own, (first[:1], of_first[:1]), ranks):
        numbers = (
            (
                rows.sampled_logprobs
                if actor is None
                else response_statistics(actor, rows, temperature).logprobs
            ),
            response_statistics(reference, rows, temperature).logprobs,
            response_values(critic, rows),
            (
                torch.zeros(len(rows.responses), device=rows.responses.device)
                if reward_model is None
                else last_scores(reward_model, rows, score_end)
            ),
        )
        if counts:
            columns.append(numbers)
    places = [rows for rows, _ in own]
    logprobs, ref_logprobs, values, scores = (
        _in_place(places, column, rollout.responses.shape) for column in zip(*columns, strict=True)
    )
    old_logprobs = rollout.sampled_logprobs if sampled else logprobs
    recomputed = None if actor is None else logprobs
    return Experience(rollout, old_logprobs, ref_logprobs, values, scores, recomputed=recomputed)


def _in_place(places: Sequence[Tensor], parts: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Float[batch, ...]: each part's rows at their places, and 0 in columns that no part has."""
    whole = parts[0].new_zeros(shape[: parts[0].dim()])
    for rows, numbers in zip(places, parts, strict=True):
        if numbers.dim() == 1:
            whole[rows] = numbers
        else:
            whole[rows, : numbers.shape[1]] = numbers
    return whole


def response_statistics(
    policy: Callable[..., Any], rollout: Rollout, temperature: float, **asked: bool
) -> TokenStatistics:
    """Float[batch, response] each: what a policy says of each action; `asked` as `Actor` has it."""
    statistics: TokenStatistics = policy(
        *rollout.inputs, rollout.action_columns, temperature, **asked
    )
    entropy = statistics.entropy
    return TokenStatistics(
        rollout.of_actions(statistics.logprobs),
        None if entropy is None else rollout.of_actions(entropy),
    )


def response_values(critic: Callable[..., Any], rollout: Rollout) -> Tensor:
    """Float[batch, response]: the value of the state before each action."""
    return rollout.before_actions(critic(*rollout.inputs))


def last_scores(
    reward_model: Callable[..., Any], rollout: Rollout, score_end: int | None = None
) -> Tensor:
    """Float[batch]: the score at each sequence's last real token; `score_end` as in `collect`."""
    rollout = rollout if score_end is None else rollout.ended_by(score_end)
    return rollout.at_ends(reward_model(*rollout.inputs))


class ShapedScores(NamedTuple):
    """What token rewards are made from, in the units that rewards have.

    Attributes:
        scores: Float[batch], clipped, penalised and scaled.
        kl_coef: weight of the KL penalty, scaled where the whole reward is.
        moments: those that the next rollout goes on with.
        scale: what was divided by; 1 without scaling.
    """

    scores: Tensor
    kl_coef: float
    moments: Moments
    scale: float


def shaped_scores(
    experience: Experience,
    spec: PPOStage,
    kl_coef: float,
    moments: Moments,
    ranks: Ranks,
    statistics: ScoreStatistics | None = None,
) -> ShapedScores:
    """Scale a rollout's rewards as `rewardScaling` says.

    Moments take in this rollout, of all ranks, before they scale it: of the scores (RunningStd), or
    of the sums of the token rewards of each response (RunningStdTotal). `statistics` are those of
    the reward model, for ModelStats; the clip then acts in their units.
    """
    scores = experience.scores if statistics is None else statistics.normalized(experience.scores)
    scores = clip_scores(scores, spec.score_clip)
    scores = penalise_missing_eos(
        scores,
        experience.rollout.ended,
        spec.missing_eos_penalty,
        replaces=spec.truncated_answers == "Penalty",
    )
    total = spec.reward_scaling == "RunningStdTotal"
    if total or spec.reward_scaling == "RunningStd":
        seen = scores
        if total:
            seen = scores - kl_coef * experience.kl(spec.kl_estimator).sum(dim=1)
        moments = merged_moments(ranks, lambda: Moments.from_values(seen), moments)
        divisor = running_scale(moments)
        # The KL part of a reward is linear in its weight.
        kl_coef = kl_coef / divisor if total else kl_coef
        return ShapedScores(scores / divisor, kl_coef, moments, moments.std)
    return ShapedScores(scores, kl_coef, moments, 1.0 if statistics is None else statistics.std)


def targets_of(experience: Experience, scores: Tensor, spec: PPOStage, kl_coef: float) -> Targets:
    """Token rewards, advantages (not normalised) and returns."""
    lengths = experience.rollout.response_lengths
    rewards = token_rewards(scores, experience.kl(spec.kl_estimator), lengths, kl_coef)
    advantages, returns = gae(
        rewards, experience.values, experience.mask, spec.gamma, spec.gae_lambda
    )
    return Targets(rewards, advantages, returns)


def spoilt_on_any(ranks: Ranks, numbers: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are NaN or infinite somewhere; the same answer on all ranks."""
    spoilt = [float(not bool(torch.isfinite(each).all())) for each in numbers.values()]
    on_any = reduce_max(spoilt, ranks)
    return [name for name, each in zip(numbers, on_any, strict=True) if each]


def global_moments(x: Tensor, mask: Tensor, ranks: Ranks) -> Moments:
    """Moments over the real tokens of all ranks; raises as `merged_moments`."""
    return merged_moments(ranks, lambda: masked_moments(x, mask))


def merged_moments(
    ranks: Ranks, own: Callable[[], Moments], before: Moments = NOTHING_SEEN
) -> Moments:
    """`before` with the moments of all ranks.

    Raises:
        FloatingPointError: on every rank, if `own` raises it on any: the others would wait for it.
    """
    seen: Moments | FloatingPointError
    try:
        seen = own()
    except FloatingPointError as error:
        seen = error
    merged = before
    for of_rank in gather_objects(ranks, seen):
        if isinstance(of_rank, FloatingPointError):
            raise of_rank
        merged = merged.merge(of_rank)
    return merged


def normalized(advantages: Tensor, mask: Tensor, ranks: Ranks) -> Tensor:
    """Advantages with mean 0 and variance 1 over the real tokens of all ranks."""
    moments = global_moments(advantages, mask, ranks)
    return whiten(advantages, mask, moments.mean, moments.variance)


def minibatches(
    experience: Experience, targets: Targets, size: int, generator: torch.Generator
) -> Iterator[tuple[Experience, Targets]]:
    """This rank's rows in a new order, `size` at a time.

    Ranks draw the same order of their own rows and never exchange them, so which rows share a
    minibatch depends on the number of ranks; what a minibatch adds up to does not.
    """
    order = torch.randperm(len(experience.scores), generator=generator)
    for start in range(0, len(order), size):
        at = order[start : start + size].to(experience.scores.device)
        yield experience[at], targets[at]
