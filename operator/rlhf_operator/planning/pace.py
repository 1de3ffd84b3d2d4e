"""When a job's status is written and when the job is deleted. Pure; called by `reconcile`.

What counts as mere progress stands here for the benchmark of the operator, too.
"""

from datetime import datetime
from enum import Enum
from typing import Any

from rlhf_api.names import ConditionType, StageName
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus, StageStatus
from rlhf_operator.planning.guardrails import awaits_resume
from rlhf_operator.planning.looks import expiry
from rlhf_operator.planning.statuses import is_finished

_PROGRESS_FIELDS = {"progress", "metrics", "last_progress_time", "reported_attempt"}
_PROGRESS_TEXTS = {"progress", "reward", "kl", "critic_loss"}


class Change(Enum):
    """A change of status, by how soon it is written."""

    NOTHING = "nothing"
    """Never."""
    PROGRESS = "progress"
    """When progress was read anew, and there is budget to spare."""
    EXPLANATION = "explanation"
    """When there is budget to spare: nobody acts on why something waits."""
    DECISION = "decision"
    """At once. Among these are the first step and every checkpoint, which verdicts need, every rule
    that is broken, and what must not be missed by whoever resumes after a guardrail."""


def is_expired(job: RLHFJob, now: datetime) -> bool:
    """Whether `runPolicy.ttlSecondsAfterFinished` is over."""
    end = expiry(job.spec.run_policy, job.status) if is_finished(job.status) else None
    return end is not None and now >= end


def change(old: RLHFJobStatus, new: RLHFJobStatus) -> Change:
    """What kind of change a newly planned status is, compared with the one last written."""
    if old == new:
        return Change.NOTHING
    if _decisions(old) != _decisions(new):
        return Change.DECISION
    return Change.PROGRESS if without_progress(old) == without_progress(new) else Change.EXPLANATION


def without_progress(status: RLHFJobStatus) -> dict[str, Any]:
    """What a status says besides how far its stages are; `lastCheckpointStep` is in it."""
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


def _decisions(status: RLHFJobStatus) -> list[Any]:
    stages = [getattr(status.stages, name) for name in StageName]
    found: list[Any] = [
        (
            *(stage.state, stage.attempt, stage.restarts, stage.disruptions, stage.disruption),
            *(stage.last_checkpoint_step, _has_steps(stage)),
            *(stage.verdicts, awaits_resume(stage)),
        )
        for stage in stages
        if stage is not None
    ]
    ends = (ConditionType.SUSPENDED, ConditionType.SUCCEEDED, ConditionType.FAILED)
    return [*found, *((each.type, each.status) for each in status.conditions if each.type in ends)]


def _has_steps(stage: StageStatus | None) -> bool:
    return stage is not None and stage.progress is not None and stage.progress.step > 0
