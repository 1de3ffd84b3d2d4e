"""What each rank leaves behind, and which of them speaks for the node.

Written by `__main__` in every rank, read by `launch`. Imports no torch.
"""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rlhf_api.contract import Contract
from rlhf_api.metrics import STATUS_METRICS, Metric
from rlhf_api.names import (
    MAX_RESULT_METRICS,
    ExitCode,
    FailureClass,
    FileName,
    Reason,
    failure_class,
)
from rlhf_api.v1alpha1 import Artifact, HealthVerdict, RowCounts, StageConfig, StageResult
from rlhf_trainer.errors import Failure

OUTCOME_FOLDER = "RLHF_OUTCOME_FOLDER"
"""Environment variable by which the launcher tells its ranks where to leave their outcome."""

_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class StageOutcome:
    """What a stage returns when its work is done.

    Attributes:
        artifact: what it left; its URI is relative to storage.
        step: steps done.
        total_steps: steps in all.
        last_checkpoint_step: step of the newest complete checkpoint.
        metrics: the last metrics; where they are too many, those of status are kept first.
        verdicts: rules of health that are broken at the end.
        rows: what became of the rows of each dataset, by its field; empty where none were read.
    """

    artifact: Artifact | None
    step: int
    total_steps: int
    last_checkpoint_step: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    verdicts: tuple[HealthVerdict, ...] = ()
    rows: Mapping[str, RowCounts] = field(default_factory=dict)


class RankOutcome(Contract):
    """One rank's last word."""

    rank: int
    """The rank."""
    time: float
    """When it ended, in seconds since the epoch."""
    result: StageResult
    """What it would say if it were the only one."""


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended, as the launcher knows it.

    Attributes:
        rank: the rank.
        exit_code: as a shell gives it, 128 + n for signal n.
        time: in seconds since the epoch; the rank's own where it left an outcome.
        outcome: its last word, if it had one.
        signal: what ended it, if it was a signal.
        late: whether the launcher killed it because it did not heed a request to stop.
    """

    rank: int
    exit_code: int
    time: float
    outcome: RankOutcome | None = None
    signal: int | None = None
    late: bool = False


def success(config: StageConfig, outcome: StageOutcome) -> StageResult:
    """The result of a stage whose work is done."""
    return StageResult(
        stage=config.stage,
        attempt=config.attempt,
        config_digest=config.config_digest,
        exit_code=ExitCode.DONE,
        reason=Reason.FINISHED,
        message=f"done after {outcome.step} steps",
        step=outcome.step,
        total_steps=outcome.total_steps,
        last_checkpoint_step=outcome.last_checkpoint_step,
        artifact=outcome.artifact,
        metrics=_kept(outcome.metrics),
        verdicts=outcome.verdicts,
        rows=dict(outcome.rows) or None,
    )


def _kept(metrics: Mapping[str, float]) -> dict[str, float]:
    """As many as a StageResult holds, those of status first."""
    # In an order of its own: a run that was resumed has come by its metrics in another one.
    ordered = dict.fromkeys([*STATUS_METRICS, *Metric, *sorted(metrics)])
    kept = [str(name) for name in ordered if name in metrics][:MAX_RESULT_METRICS]
    return {name: metrics[name] for name in kept}


def failed(config: StageConfig, failure: Failure) -> StageResult:
    """The result of a stage that ended otherwise."""
    return StageResult(
        stage=config.stage,
        attempt=config.attempt,
        config_digest=config.config_digest,
        exit_code=failure.exit_code,
        reason=failure.reason,
        message=failure.message,
        step=failure.step or 0,
        last_checkpoint_step=failure.last_checkpoint_step,
        verdicts=failure.verdicts,
    )


def leave_outcome(result: StageResult, rank: int) -> None:
    """Leave `result` as this rank's last word; nothing where no launcher reads it.

    Raises:
        OSError: the launcher's folder cannot be written; the exit code has to do.
    """
    folder = os.environ.get(OUTCOME_FOLDER)
    if folder is None:
        return
    outcome = RankOutcome(rank=rank, time=time.time(), result=result)
    partial = Path(folder) / f".{_name(rank)}"
    partial.write_text(outcome.model_dump_json(by_alias=True, exclude_none=True))
    partial.replace(Path(folder) / _name(rank))


def read_outcome(folder: Path, rank: int) -> RankOutcome | None:
    """The last word of `rank`; None if it left none."""
    try:
        return RankOutcome.parse_json((folder / _name(rank)).read_bytes())
    except (OSError, ValidationError):
        return None


def first_failure(ends: Sequence[RankEnd], *, asked_to_stop: bool) -> RankEnd | None:
    """The rank that failed first, of those that know the most; None if no rank failed.

    The loss of a peer is never the cause where another rank tells more; nor is a stop that the
    launcher did not ask for, since torch's agent stops the rest when one rank has failed.
    """
    failures = [end for end in ends if end.exit_code != ExitCode.DONE]
    return min(failures, key=lambda end: (_vagueness(end, asked_to_stop), end.time), default=None)


def _vagueness(end: RankEnd, asked_to_stop: bool) -> int:
    kind = failure_class(end.exit_code)
    if kind is FailureClass.PEER_LOST:
        return 2
    if kind is not FailureClass.STOPPED or asked_to_stop:
        return 0
    return 3 if end.outcome is None else 1


def with_progress(result: StageResult, config: StageConfig) -> StageResult:
    """`result` with the steps that the attempt's files tell of, where it tells of none itself.

    A rank that crashed or was killed does not know or say how far the stage had come.
    """
    folder = Path(config.attempt_folder)
    event = _last_event(folder / FileName.EVENTS)
    checkpoint = _latest_step(folder / FileName.CHECKPOINTS / FileName.LATEST)
    return result.model_copy(
        update={
            "step": result.step or _count(event.get("step")),
            "total_steps": result.total_steps or _count(event.get("totalSteps")),
            "last_checkpoint_step": (
                checkpoint if result.last_checkpoint_step is None else result.last_checkpoint_step
            ),
        }
    )


def _last_event(path: Path) -> dict[str, Any]:
    """The last whole line of an events.jsonl; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().split(b"\n")
        # What follows the last line break is nothing, or a line that was cut off.
        event = json.loads(lines[-2])
    except (OSError, ValueError, IndexError):
        return {}
    return event if isinstance(event, dict) else {}


def _latest_step(path: Path) -> int | None:
    try:
        match = re.fullmatch(r"step-(\d+)\s*", path.read_text())
    except (OSError, ValueError):
        return None
    return int(match[1]) if match else None


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _name(rank: int) -> str:
    return f"outcome-{rank}.json"
