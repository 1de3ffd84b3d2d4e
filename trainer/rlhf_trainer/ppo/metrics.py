"""What an update of PPO was like, over all ranks: the numbers behind its metrics.

Called by the PPO stage.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf_api.metrics import Metric
from rlhf_trainer.ppo.experience import Experience, Targets, global_moments
from rlhf_trainer.rl import EntropyBonus, PolicyLoss, ValueLoss, distinct_n, explained_variance
from rlhf_trainer.run.distributed import Ranks, gather_objects, reduce_sum


class ActorSums(NamedTuple):
    """Over the tokens of the micro-batches that the actor learned from."""

    tokens: float
    policy_loss: float
    clipped: float
    approx_kl: float
    ratio: float
    entropy: float


class CriticSums(NamedTuple):
    """Over the tokens of the micro-batches that the critic learned from."""

    tokens: float
    value_loss: float


class DriftSums(NamedTuple):
    """Over the tokens of the first minibatch, before any optimizer has stepped."""

    tokens: float
    drift: float


@dataclass
class UpdateSums:
    """What the minibatches of an update add up to, on one rank.

    The sums stay on the device until `means`: a host that read them would wait for each
    micro-batch.

    Attributes:
        actor: Float[6], as `ActorSums` has them.
        critic: Float[2], as `CriticSums` has them.
        drift: Float[2], as `DriftSums` has them.
        actor_norms: norms of the actor's gradients, one a step.
        critic_norms: the same of the critic.
    """

    actor: Tensor = field(default_factory=lambda: _zeros(ActorSums._fields))
    critic: Tensor = field(default_factory=lambda: _zeros(CriticSums._fields))
    drift: Tensor = field(default_factory=lambda: _zeros(DriftSums._fields))
    actor_norms: list[float] = field(default_factory=list)
    critic_norms: list[float] = field(default_factory=list)

    def add_actor(self, policy: PolicyLoss, entropy: EntropyBonus, tokens: float) -> None:
        """Take in a micro-batch whose losses were divided by `tokens`."""
        sums = [
            policy.tokens,
            policy.loss.detach().double() * tokens,
            policy.clipped,
            policy.approx_kl_sum,
            policy.ratio_sum,
            entropy.entropy_sum,
        ]
        self.actor = self.actor.to(policy.loss.device) + torch.stack(sums)

    def add_critic(self, value: ValueLoss, tokens: float) -> None:
        """Take in a micro-batch whose loss was divided by `tokens`."""
        loss = value.loss.detach().double() * tokens
        self.critic = self.critic.to(loss.device) + torch.stack([value.tokens, loss])

    def add_drift(self, logprobs: Tensor, micro: Experience) -> None:
        """Compare what sampling gave with Float[batch, response] of the update, while weights are
        those that sampled."""
        if self.actor_norms:
            return
        drift = (logprobs.detach() - micro.rollout.sampled_logprobs).abs().double()
        sums = [micro.mask.sum(), torch.where(micro.mask, drift, 0.0).sum()]
        self.drift = self.drift.to(drift.device) + torch.stack(sums)

    def means(self, ranks: Ranks) -> dict[Metric, float]:
        """Means over all ranks; of the actor only where it learned."""
        actor = ActorSums(*reduce_sum(self.actor.tolist(), ranks))
        critic = CriticSums(*reduce_sum(self.critic.tolist(), ranks))
        drift = DriftSums(*reduce_sum(self.drift.tolist(), ranks))
        means = {
            Metric.CRITIC_LOSS: critic.value_loss / critic.tokens,
            Metric.CRITIC_GRADIENT_NORM: float(np.mean(self.critic_norms)),
        }
        if actor.tokens:
            means |= {
                Metric.POLICY_LOSS: actor.policy_loss / actor.tokens,
                Metric.CLIP_SHARE: actor.clipped / actor.tokens,
                Metric.APPROX_KL: actor.approx_kl / actor.tokens,
                Metric.RATIO_MEAN: actor.ratio / actor.tokens,
                Metric.ENTROPY: actor.entropy / actor.tokens,
                Metric.GRADIENT_NORM: float(np.mean(self.actor_norms)),
            }
        if drift.tokens:
            means[Metric.SAMPLER_DRIFT] = drift.drift / drift.tokens
        return means


def _zeros(names: Sequence[str]) -> Tensor:
    return torch.zeros(len(names), dtype=torch.float64)


def rollout_metrics(experience: Experience, targets: Targets, ranks: Ranks) -> dict[Metric, float]:
    """What the rollout was like, over all ranks.

    Of the sampler's drift there is more to say where the actor learns (`UpdateSums.means`).
    """
    rollout, mask = experience.rollout, experience.mask
    every = torch.ones_like(rollout.ended)
    scores = global_moments(experience.scores, every, ranks)
    returns = global_moments(targets.returns, mask, ranks)
    advantages = global_moments(targets.advantages, mask, ranks)
    residuals = global_moments(targets.returns - experience.values, mask, ranks)
    metrics = {
        Metric.REWARD: scores.mean,
        Metric.REWARD_STD: scores.variance**0.5,
        **_answer_metrics(experience, ranks),
        Metric.RETURNS_MEAN: returns.mean,
        Metric.RETURNS_STD: returns.variance**0.5,
        Metric.RETURNS_ABS_MEAN: global_moments(targets.returns.abs(), mask, ranks).mean,
        Metric.ADVANTAGES_STD: advantages.variance**0.5,
        # Returns that do not vary are no failure, which a NaN would be counted as.
        Metric.EXPLAINED_VARIANCE: (
            explained_variance(residuals, returns) if returns.variance > 0 else 0.0
        ),
    }
    if experience.recomputed is not None:
        drift = (rollout.sampled_logprobs - experience.recomputed).abs()
        metrics[Metric.SAMPLER_DRIFT] = global_moments(drift, mask, ranks).mean
    return metrics


def refused_metrics(experience: Experience, ranks: Ranks) -> dict[Metric, float]:
    """Of a rollout that has numbers that are not finite, over all ranks.

    The returns, which are made of all of them, are NaN; reward and KL where they are the cause.
    """
    scores = experience.scores
    total, answers = reduce_sum([float(scores.double().sum()), float(len(scores))], ranks)
    return {
        Metric.REWARD: total / answers,
        **_answer_metrics(experience, ranks),
        Metric.RETURNS_MEAN: math.nan,
    }


def _answer_metrics(experience: Experience, ranks: Ranks) -> dict[Metric, float]:
    rollout = experience.rollout
    lengths = rollout.response_lengths
    contents = [
        row[:length].tolist()
        for row, length in zip(
            rollout.responses, (lengths - rollout.ended.long()).tolist(), strict=True
        )
    ]
    sums = [
        float(len(lengths)),
        float(lengths.sum()),
        float(rollout.ended.sum()),
        float(experience.answer_kl().sum()),
    ]
    answers, tokens, ended, kl = reduce_sum(sums, ranks)
    all_lengths = list(chain(*gather_objects(ranks, lengths.tolist())))
    p05, p50, p95 = (float(x) for x in np.quantile(all_lengths, (0.05, 0.5, 0.95)))
    return {
        Metric.KL: kl / answers,
        Metric.RESPONSE_TOKENS: tokens / answers,
        Metric.RESPONSE_TOKENS_P05: p05,
        Metric.RESPONSE_TOKENS_P50: p50,
        Metric.RESPONSE_TOKENS_P95: p95,
        Metric.EOS_RATE: ended / answers,
        Metric.TRUNCATED_SHARE: (answers - ended) / answers,
        # Over all ranks at once: the share falls as the set grows.
        Metric.DISTINCT_2: distinct_n(chain(*gather_objects(ranks, contents)), 2),
    }
