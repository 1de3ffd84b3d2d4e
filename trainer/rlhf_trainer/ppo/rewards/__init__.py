"""What a response of PPO is scored by: the weighted sum of the rewards that the stage names.

Called by the PPO stage. `scoring` puts them together; `function` and `endpoint` each ask one kind.
"""

from rlhf_trainer.ppo.rewards.scoring import Rewards, mean_rewards

__all__ = ["Rewards", "mean_rewards"]
