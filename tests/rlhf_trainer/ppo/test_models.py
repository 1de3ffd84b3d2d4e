"""PPO's models come one after the other."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import worlds

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "loading_cases.py"
cases: Any = worlds.load(PROGRAM)

ORDER = ["load_causal_model", "load_causal_model", "load_reward_base", "load_reward_model"]


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_model_is_placed_before_the_next_is_loaded(tmp_path: Path, zero_stage: int) -> None:
    told = cases.loaded(tiny.ranks(), tmp_path, zero_stage)
    assert [name for name, _, _ in told] == ORDER
    assert [placed for _, placed, _ in told] == [0, 1, 2, 3]


def test_no_other_model_is_whole_when_one_is_loaded_under_zero_3(tmp_path: Path) -> None:
    # The files that both ranks read.
    tiny.stage_config("ppo", tmp_path)
    for told in worlds.pair()(PROGRAM, "loaded", folder=tmp_path, zero_stage=3):
        assert told == [(name, placed, 0) for placed, name in enumerate(ORDER)]
