"""What each rank does in `test_models`: PPO's models are loaded one after the other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from torch import nn

from rlhf_trainer.ppo import models
from rlhf_trainer.run.distributed import Ranks


def loaded(ranks: Ranks, folder: Path, zero_stage: int) -> list[tuple[str, int, int]]:
    """Of each loading of a model: by what, after how many were placed, and how many numbers of
    those this rank holds whole."""
    config = tiny.stage_config(
        "ppo", folder, world_size=ranks.world_size, zero_stage=zero_stage, precision="BF16"
    )
    assert config.ppo is not None
    placed: list[nn.Module] = []
    told: list[tuple[str, int, int]] = []

    def loading(name: str) -> Callable[..., Any]:
        load = getattr(models, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            whole = sum(p.numel() for module in placed for p in module.parameters())
            told.append((name, len(placed), whole))
            return load(*args, **kwargs)

        return call

    def placing(name: str) -> Callable[..., Any]:
        place = getattr(models, name)

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            found = place(module, *args, **kwargs)
            placed.append(module)
            return found

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("load_causal_model", "load_reward_base", "load_reward_model"):
            patch.setattr(models, name, loading(name))
        for name in ("train", "freeze"):
            patch.setattr(models, name, placing(name))
        bases = models.Bases.open(config.ppo, config, ranks)
        models.load_models(bases, config.ppo, config, ranks, models.Workload(16, 4))
    return told
