"""What an update of PPO was like, over all ranks: the numbers behind its metrics.

Called by the PPO stage.
"""

from itertools import chain

import numpy as np
import torch

from rlhf_api.names import Metric
from rlhf_trainer.distributed import Ranks, gather_objects, reduce_sum
from rlhf_trainer.experience import Experience, Lesson, global_moments
from rlhf_trainer.rl import distinct_n, explained_variance


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
    return {
        Metric.REWARD: scores.mean,
        Metric.REWARD_STD: scores.variance**0.5,
        Metric.KL: kl / answers,
        Metric.RESPONSE_TOKENS: tokens / answers,
        Metric.EOS_RATE: ended / answers,
        # Over all ranks at once: the share falls as the set grows.
        Metric.DISTINCT_2: distinct_n(chain(*gather_objects(ranks, contents)), 2),
        Metric.RETURNS_MEAN: returns.mean,
        Metric.RETURNS_STD: returns.variance**0.5,
        Metric.ADVANTAGES_STD: advantages.variance**0.5,
        # Returns that do not vary are no failure, which a NaN would be counted as.
        Metric.EXPLAINED_VARIANCE: (
            explained_variance(residuals, returns) if returns.variance > 0 else 0.0
        ),
        Metric.SAMPLER_DRIFT: drift.mean,
    }
