"""What each rank does in `test_loop` and `test_source`."""

import math
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf_api.errors import RLHFError
from rlhf_api.v1alpha1 import ModelSource, StageConfig
from rlhf_trainer.errors import StopRequested
from rlhf_trainer.models import source as source_module
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.loop import TrainingLoop
from rlhf_trainer.run.report import Reporter

ROWS = 10


@dataclass
class Sum:
    """A model of one number, saved by rank 0."""

    rank: int
    value: float = 0.0

    def spoilt_weights(self) -> list[str]:
        return [] if math.isfinite(self.value) else ["value"]

    def save(self, folder: Path, tag: str) -> None:
        if self.rank == 0:
            (folder / tag).write_text(repr(self.value))

    def load(self, folder: Path, tag: str) -> None:
        self.value = float((folder / tag).read_text())


class Stage:
    """A loop around a model that adds up rows and random numbers; to be closed."""

    def __init__(
        self,
        config: StageConfig,
        ranks: Ranks,
        own: Mapping[str, Any] | None = None,
        total_steps: int = 8,
    ) -> None:
        self.stop = StopFlag()
        self.model = Sum(ranks.rank)
        self.reporter = Reporter(config, ranks)
        self.loop = TrainingLoop(
            config,
            ranks,
            self.stop,
            self.reporter,
            models={"model": self.model},  # type: ignore[dict-item]
            rows=ROWS,
            own_state=lambda: dict(own or {}),
        )
        self.loop.total_steps = total_steps

    def step(self, *, keep: bool = True) -> list[int]:
        """One whole step; its rows."""
        rows = self.loop.next_batch()
        self.model.value += sum(rows) + sum(draws())
        self.loop.finish_step({}, tokens=1, keep=keep)
        return rows


def draws() -> list[float]:
    """A number of each generator that training draws from."""
    return [random.random(), float(np.random.random()), float(torch.rand(()))]


def seed() -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)


def stop_of_one(ranks: Ranks, config: StageConfig) -> Any:
    """Only rank 1 is asked to stop, before the third step."""
    stage = Stage(config, ranks)
    stage.loop.resume()
    for step in range(8):
        if step == 2 and ranks.rank == 1:
            stage.stop.ask()
        try:
            stage.step()
        except StopRequested as error:
            stage.reporter.close()
            return error.step, error.last_checkpoint_step
    return None


def opened(ranks: Ranks, config: StageConfig, source: ModelSource, nodes: int, pause: float) -> Any:
    """A base that is opened while every download is recorded: by which rank, and until when."""
    downloads: list[float] = []
    download = source_module.snapshot_download

    def slow(*arguments: Any, **settings: Any) -> Any:
        time.sleep(pause)
        found = download(*arguments, **settings)
        downloads.append(time.monotonic())
        return found

    on_node = 2 // nodes
    there = replace(ranks, local_rank=ranks.rank % on_node, local_world_size=on_node)
    source_module.snapshot_download = slow  # type: ignore[assignment]
    try:
        base = source_module.open_base(source, config, there, "spec.stages.sft.model")
        found: Any = (
            len(base.tokenizer),
            base.pad_id,
            base.config.model_type,
            base.config.hidden_size,
        )
    except RLHFError as error:
        found = type(error).__name__, str(error)
    finally:
        source_module.snapshot_download = download
    return downloads, time.monotonic(), found
