"""When a job is looked at, written and deleted. Pure; called by `reconcile`."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from rlhf_api.names import StageName, StageState
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus, RunPolicy, StageStatus
from rlhf_operator.planning.observed import Observed
from rlhf_operator.planning.plan import is_finished
from rlhf_operator.planning.stages import ACTIVE, CLOSED

REST_SECONDS = 3600.0
"""Longer than any resync takes to come round."""
PROGRESS_SECONDS = 10.0
GANG_SECONDS = 1.0

_PROGRESS_FIELDS = {"progress", "metrics", "last_progress_time", "last_checkpoint_step"}
_PROGRESS_TEXTS = {"progress", "reward", "kl", "critic_loss"}


def is_expired(job: RLHFJob, now: datetime) -> bool:
    """Whether `runPolicy.ttlSecondsAfterFinished` is over."""
    end = _expiry(job)
    return end is not None and now >= end


def next_look(job: RLHFJob, observed: Observed, now: datetime) -> float:
    """Seconds until the job, with the status that was just planned, must be looked at again."""
    if is_finished(job.status):
        end = _expiry(job)
        return REST_SECONDS if end is None else max(0.0, (end - now).total_seconds())
    waits = ((when - now).total_seconds() for when in _due_times(job, observed, now))
    # What is due by now was just decided, and may take its time to be over.
    return min((wait for wait in waits if wait > 0), default=REST_SECONDS)


def is_worth_writing(old: RLHFJobStatus, new: RLHFJobStatus, since_last: float) -> bool:
    """Whether a new status is to be written, `since_last` seconds after the last one.

    Mere progress waits until PROGRESS_SECONDS are over.
    """
    if old == new:
        return False
    return since_last >= PROGRESS_SECONDS or _without_progress(old) != _without_progress(new)


def _expiry(job: RLHFJob) -> datetime | None:
    ttl, end = job.spec.run_policy.ttl_seconds_after_finished, job.status.completion_time
    if ttl is None or end is None or not is_finished(job.status):
        return None
    return end + timedelta(seconds=ttl)


def _due_times(job: RLHFJob, observed: Observed, now: datetime) -> Iterator[datetime]:
    if any(attempt.live for attempt in observed.attempts):
        yield now + timedelta(seconds=PROGRESS_SECONDS)
    policy, status = job.spec.run_policy, job.status
    if not job.spec.suspend:
        yield from _deadline(status.start_time, policy.active_deadline_seconds, status.idle_seconds)
    for name in StageName:
        stage: StageStatus | None = getattr(status.stages, name)
        if stage is None or stage.state in CLOSED or stage.state is StageState.SUSPENDED:
            continue
        yield from _stage_times(stage, policy)
        if stage.state in ACTIVE:
            yield now + timedelta(seconds=PROGRESS_SECONDS)
            attempt = observed.find(name, stage.attempt)
            if attempt is not None and any(process.failed for process in attempt.processes):
                yield now + timedelta(seconds=GANG_SECONDS)


def _stage_times(stage: StageStatus, policy: RunPolicy) -> Iterator[datetime]:
    yield from _deadline(stage.start_time, policy.stage_deadline_seconds, stage.idle_seconds)
    if stage.state is StageState.STARTING:
        yield from _deadline(stage.attempt_start_time, policy.pending_deadline_seconds, 0)
    if stage.state is StageState.RUNNING:
        yield from _deadline(stage.last_progress_time, policy.progress_deadline_seconds, 0)
    if stage.state is StageState.RESTARTING and stage.retry_time is not None:
        yield stage.retry_time


def _deadline(since: datetime | None, seconds: int | None, idle: int) -> Iterator[datetime]:
    if since is not None and seconds is not None:
        yield since + timedelta(seconds=seconds + idle)


def _without_progress(status: RLHFJobStatus) -> dict[str, Any]:
    document = status.model_dump()
    for stage in document["stages"].values():
        for field in _PROGRESS_FIELDS if stage is not None else ():
            del stage[field]
    for text in _PROGRESS_TEXTS:
        del document["summary"][text]
    return document
