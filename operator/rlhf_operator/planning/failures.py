"""Why an attempt failed, and what follows from it.

Called by `stages` for an attempt that shows a failure. Pure; the table of exit codes stands in
`rlhf_api.names`, and what a verdict costs the stage is decided by the caller.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from rlhf_api.names import (
    DISRUPTIONS,
    REASON_OF_EXIT_CODE,
    ExitCode,
    FailureClass,
    Reason,
    failure_class,
)
from rlhf_api.v1alpha1 import StageStatus
from rlhf_operator.planning.guardrails import ending_verdict, guardrail_message, is_final
from rlhf_operator.planning.observed import ObservedAttempt, ObservedProcess

GANG_WAIT = timedelta(seconds=10)
"""How long after the first failure the others may take to tell more."""

BACKOFF_SECONDS = (2, 8, 60, 180, 300)
"""Before the first, the second, ... and any further counted restart: what passes by itself costs
little, and of three restarts in a row that cannot help the last begins more than a minute after the
first."""
PATIENT_SECONDS = (30, 120, 300)
"""The same where what trains has not run: what keeps it from that is still so a moment later."""

_CAUSES = (FailureClass.DISRUPTED, FailureClass.GUARDRAIL, FailureClass.USER_ERROR)
"""What does not follow from being killed."""

_STRENGTH = {kind: strength for strength, kind in enumerate(FailureClass)}


@dataclass(frozen=True)
class Verdict:
    """How an attempt's failure is judged.

    Attributes:
        failure: the class of the strongest evidence.
        reason: why it failed, in one word.
        message: the same in a sentence of whoever failed.
        final: whether no restart can help.
        counted: whether a restart counts against `runPolicy.maxRestarts`.
        patient: whether a restart soon cannot help.
    """

    failure: FailureClass
    reason: Reason
    message: str
    final: bool
    counted: bool
    patient: bool = False


def backoff(restarts: int, *, patient: bool = False) -> timedelta:
    """How long to wait before the counted restart number `restarts`, from 1."""
    pauses = PATIENT_SECONDS if patient else BACKOFF_SECONDS
    return timedelta(seconds=pauses[min(restarts, len(pauses)) - 1])


def judge(
    attempt: ObservedAttempt, now: datetime, written: StageStatus | None = None
) -> Verdict | None:
    """The verdict on a failed attempt; None while nothing failed, or others may tell more.

    Args:
        attempt: as it is seen.
        now: the time.
        written: the stage's status; knows what nobody can be asked for any more.
    """
    failed = [process for process in attempt.processes if process.failed]
    if not failed and (attempt.live or not attempt.failed):
        return None
    end = gang_wait_end(attempt)
    if end is not None and now < end:
        return None
    seen = any(process.disrupted for process in failed)
    if written is not None and written.disruption and not seen:
        return _disrupted(attempt, written, written.disruption)
    if not failed:
        return _without_evidence(attempt)
    evidence = [process for process in failed if _is_evidence(process, attempt)]
    found = _verdict(attempt, min(evidence or failed, key=_weight), written)
    crashed = found.failure is FailureClass.CRASH and any(map(_tells, evidence))
    if attempt.ended_by and found.failure not in _CAUSES and not crashed:
        # Who was asked to stop does not know why.
        return replace(found, reason=Reason.CHILD_ENDED, message=attempt.ended_by)
    return found


def gang_wait_end(attempt: ObservedAttempt) -> datetime | None:
    """Until when the rest of a gang that has begun to fail may tell more.

    None if nothing failed, nobody is left, or no failure has a time: the wait could never end.
    """
    failed = (process for process in attempt.processes if process.failed)
    times = [process.finished_at for process in failed if process.finished_at is not None]
    return min(times) + GANG_WAIT if times and attempt.live else None


def disruption_of(attempt: ObservedAttempt) -> tuple[Reason, str] | None:
    """Why and how the platform says that it ended, or is about to end, something of the attempt."""
    disrupted = [process for process in attempt.processes if process.disrupted]
    if not disrupted:
        return None
    first = min(disrupted, key=lambda process: process.index)
    return _reason_of(first), _message_of(first)


def made_progress(attempt: ObservedAttempt, written: StageStatus | None = None) -> bool:
    """Whether the attempt left a later checkpoint than it found."""
    told = [
        last_checkpoint_step(attempt),
        None if written is None else written.last_checkpoint_step,
    ]
    newest = max((step for step in told if step is not None), default=None)
    found = attempt.checkpoint_step
    return newest is not None and (found is None or newest > found)


def last_checkpoint_step(attempt: ObservedAttempt) -> int | None:
    """Step of the newest checkpoint that anything of the attempt tells of."""
    told = [
        process.result.last_checkpoint_step
        for process in attempt.processes
        if process.result is not None
    ]
    if attempt.progress is not None:
        told.append(attempt.progress.last_checkpoint_step)
    return max((step for step in told if step is not None), default=None)


def _is_evidence(process: ObservedProcess, attempt: ObservedAttempt) -> bool:
    """Whether the process failed by itself, not because the rest was killed."""
    if process.disrupted or attempt.killed_at is None or process.finished_at is None:
        return True
    if process.exit_code == ExitCode.GUARDRAIL:
        # Nothing that is killed ends so.
        return True
    return process.finished_at <= attempt.killed_at


def _tells(process: ObservedProcess) -> bool:
    told = (process.exit_code, process.reason, process.result, process.message or None)
    return any(each is not None for each in told)


def _class_of(process: ObservedProcess) -> FailureClass:
    if process.disrupted:
        return FailureClass.DISRUPTED
    if not process.exit_code:
        return FailureClass.CRASH
    kind = failure_class(process.exit_code)
    if kind is FailureClass.STOPPED and process.reason is Reason.STORAGE_EXCEEDED:
        # It was asked to stop for what it did itself, and will do again.
        return FailureClass.CRASH
    return kind


def _weight(process: ObservedProcess) -> tuple[float, bool, float, int]:
    """Sorts the strongest evidence first: by class, numbers that cannot be trusted before a
    guardrail, who tells its rule, a stop that saved, the time, the index."""
    kind = _class_of(process)
    strength: float = _STRENGTH[kind]
    if kind is FailureClass.USER_ERROR and process.exit_code == ExitCode.NUMERICS:
        strength = _STRENGTH[FailureClass.GUARDRAIL] - 0.5
    when = process.finished_at.timestamp() if process.finished_at is not None else float("inf")
    untold = kind is FailureClass.GUARDRAIL and ending_verdict(process) is None
    unsaved = process.exit_code == ExitCode.STOPPED
    return strength, untold or unsaved, when, process.index


def _verdict(
    attempt: ObservedAttempt, process: ObservedProcess, written: StageStatus | None
) -> Verdict:
    kind, reason = _class_of(process), _reason_of(process)
    if kind is FailureClass.GUARDRAIL:
        return _tripped(process)
    out_of_memory = reason is Reason.OUT_OF_MEMORY and _steps_done(attempt, written) == 0
    saved = kind is FailureClass.STOPPED and process.exit_code == ExitCode.STOPPED_WITH_CHECKPOINT
    free = kind is FailureClass.DISRUPTED or saved
    return Verdict(
        failure=kind,
        reason=reason,
        message=_message_of(process),
        final=kind is FailureClass.USER_ERROR or out_of_memory,
        counted=not (free and made_progress(attempt, written)),
        patient=process.patient and kind is FailureClass.CRASH,
    )


def _tripped(process: ObservedProcess) -> Verdict:
    """The verdict on an attempt that a guardrail ended."""
    told = ending_verdict(process)
    return Verdict(
        failure=FailureClass.GUARDRAIL,
        reason=Reason.GUARDRAIL,
        message=guardrail_message(told, _message_of(process)),
        final=is_final(told),
        counted=False,
    )


def _disrupted(attempt: ObservedAttempt, written: StageStatus, message: str) -> Verdict:
    """The verdict on an attempt that was disrupted by what is not there any more."""
    return Verdict(
        failure=FailureClass.DISRUPTED,
        reason=_of_disruptions(written.disruption_reason),
        message=message,
        final=False,
        counted=not made_progress(attempt, written),
    )


def _reason_of(process: ObservedProcess) -> Reason:
    if process.disrupted:
        return _of_disruptions(process.reason)
    if process.reason is not None:
        return process.reason
    if process.result is not None:
        return process.result.reason
    return REASON_OF_EXIT_CODE.get(process.exit_code or 0, Reason.CRASHED)


def _of_disruptions(reason: Reason | str | None) -> Reason:
    # Of a release that knows more causes, or of the local runner, which knows none.
    return Reason(reason) if reason in DISRUPTIONS else Reason.DISRUPTED


def _message_of(process: ObservedProcess) -> str:
    if process.disrupted:
        return process.message or f"{process.name} was disrupted"
    said = process.result.message if process.result is not None else ""
    if process.message or said:
        # Who was asked to stop does not know why.
        return process.message or said
    code = "no known exit code" if process.exit_code is None else f"exit code {process.exit_code}"
    return f"{process.name} ended with {code} and left no message; see its log"


def _steps_done(attempt: ObservedAttempt, written: StageStatus | None) -> int:
    told = [process.result.step for process in attempt.processes if process.result is not None]
    if attempt.progress is not None:
        told.append(attempt.progress.step)
    if written is not None and written.progress is not None:
        told.append(written.progress.step)
    return max(told, default=0)


def _without_evidence(attempt: ObservedAttempt) -> Verdict:
    message = f"attempt {attempt.attempt} failed, and nothing of it is left that says why"
    return Verdict(
        failure=FailureClass.CRASH,
        reason=Reason.CHILD_ENDED if attempt.ended_by else Reason.CRASHED,
        message=attempt.ended_by or message,
        final=False,
        counted=True,
    )
