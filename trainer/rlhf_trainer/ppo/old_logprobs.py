"""Whether log-probabilities of sampling may stand for those of training, so that no pass has to
compute these anew.

Called by `sampler_check` with what it measures at a start, and by `collection` with the first
rollouts of an attempt, whose answers are as long as they come.
"""

import math

import torch

from rlhf_api.v1alpha1 import PPOStage
from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.run.distributed import Ranks, reduce_max

SAME_LOGPROBS = 1e-5
"""Below this mean in FP32 log-probabilities of sampling may serve as those of training."""


def may_serve_as_old(spec: PPOStage, drift: float) -> bool:
    """Whether KL, rewards and advantages may be made of log-probabilities of sampling that are on
    average `drift` nats off."""
    all_tokens = spec.top_k == 0 and spec.top_p == 1
    asked = spec.old_logprobs == "Auto"
    return asked and all_tokens and spec.precision == "FP32" and drift < SAME_LOGPROBS


def worst_drift(experience: Experience, ranks: Ranks) -> float:
    """How far sampling is from the actor in the answer where that is most, of all ranks.

    In nats a token, on average over the answer: no set of answers is further off.
    """
    assert experience.recomputed is not None
    difference = (experience.rollout.sampled_logprobs - experience.recomputed).abs()
    sums = torch.where(experience.mask, difference, 0.0).sum(dim=1)
    most = float((sums / experience.rollout.response_lengths).nan_to_num(nan=math.inf).max())
    return reduce_max([most], ranks)[0]
