"""How a batch is cut into micro-batches changes nothing but the memory it takes."""

from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny

LEARNED: dict[str, tuple[str, ...]] = {
    "sft": ("loss", "gradient_norm"),
    "reward": ("loss", "gradient_norm", "chosen_score", "rejected_score"),
    "ppo": (
        "policy_loss",
        "critic_loss",
        "gradient_norm",
        "critic_gradient_norm",
        "entropy",
        "approx_kl",
        "ratio_mean",
    ),
}


@pytest.mark.parametrize("stage", LEARNED)
def test_loss_and_gradient_are_those_of_the_whole_batch(stage: str, tmp_path: Path) -> None:
    found: dict[int, dict[str, float]] = {}
    for size in (2, 8):
        settings: dict[str, Any] = {"batch_size": 8, "micro_batch_size": size, "max_steps": 1}
        if stage == "ppo":
            # The second pass sees a ratio other than 1.
            settings |= {"update_epochs": 2, "learning_rate": 0.01, "entropy_coef": 0.01}
        config = tiny.stage_config(stage, tmp_path / str(size), **settings)
        stage_runs.run(config)
        (found[size],) = stage_runs.steps(config)
    for name in LEARNED[stage]:
        assert found[2][name] == pytest.approx(found[8][name], rel=1e-4, abs=1e-7), name
    assert found[2]["gradient_norm"] > 1e-3
