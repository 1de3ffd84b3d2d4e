"""The mathematics of SFT, reward modelling and PPO: numbers in, numbers out.

Called by the stages, with tensors and plain numbers and never a configuration. Nothing here knows
of ranks, models, files or devices: what must be global (a count, a mean, a variance) is an
argument. Shapes stand in the docstrings as Type[dimensions].
"""

from rlhf_trainer.rl.advantages import gae, whiten
from rlhf_trainer.rl.hidden_logprobs import CHUNK_NUMBERS, hidden_statistics
from rlhf_trainer.rl.kl import adapted_kl_coef, token_kl
from rlhf_trainer.rl.logprobs import TokenStatistics, policy_logits, token_statistics
from rlhf_trainer.rl.losses import (
    EntropyBonus,
    PolicyLoss,
    RewardLoss,
    SFTLoss,
    ValueLoss,
    entropy_bonus,
    policy_loss,
    reward_loss,
    sft_loss,
    value_loss,
)
from rlhf_trainer.rl.masking import masked_mean, position_ids, response_mask
from rlhf_trainer.rl.moments import Moments, explained_variance, masked_moments, running_scale
from rlhf_trainer.rl.rewards import clip_scores, penalise_missing_eos, token_rewards
from rlhf_trainer.rl.schedule import learning_rate_factor, warmup_steps
from rlhf_trainer.rl.text_statistics import distinct_n

__all__ = [
    "CHUNK_NUMBERS",
    "EntropyBonus",
    "Moments",
    "PolicyLoss",
    "RewardLoss",
    "SFTLoss",
    "TokenStatistics",
    "ValueLoss",
    "adapted_kl_coef",
    "clip_scores",
    "distinct_n",
    "entropy_bonus",
    "explained_variance",
    "gae",
    "hidden_statistics",
    "learning_rate_factor",
    "masked_mean",
    "masked_moments",
    "penalise_missing_eos",
    "policy_logits",
    "policy_loss",
    "position_ids",
    "response_mask",
    "reward_loss",
    "running_scale",
    "sft_loss",
    "token_kl",
    "token_rewards",
    "token_statistics",
    "value_loss",
    "warmup_steps",
    "whiten",
]
