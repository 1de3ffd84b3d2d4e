"""What came out of a job: `summary.json`, answers before and after, or the logs of a failure.

Called by `rlhf run` at the end. Reads what the stages left beside their models.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_api.names import FileName, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus, StageStatus
from rlhf_cli.view import duration
from rlhf_cli.workdir import LOG, Workdir

FIGURES: dict[str, tuple[StageName, tuple[str, ...]]] = {
    "rewardAccuracy": (StageName.REWARD, ("accuracy",)),
    "scoreSft": (StageName.PPO, ("before", "score")),
    "scoreSftStd": (StageName.PPO, ("before", "scoreStd")),
    "scorePpo": (StageName.PPO, ("after", "score")),
    "kl": (StageName.PPO, ("after", "kl")),
    "eosRate": (StageName.PPO, ("after", "eosRate")),
    "meanLength": (StageName.PPO, ("after", "meanLength")),
    "distinct2Sft": (StageName.PPO, ("before", "distinct2")),
    "distinct2Ppo": (StageName.PPO, ("after", "distinct2")),
    "sftPerplexity": (StageName.SFT, ("perplexity",)),
}
"""Where each figure stands in which stage's evaluation.json."""

UNITS = {"kl": " nats an answer", "meanLength": " characters"}
"""Of figures that might be taken for something else; samples.jsonl has lengths in tokens."""

SHOWN_SAMPLES = 3


def summarize(job: RLHFJob, storage: Path) -> dict[str, Any]:
    """The content of summary.json; what was not evaluated is left out."""
    evaluations = {name: _evaluation(job, storage, name) for name in StageName}
    summary: dict[str, Any] = {}
    for key, (stage, path) in FIGURES.items():
        value: Any = evaluations[stage]
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            summary[key] = value
    status = job.status
    if status.start_time is not None and status.completion_time is not None:
        summary["secondsTotal"] = _seconds(status)
    summary["secondsByStage"] = {
        name.value: _seconds(stage)
        for name, stage in _stages(job)
        if stage.start_time is not None and stage.completion_time is not None
    }
    rows = {name.value: _rows(stage) for name, stage in _stages(job) if stage.rows}
    return summary | ({"rowsByStage": rows} if rows else {})


def result_lines(job: RLHFJob, storage: Path, summary: dict[str, Any]) -> Iterator[str]:
    """Samples before and after PPO, where they are, then the figures."""
    for row in _samples(job, storage):
        yield f"prompt  {_one_line(row.get('prompt'))}"
        yield f"before  {_one_line(row.get('responseBefore'))}{_score(row.get('scoreBefore'))}"
        yield f"after   {_one_line(row.get('responseAfter'))}{_score(row.get('scoreAfter'))}"
        yield ""
    for key, value in summary.items():
        if key in FIGURES:
            yield f"{key}: {value:.4g}{UNITS.get(key, '')}"
    for name, stage in _stages(job):
        for dataset, counts in (stage.rows or {}).items():
            yield f"{name} {dataset}: {counts.text}"
    by_stage = ", ".join(
        f"{name} {duration(seconds)}" for name, seconds in summary["secondsByStage"].items()
    )
    yield f"time: {duration(summary.get('secondsTotal', 0))} ({by_stage})"
    for name, stage in _stages(job):
        if stage.artifact is not None:
            yield f"{name}: {storage / stage.artifact.uri}"


def failure_logs(job: RLHFJob, workdir: Workdir) -> Iterator[str]:
    """The log of each failed stage's last attempt, where it has one."""
    for name, stage in _stages(job):
        log = workdir.attempt_folder(job, name, stage.attempt) / LOG
        if stage.state is StageState.FAILED and log.exists():
            yield str(log)


def resumptions(job: RLHFJob) -> Iterator[str]:
    """Where each stage that was begun and is not done goes on."""
    for name, stage in _stages(job):
        if stage.attempt and stage.state is not StageState.SUCCEEDED:
            step = stage.last_checkpoint_step
            start = f"the checkpoint of step {step}" if step else "its beginning"
            yield f"stage {name} from {start}"


def _seconds(status: RLHFJobStatus | StageStatus) -> float:
    """From start to end, without the time in which nothing was to run."""
    assert status.start_time is not None
    assert status.completion_time is not None
    whole = (status.completion_time - status.start_time).total_seconds()
    return whole - status.idle_seconds


def _rows(stage: StageStatus) -> dict[str, Any]:
    """What became of each dataset's rows, with every number written out."""
    return {name: counts.to_resolved_document() for name, counts in (stage.rows or {}).items()}


def _stages(job: RLHFJob) -> Iterator[tuple[StageName, StageStatus]]:
    for name in StageName:
        stage = getattr(job.status.stages, name)
        if stage is not None:
            yield name, stage


def _artifact_file(job: RLHFJob, storage: Path, stage: StageName, name: str) -> Path | None:
    status: StageStatus | None = getattr(job.status.stages, stage)
    if status is None or status.artifact is None:
        return None
    path = storage / status.artifact.uri / name
    return path if path.is_file() else None


def _evaluation(job: RLHFJob, storage: Path, stage: StageName) -> Any:
    path = _artifact_file(job, storage, stage, FileName.EVALUATION)
    return None if path is None else _read(path.read_text(encoding="utf-8"))


def _samples(job: RLHFJob, storage: Path) -> list[dict[str, Any]]:
    path = _artifact_file(job, storage, StageName.PPO, FileName.EVALUATION_SAMPLES)
    if path is None:
        return []
    with path.open(encoding="utf-8") as file:
        return [_read(line) for line, _ in zip(file, range(SHOWN_SAMPLES), strict=False)]


def _read(text: str) -> Any:
    """An earlier release may have left NaN, which is no JSON and must not be written again."""
    return json.loads(text, parse_constant=lambda constant: None)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _score(value: object) -> str:
    return f"  (score {value:.3g})" if isinstance(value, int | float) else ""
