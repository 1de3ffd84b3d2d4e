"""What deadlines count: time in which a queue, a quota or a refusal lets nothing run is left out.

Called by `stages` for a stage and by `plan` for the job. Pure. A span of such time stands in
`idle_since` while it lasts, and is added to `idle_seconds` once when it is over, so that it is
counted right by an operator that was not there when it began or ended.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from rlhf_api.names import REFUSALS, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJobStatus, StageStatus
from rlhf_operator.planning.guardrails import awaits_resume
from rlhf_operator.planning.observed import ObservedAttempt

Stages = Mapping[StageName, StageStatus]

_RUNNING = frozenset({StageState.STARTING, StageState.RUNNING, StageState.STOPPING})


def is_past(since: datetime | None, seconds: int | None, now: datetime, idle: int = 0) -> bool:
    """Whether `seconds` have gone by, `idle` ones not counted; never, when a limit is None."""
    if since is None or seconds is None:
        return False
    return now - since >= timedelta(seconds=seconds + idle)


def idle_seconds(status: StageStatus | RLHFJobStatus, now: datetime) -> int:
    """Seconds that its deadlines leave out by now, those of a span that still lasts included."""
    if status.idle_since is None:
        return status.idle_seconds
    return status.idle_seconds + _seconds(status.idle_since, now)


def pending_since(stage: StageStatus) -> datetime | None:
    """From when on `runPolicy.pendingDeadlineSeconds` counts."""
    return stage.pending_since or stage.attempt_start_time


def is_held(attempt: ObservedAttempt | None) -> bool:
    """Whether a queue holds the attempt back, during which nothing counts as pending."""
    return attempt is not None and attempt.held_since is not None


def with_holds(
    stage: StageStatus, attempt: ObservedAttempt | None, now: datetime, *, refused: bool
) -> StageStatus:
    """The status after looking whether anything keeps the current attempt from running.

    Args:
        stage: the stage.
        attempt: its current attempt; None if it is not there.
        now: the time.
        refused: whether making the attempt was refused.
    """
    if awaits_resume(stage):
        return stage
    if stage.state is not StageState.STARTING:
        return roused(stage, now)
    stage = _released(stage, attempt, now)
    if not _is_kept(stage, attempt, refused=refused):
        return roused(stage, now)
    if stage.idle_since is not None:
        return stage
    since = now
    if attempt is not None and attempt.held_since is not None:
        # Maybe nobody was looking when it began.
        since = max(attempt.held_since, pending_since(stage) or attempt.held_since)
    return stage.model_copy(update={"idle_since": since})


def without_guardrail(stage: StageStatus, now: datetime, *, suspended: bool) -> StageStatus:
    """The status of a stage that a guardrail suspended; its own clock stands while others run.

    Args:
        stage: the stage.
        now: the time.
        suspended: whether the whole job is, in which all clocks stand until it is resumed.
    """
    if suspended:
        return roused(stage, now)
    return stage.model_copy(update={"idle_since": stage.idle_since or now})


def roused(stage: StageStatus, end: datetime) -> StageStatus:
    """The status with the idle time that has ended at `end`, if any, added up."""
    if stage.idle_since is None:
        return stage
    return _with_span(stage, stage.idle_since, end)


def with_job_idle(
    status: RLHFJobStatus, before: Stages, after: Stages, now: datetime
) -> RLHFJobStatus:
    """The status of the job, which is idle while a stage is and no other one runs.

    Args:
        status: of the job.
        before: its stages as `status` counts them.
        after: the same stages a step later.
        now: the time.
    """
    spans = [span for name in after if (span := _ended_span(before.get(name), after[name]))]
    runs = any(_runs(stage) for stage in after.values())
    since = [stage.idle_since for stage in after.values() if stage.idle_since is not None]
    if status.idle_since is not None and (runs or not since):
        end = min((end for _, end in spans), default=now)
        return _with_job_span(status, _seconds(status.idle_since, end))
    if status.idle_since is not None:
        return status
    ran = any(_runs(stage) and after[name].idle_since is None for name, stage in before.items())
    if since and not runs:
        return status.model_copy(update={"idle_since": now if ran else max(since)})
    unseen = [name for name, stage in after.items() if _is_unseen(before.get(name), stage)]
    others = any(_runs(stage) for name, stage in before.items() if name not in unseen)
    if unseen and not others:
        # Held back and released while nobody was looking.
        return _with_job_span(status, min(_seconds(begin, end) for begin, end in spans))
    return status


def _is_kept(stage: StageStatus, attempt: ObservedAttempt | None, *, refused: bool) -> bool:
    if attempt is None:
        # A new leader does not know of the refusal before it has tried for itself.
        return refused or stage.idle_since is not None
    waiting = (process for process in attempt.processes if not process.ended)
    return is_held(attempt) or any(process.reason in REFUSALS for process in waiting)


def _released(stage: StageStatus, attempt: ObservedAttempt | None, now: datetime) -> StageStatus:
    """The status with the pending clock moved to the end of a hold."""
    counted = pending_since(stage)
    if counted is None:
        return stage
    waited = stage.idle_since is not None and stage.reason is Reason.QUEUED
    end = None if attempt is None else attempt.released_at
    if end is None or end <= counted:
        if is_held(attempt) or not waited:
            return stage
        # It is gone, or let run, and nobody says since when.
        return roused(stage, now).model_copy(update={"pending_since": now})
    begin = stage.idle_since or counted
    return _with_span(stage, begin, end).model_copy(update={"pending_since": end})


def _with_span(stage: StageStatus, begin: datetime, end: datetime) -> StageStatus:
    total = stage.idle_seconds + _seconds(begin, end)
    if stage.start_time is not None:
        total = max(stage.idle_seconds, min(total, _seconds(stage.start_time, end)))
    return stage.model_copy(update={"idle_seconds": total, "idle_since": None})


def _with_job_span(status: RLHFJobStatus, seconds: int) -> RLHFJobStatus:
    total = status.idle_seconds + seconds
    return status.model_copy(update={"idle_seconds": total, "idle_since": None})


def _ended_span(before: StageStatus | None, after: StageStatus) -> tuple[datetime, datetime] | None:
    """Begin and end of the idle time of a stage that was added up between the two."""
    if before is None or after.idle_since is not None:
        return None
    length = timedelta(seconds=after.idle_seconds - before.idle_seconds)
    if before.idle_since is not None:
        return before.idle_since, before.idle_since + length
    if length and after.pending_since is not None:
        return after.pending_since - length, after.pending_since
    return None


def _is_unseen(before: StageStatus | None, after: StageStatus) -> bool:
    return bool(before and before.idle_since is None and _ended_span(before, after))


def _runs(stage: StageStatus) -> bool:
    return stage.state in _RUNNING and stage.idle_since is None


def _seconds(begin: datetime, end: datetime) -> int:
    return max(0, round((end - begin).total_seconds()))
