"""What an update of PPO was like, over all ranks: the numbers behind its metrics.

Called by the PPO stage.
"""

import math
from itertools import chain

import numpy as np
import torch

from rlhf_api.metrics import Metric
from rlhf_trainer.ppo.experience import Experience, Lesson, global_moments
from rlhf_trainer.rl import distinct_n, explained_variance
from rlhf_trainer.run.distributed import Ranks, gather_objects, reduce_sum


class UpdateSums:
    """Sums over the tokens of an update's micro-batches, on one rank."""

    def __init__(self) -> None:
        self.actor = np.zeros(6)
        self.critic = np.zeros(2)
        self.actor_norms: list[float] = []
        self.critic_norms: list[float] = []

    def means(self, ranks: Ranks) -> dict[Metric, float]:
        """Means over all ranks; of the actor only where it learned."""
        sums = reduce_sum([*self.actor, *self.critic], ranks)
        tokens, policy, clipped, approx_kl, ratio, entropy, value_tokens, value = sums
        found = {
            Metric.CRITIC_LOSS: value / value_tokens,
            Metric.CRITIC_GRADIENT_NORM: float(np.mean(self.critic_norms)),
        }
        if tokens:
            found |= {
                Metric.POLICY_LOSS: policy / tokens,
                Metric.CLIP_SHARE: clipped / tokens,
                Metric.APPROX_KL: approx_kl / tokens,
                Metric.RATIO_MEAN: ratio / tokens,
                Metric.ENTROPY: entropy / tokens,
                Metric.GRADIENT_NORM: float(np.mean(self.actor_norms)),
            }
        return found


def rollout_metrics(experience: Experience, taught: Lesson, ranks: Ranks) -> dict[Metric, float]:
    """What the rollout was like, over all ranks."""
    rollout, mask = experience.rollout, experience.mask
    every = torch.ones_like(rollout.ended)
    scores = global_moments(experience.scores, every, ranks)
    returns = global_moments(taught.returns, mask, ranks)
    advantages = global_moments(taught.advantages, mask, ranks)
    residuals = global_moments(taught.returns - experience.values, mask, ranks)
    drift = global_moments((rollout.sampled_logprobs - experience.old_logprobs).abs(), mask, ranks)
    return {
        Metric.REWARD: scores.mean,
        Metric.REWARD_STD: scores.variance**0.5,
        **_answer_metrics(experience, ranks),
        Metric.RETURNS_MEAN: returns.mean,
        Metric.RETURNS_STD: returns.variance**0.5,
        Metric.RETURNS_ABS_MEAN: global_moments(taught.returns.abs(), mask, ranks).mean,
        Metric.ADVANTAGES_STD: advantages.variance**0.5,
        # Returns that do not vary are no failure, which a NaN would be counted as.
        Metric.EXPLAINED_VARIANCE: (
            explained_variance(residuals, returns) if returns.variance > 0 else 0.0
        ),
        Metric.SAMPLER_DRIFT: drift.mean,
    }


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
        # Over all ranks at once: the share falls as the set grows.
        Metric.DISTINCT_2: distinct_n(chain(*gather_objects(ranks, contents)), 2),
    }
