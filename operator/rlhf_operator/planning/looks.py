"""When a job must be looked at again though nothing about it changes. Pure; called by `plan`."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from rlhf_api.names import ConditionType, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus, RunPolicy, StageStatus
from rlhf_operator.planning.clocks import is_held, pending_since
from rlhf_operator.planning.conditions import is_true
from rlhf_operator.planning.failures import gang_wait_end
from rlhf_operator.planning.observed import Observed, ObservedAttempt
from rlhf_operator.planning.stages import ACTIVE, CLOSED


def expiry(policy: RunPolicy, status: RLHFJobStatus) -> datetime | None:
    """When a job that has ended is to be deleted; None if it stays."""
    ttl, end = policy.ttl_seconds_after_finished, status.completion_time
    return None if ttl is None or end is None else end + timedelta(seconds=ttl)


def next_change(
    job: RLHFJob, status: RLHFJobStatus, observed: Observed, now: datetime
) -> datetime | None:
    """The first time after `now` at which an unfinished job with `status` is judged otherwise."""
    # What is due by now was just decided, and may take its time to be over.
    later = (when for when in _changes(job, status, observed) if when > now)
    return min(later, default=None)


def _changes(job: RLHFJob, status: RLHFJobStatus, observed: Observed) -> Iterator[datetime]:
    if observed.look_at is not None:
        yield observed.look_at
    policy = job.spec.run_policy
    suspended = job.spec.suspend or is_true(status.conditions, ConditionType.SUSPENDED)
    if not suspended and status.idle_since is None:
        yield from _after(status.start_time, policy.active_deadline_seconds, status.idle_seconds)
    for name in StageName:
        stage: StageStatus | None = getattr(status.stages, name)
        if stage is not None and stage.state not in CLOSED:
            yield from _stage_changes(stage, policy, observed.find(name, stage.attempt))


def _stage_changes(
    stage: StageStatus, policy: RunPolicy, attempt: ObservedAttempt | None
) -> Iterator[datetime]:
    if stage.state is StageState.RESTARTING and stage.retry_time is not None:
        yield stage.retry_time
    if stage.state in ACTIVE and attempt is not None:
        yield from (when for when in [gang_wait_end(attempt)] if when is not None)
    counted = (StageState.WAITING, StageState.STARTING, StageState.RUNNING, StageState.RESTARTING)
    if stage.state in counted and stage.idle_since is None:
        yield from _after(stage.start_time, policy.stage_deadline_seconds, stage.idle_seconds)
    if stage.state is StageState.STARTING and not is_held(attempt):
        yield from _after(pending_since(stage), policy.pending_deadline_seconds)
    if stage.state is StageState.RUNNING:
        yield from _after(stage.last_progress_time, policy.progress_deadline_seconds)


def _after(since: datetime | None, seconds: int | None, idle: int = 0) -> Iterator[datetime]:
    if since is not None and seconds is not None:
        yield since + timedelta(seconds=seconds + idle)
