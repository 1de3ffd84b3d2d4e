"""What a reporter under test is made with, and what it wrote and serves."""

import json
from pathlib import Path
from typing import Any

import metrics_pages
import torch

from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.report import Reporter

CPU = torch.device("cpu")
FIRST = Ranks(rank=0, local_rank=0, world_size=2, local_world_size=2, device=CPU)
SECOND = Ranks(rank=1, local_rank=1, world_size=2, local_world_size=2, device=CPU)


class Clock:
    """Stands still until a test sets it on, in seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def refuse(constant: str) -> float:
    """Python writes and reads NaN and Infinity; JSON has neither."""
    raise AssertionError(f"{constant} is not JSON")


def lines(config: StageConfig, name: str = "events.jsonl") -> list[dict[str, Any]]:
    """A file of the attempt, whose last line is whole."""
    text = Path(config.attempt_folder, name).read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def scraped(reporter: Reporter) -> str:
    """What its endpoint serves now."""
    return metrics_pages.fetched(reporter.metrics_port)
