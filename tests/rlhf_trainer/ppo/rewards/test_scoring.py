"""All rewards together: how long ranks wait for the slowest. (Sums: `stages/test_ppo_rewards`.)"""

from pathlib import Path

import tiny
import worlds

from rlhf_api.v1alpha1 import EndpointReward, Reward
from rlhf_trainer.run.distributed import COLLECTIVE_TIMEOUT, LONG_WORK_TIMEOUT

PROGRAM = Path(__file__).parents[2] / "programs_engine" / "judging_cases.py"


def test_ranks_wait_for_a_judge_as_long_as_for_long_work(tmp_path: Path) -> None:
    """Shown by a short patience: were it that of a collective, nobody would give up here."""
    far = Reward(name="far", type="Endpoint", endpoint=EndpointReward(url="http://nowhere.invalid"))
    config = tiny.stage_config("ppo", tmp_path, rewards=(far,), reward_model=None, world_size=2)
    found = worlds.pair()(
        PROGRAM, "outlast", config=config, given_up=tmp_path / "given up", patience=3.0
    )
    assert found[0] is True
    assert LONG_WORK_TIMEOUT > COLLECTIVE_TIMEOUT
