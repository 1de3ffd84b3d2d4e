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


def measured(
    stage: str, folder: Path, world_size: int, tokens: int, **settings: Any
) -> list[dict[str, float]]:
    """The steps of a stage whose passes hold so many tokens."""
    settings |= {"batch_size": 16, "max_steps": 2, "micro_batch_tokens": tokens}
    # Adam's first steps are smooth in the gradient then.
    settings["adam_eps"] = 1e-3
    if stage == "sft":
        settings["packing"] = False
    if stage == "ppo":
        settings |= {"update_epochs": 2, "entropy_coef": 0.01, "ptx_dataset": True}
    else:
        settings["eval_dataset"] = True
    config = tiny.stage_config(stage, folder, world_size=world_size, **settings)
    if world_size == 1:
        stage_runs.run(config)
    else:
        for rank in stage_runs.run_on_pair(config):
            assert "error" not in rank, rank
    return [event["metrics"] for event in stage_runs.events(config) if event.get("metrics")]


@pytest.mark.parametrize(("world_size", "zero_stage"), [(1, 0), (2, 0), (2, 3)])
@pytest.mark.parametrize("stage", LEARNED)
def test_a_budget_of_tokens_changes_neither_loss_nor_gradient(
    stage: str, world_size: int, zero_stage: int, tmp_path: Path
) -> None:
    """The least budget against one for all rows, with ranks that have unequally many passes."""
    least = {"sft": 32, "reward": 64, "ppo": 16}[stage]
    few, many = (
        measured(stage, tmp_path / str(tokens), world_size, tokens, zero_stage=zero_stage)
        for tokens in (4096, least)
    )
    assert len(few) == len(many) >= 2
    for one, other in zip(few, many, strict=True):
        for name in one.keys() - stage_runs.SPEED:
            assert other[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6), name
