"""When a job's status is written and when the job is deleted. Pure; called by `reconcile`."""

from datetime import datetime
from typing import Any

from rlhf_api.names import ConditionType, StageName
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus, StageStatus
from rlhf_operator.planning.looks import expiry
from rlhf_operator.planning.plan import is_finished

_PROGRESS_FIELDS = {"progress", "metrics", "last_progress_time"}
_PROGRESS_TEXTS = {"progress", "reward", "kl", "critic_loss"}


def is_expired(job: RLHFJob, now: datetime) -> bool:
    """Whether `runPolicy.ttlSecondsAfterFinished` is over."""
    end = expiry(job.spec.run_policy, job.status) if is_finished(job.status) else None
    return end is not None and now >= end


def is_worth_writing(old: RLHFJobStatus, new: RLHFJobStatus, *, fresh_progress: bool) -> bool:
    """Whether a new status is to be written.

    Verdicts need to know of the first step and of every checkpoint, so these never wait.

    Args:
        old: as it was last written.
        new: as it was just planned.
        fresh_progress: whether mere progress is to be written.
    """
    if old == new:
        return False
    if fresh_progress or _without_progress(old) != _without_progress(new):
        return True
    return any(
        _has_steps(getattr(new.stages, name)) and not _has_steps(getattr(old.stages, name))
        for name in StageName
    )


def is_pressing(old: RLHFJobStatus, new: RLHFJobStatus) -> bool:
    """Whether a change of status is more than progress, and more than why something waits.

    What is not may wait for a moment when many jobs begin or end at once. A verdict needs to know
    of the first step and of every checkpoint.
    """
    return _decisions(old) != _decisions(new)


def _decisions(status: RLHFJobStatus) -> list[Any]:
    stages = [getattr(status.stages, name) for name in StageName]
    found: list[Any] = [
        (
            *(stage.state, stage.attempt, stage.restarts, stage.disruptions, stage.disruption),
            *(stage.last_checkpoint_step, _has_steps(stage)),
        )
        for stage in stages
        if stage is not None
    ]
    ends = (ConditionType.SUSPENDED, ConditionType.SUCCEEDED, ConditionType.FAILED)
    return [*found, *((each.type, each.status) for each in status.conditions if each.type in ends)]


def _has_steps(stage: StageStatus | None) -> bool:
    return stage is not None and stage.progress is not None and stage.progress.step > 0


def _without_progress(status: RLHFJobStatus) -> dict[str, Any]:
    document = status.model_dump()
    for name in StageName:
        for field in _PROGRESS_FIELDS if document["stages"][name] is not None else ():
            del document["stages"][name][field]
    for text in _PROGRESS_TEXTS:
        del document["summary"][text]
    document["conditions"] = [
        condition
        for condition in document["conditions"]
        if condition["type"] != ConditionType.PROGRESS_REPORTING
    ]
    return document
