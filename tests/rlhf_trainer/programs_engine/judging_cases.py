"""What each rank does in `test_scoring`."""

from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import stage_runs
import tiny
import torch
from waiting import eventually

from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import is_peer_loss
from rlhf_trainer.generation.sampling import Sampling
from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.ppo.rewards import Rewards
from rlhf_trainer.ppo.rewards.answers import Texts
from rlhf_trainer.run import distributed
from rlhf_trainer.run.distributed import Ranks


def experience() -> Experience:
    rollout = stage_runs.FixedSampler(None, Sampling(8, 1.0, (1,), 0, 1)).sample([[3, 4]])
    zeros = torch.zeros(rollout.responses.shape)
    return Experience(rollout, zeros, zeros, zeros, torch.zeros(1))


def outlast(ranks: Ranks, config: StageConfig, given_up: Path, patience: float) -> bool:
    """Whether rank 0 loses patience with rank 1, whose judge waits until it does."""

    def slow(texts: Texts) -> list[float]:
        if ranks.rank == 1:
            eventually(given_up.exists, what="rank 0 gave up")
        return [0.0] * len(texts.responses)

    assert config.ppo is not None
    with patch.object(distributed, "LONG_WORK_TIMEOUT", timedelta(seconds=patience)):
        rewards = Rewards.open(
            config.ppo, config, ranks, tiny.tokenizer(), "spec.stages.ppo", lambda: False
        )
    rewards = Rewards(
        rewards.specs, dict.fromkeys(rewards.judges, slow), rewards.tokenizer, ranks, rewards.group
    )
    try:
        rewards.scored(experience())
    except RuntimeError as error:
        given_up.touch()
        return is_peer_loss(error)
    return False
