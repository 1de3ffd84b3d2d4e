"""The loop of every stage under test, around a model of one number.

with loop_stages.quick_loops():
    stage = loop_stages.started(loop_stages.config(tmp_path))
    stage.step()
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import tiny
import worlds

from rlhf_api.metrics import Metric
from rlhf_api.v1alpha1 import CheckpointPolicy, StageConfig
from rlhf_trainer.run import report

PROGRAM = Path(__file__).parent / "rlhf_trainer" / "programs_engine" / "loop_cases.py"
cases: Any = worlds.load(PROGRAM)
STARTED: list[Any] = []
"""Stages whose files are open."""


class NoEndpoint:
    """Keeps what it should serve: a server takes half a second to close."""

    served: ClassVar[dict[str, float]] = {}
    """By the newest one of all."""

    def __init__(self, *arguments: object) -> None:
        self.port = None
        self.served.clear()

    def set(self, metrics: Mapping[Metric, float]) -> None:
        """Replace values."""
        self.served.update(metrics)

    def count(self, numbers: Mapping[Metric, float]) -> None:
        """Add to counters."""
        for metric, number in numbers.items():
            self.served[metric] = self.served.get(metric, 0) + number

    def close(self) -> None:
        """There is nothing to close."""


@contextmanager
def quick_loops() -> Iterator[None]:
    """Random numbers from one seed, and no servers; what was started is closed at the end."""
    cases.seed()
    with patch.object(report, "MetricsEndpoint", NoEndpoint):
        yield
    while STARTED:
        STARTED.pop().reporter.close()


def config(tmp_path: Path, attempt: int = 1, **changed: Any) -> StageConfig:
    """Eight steps, and no checkpoint that is not asked for."""
    settings: dict[str, Any] = {"checkpoint": CheckpointPolicy(every_steps=100), "max_steps": 8}
    return tiny.stage_config("sft", tmp_path, attempt=attempt, **settings | changed)


def new(found: StageConfig, **changed: Any) -> Any:
    """A stage before its resume."""
    stage = cases.Stage(found, tiny.ALONE, **changed)
    STARTED.append(stage)
    return stage


def started(found: StageConfig) -> Any:
    """A stage that may step."""
    stage = new(found)
    stage.loop.resume()
    return stage


def events(found: StageConfig, kind: str) -> list[int]:
    """Steps of the attempt's events of one type."""
    lines = (Path(found.attempt_folder) / "events.jsonl").read_text().splitlines()
    return [event["step"] for event in map(json.loads, lines) if event["type"] == kind]


def checkpoints(found: StageConfig) -> list[str]:
    """Names of the attempt's checkpoints."""
    folder = Path(found.attempt_folder) / "checkpoints"
    return sorted(path.name for path in folder.glob("step-*"))
