"""What becomes of one stage: how its status follows from what is seen of its current attempt.

Called by `plan`, which looks at all stages together. Pure. The state of a stage says what was
decided about attempt number `attempt`, so that nothing is decided, or counted, twice:

    Waiting -> Starting -> Running -> Succeeded
                  |           |----> Starting (held back, the same attempt)
                  |           |----> Restarting -> Starting (next attempt)
                  |           |----> Stopping -> Suspended or Restarting
                  +-----------+----> Failed (Suspended or Waiting again on a person's wish)
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from rlhf_api.names import FailureClass, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RunPolicy, StageArtifact, StageResult, StageStatus
from rlhf_api.v1alpha1.bounds import bounded_text
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH
from rlhf_operator.planning.beside import of_deletion, with_beside, without_log
from rlhf_operator.planning.clocks import (
    idle_seconds,
    is_held,
    is_past,
    pending_since,
    with_holds,
)
from rlhf_operator.planning.failures import (
    Verdict,
    backoff,
    disruption_of,
    judge,
    last_checkpoint_step,
)
from rlhf_operator.planning.guardrails import broken_rules, rules_at_success, tells_rules
from rlhf_operator.planning.hindrances import hindrance
from rlhf_operator.planning.observed import ObservedAttempt, ProcessPhase, Refusal
from rlhf_operator.planning.progress import progress_of, status_metrics
from rlhf_operator.planning.requeued import requeued
from rlhf_operator.planning.rows import rows_told

CLOSED = frozenset({StageState.SUCCEEDED, StageState.FAILED})
"""Nothing changes any more but by a person's wish, see `statuses.reopened`."""
ACTIVE = frozenset({StageState.STARTING, StageState.RUNNING, StageState.STOPPING})
"""The current attempt is, or may be, there; in all other states it was dealt with."""

DISRUPTION_PAUSE = timedelta(seconds=1)


@dataclass(frozen=True)
class Case:
    """One stage at one moment.

    Attributes:
        name: the stage.
        folder: name of the job's folder below storage, where its artifacts must lie.
        policy: the job's limits.
        now: the time, in whole seconds.
        refusal: what the last try to make or delete the current attempt was refused with.
    """

    name: StageName
    folder: str
    policy: RunPolicy
    now: datetime
    refusal: Refusal | None = None


def absorb(stage: StageStatus, attempt: ObservedAttempt | None, case: Case) -> StageStatus:
    """The status after looking at the current attempt; None stands for one that is not there."""
    if not is_known(stage) or is_unconfirmed(stage, attempt):
        return stage
    if attempt is not None and attempt.unread:
        return stage
    stage = requeued(stage, attempt, case.now)
    stage = with_holds(stage, attempt, case.now, refused=case.refusal is not None)
    if stage.state in ACTIVE:
        stage = _settle(stage, attempt, case)
        if attempt is not None and stage.state not in ACTIVE:
            stage = with_beside(stage, attempt)
    return _within_deadlines(stage, attempt, case)


def is_known(stage: StageStatus) -> bool:
    """Whether the stage's state is one that this release knows; of others it keeps its hands."""
    return isinstance(stage.state, StageState)


def is_unconfirmed(stage: StageStatus, attempt: ObservedAttempt | None) -> bool:
    """Whether a verdict on the attempt would rest on processes that may just not be seen yet."""
    if attempt is None or attempt.confirmed or stage.state not in ACTIVE:
        return False
    processes = attempt.processes
    if attempt.complete:
        results = [each.result for each in processes if each.phase is ProcessPhase.SUCCEEDED]
        told = [result for result in results if result is not None]
        artifact = any(result.artifact is not None for result in told)
        return len(told) < len(processes) or not artifact
    if attempt.over and attempt.live:
        return True
    judged = attempt.failed or stage.state is StageState.STOPPING
    return judged and not attempt.live and not any(process.failed for process in processes)


def begin(stage: StageStatus, config_digest: str, now: datetime) -> StageStatus:
    """The status that announces the next attempt; must be written before the attempt is made."""
    attempt = stage.attempt + 1
    # The step stays for people to see; the time left was the last attempt's guess.
    progress = stage.progress and stage.progress.model_copy(update={"eta_seconds": None})
    return _changed(
        stage,
        state=StageState.STARTING,
        attempt=attempt,
        start_time=stage.start_time or now,
        attempt_start_time=now,
        pending_since=None,
        retry_time=None,
        config_digest=config_digest,
        disruption=None,
        disruption_reason=None,
        progress=progress,
        reason=Reason.CREATED,
        message=f"attempt {attempt} is being started",
    )


def halt(
    stage: StageStatus, attempt: ObservedAttempt | None, reason: Reason, message: str
) -> StageStatus:
    """The status of a stage that is not to run now, for the reason that is given.

    Args:
        stage: not closed.
        attempt: the current one; None if it is not there.
        reason: why the stage is not to run.
        message: the same in a sentence.
    """
    started = stage.state in (StageState.STARTING, StageState.RUNNING)
    if started and attempt is not None and attempt.live:
        return _changed(stage, state=StageState.STOPPING, reason=reason, message=message)
    unmade = stage.state is StageState.STARTING and attempt is None
    if unmade or stage.state is StageState.RESTARTING:
        return _changed(
            stage, state=StageState.SUSPENDED, reason=reason, message=message, retry_time=None
        )
    return stage


def fail(stage: StageStatus, reason: Reason, message: str, now: datetime) -> StageStatus:
    """The status of a stage that has failed for good."""
    return _changed(
        stage,
        state=StageState.FAILED,
        reason=reason,
        message=message,
        completion_time=now,
        retry_time=None,
    )


def _settle(stage: StageStatus, attempt: ObservedAttempt | None, case: Case) -> StageStatus:
    refusal = case.refusal
    if attempt is not None and attempt.complete:
        return _accept(_with_progress(stage, attempt, case.now), attempt, case)
    if refusal is not None and refusal.final:
        return fail(stage, refusal.reason, refusal.message, case.now)
    if attempt is None:
        return _absent(stage, case)
    stage = _with_progress(stage, attempt, case.now)
    if attempt.ready and not attempt.failed and disruption_of(attempt) is None:
        # The whole gang runs: whoever was about to end something has thought better of it.
        stage = _changed(stage, disruption=None, disruption_reason=None)
    elif stage.disruption is None and (found := disruption_of(attempt)) is not None:
        # The pod that shows it may be gone a moment later.
        stage = _changed(stage, disruption_reason=found[0], disruption=found[1])
    verdict = judge(attempt, case.now, stage)
    if verdict is not None and verdict.failure is FailureClass.GUARDRAIL:
        stage = _changed(stage, guardrail_attempt=attempt.attempt)
        if not verdict.final:
            return _guarded(stage, attempt, verdict, case)
    if stage.state is StageState.STOPPING and not (verdict and verdict.final):
        return stage if attempt.live else _stopped(stage, case)
    if verdict is not None:
        return _failed(stage, verdict, case)
    return _started(stage, attempt, case.now)


def _absent(stage: StageStatus, case: Case) -> StageStatus:
    """The attempt is not made yet, or is gone."""
    if stage.state is StageState.STARTING:
        refusal = case.refusal
        if refusal is None:
            return stage
        return _changed(stage, reason=refusal.reason, message=refusal.message)
    if stage.state is StageState.STOPPING:
        return _stopped(stage, case)
    message = f"attempt {stage.attempt} is gone: it was deleted from outside"
    return _restart(stage, Reason.DISRUPTED, message, case, counted=True)


def _started(stage: StageStatus, attempt: ObservedAttempt, now: datetime) -> StageStatus:
    if stage.state is not StageState.STARTING:
        return stage
    if attempt.ready:
        return _changed(
            stage,
            state=StageState.RUNNING,
            last_progress_time=now,
            reason=Reason.PODS_READY,
            message=f"attempt {attempt.attempt} runs",
        )
    reason, message = hindrance(stage, attempt)
    return _changed(stage, reason=reason, message=message)


def _with_progress(stage: StageStatus, attempt: ObservedAttempt, now: datetime) -> StageStatus:
    changes: dict[str, Any] = {"created_attempt": attempt.attempt}
    newest = last_checkpoint_step(attempt)
    if newest is not None:
        changes["last_checkpoint_step"] = newest
    changes["verdicts"] = broken_rules(stage, attempt)
    changes["rows"] = rows_told(stage, attempt)
    told = attempt.progress
    # What was told before a queue took its pods away is no estimate any more.
    waits = stage.state is StageState.STARTING and not attempt.ready
    if told is not None or tells_rules(attempt):
        changes["reported_attempt"] = attempt.attempt
        if stage.reported_attempt not in (None, attempt.attempt):
            # Another attempt's.
            changes["metrics"] = None
    if told is not None:
        changes["progress"] = progress_of(
            stage.progress,
            told.step,
            told.total_steps,
            None if waits else told.eta_seconds,
        )
        if told.metrics:
            changes["metrics"] = status_metrics(told.metrics)
        if stage.progress is None or stage.progress.step != told.step:
            changes["last_progress_time"] = now
    return _changed(stage, **changes)


def _accept(stage: StageStatus, attempt: ObservedAttempt, case: Case) -> StageStatus:
    ordered = sorted(attempt.processes, key=lambda process: process.index)
    results = [process.result for process in ordered if process.result is not None]
    unread = next((process for process in ordered if process.reason is not None), None)
    if not results and unread is not None:
        return fail(stage, unread.reason or Reason.CRASHED, unread.message, case.now)
    if not results:
        # The next attempt finds the work done and only says so again.
        text = next((f": {each.message}" for each in ordered if each.message), "")
        message = f"attempt {attempt.attempt} ended well, but its result is lost{text}"
        patient, counted = any(each.patient for each in ordered), bool(attempt.processes)
        why = Reason.ARTIFACT_INVALID
        return _restart(stage, why, message, case, counted=counted, patient=patient)
    mismatch = _mismatch(stage, results, case)
    if mismatch is not None:
        message = f"attempt {attempt.attempt} ended well, but {mismatch}"
        return fail(stage, Reason.ARTIFACT_INVALID, message, case.now)
    said = results[0]
    steps = max(said.step, said.total_steps)
    artifact = next(result.artifact for result in results if result.artifact is not None)
    return _changed(
        stage,
        state=StageState.SUCCEEDED,
        completion_time=case.now,
        artifact=StageArtifact(uri=artifact.uri, digest=artifact.digest),
        reported_attempt=stage.attempt,
        progress=progress_of(stage.progress, said.step, steps, 0) if steps else stage.progress,
        metrics=status_metrics(said.metrics) or stage.metrics,
        verdicts=rules_at_success(stage, case.name, said),
        reason=Reason.FINISHED,
        message=said.message or "done",
    )


def _mismatch(stage: StageStatus, results: list[StageResult], case: Case) -> str | None:
    """What in the results does not belong to this attempt of this stage."""
    for result in results:
        if (result.stage, result.attempt) != (case.name, stage.attempt):
            return f"its result is of stage {result.stage}, attempt {result.attempt}"
        if result.config_digest != stage.config_digest:
            return (
                f"its result is of configuration {result.config_digest}, not "
                f"{stage.config_digest}; use a trainer image and an operator of one release"
            )
    artifacts = {result.artifact for result in results if result.artifact is not None}
    if len(artifacts) != 1:
        return f"its results name {len(artifacts)} artifacts in place of one"
    uri = artifacts.pop().uri
    form = rf"{re.escape(case.folder)}/{case.name}/attempt-(\d+)/artifact"
    place = re.fullmatch(form, uri)
    if place is None or not 1 <= int(place[1]) <= stage.attempt:
        return f"its artifact {uri} does not lie in a folder of this stage"
    return None


def _stopped(stage: StageStatus, case: Case) -> StageStatus:
    """The attempt that was asked to stop is over."""
    if stage.reason is Reason.PROGRESS_DEADLINE_EXCEEDED:
        reason = Reason.PROGRESS_DEADLINE_EXCEEDED
        return _restart(stage, reason, stage.message or "", case, counted=True)
    return _changed(stage, state=StageState.SUSPENDED, disruptions=stage.disruptions + 1)


def _guarded(
    stage: StageStatus, attempt: ObservedAttempt, verdict: Verdict, case: Case
) -> StageStatus:
    """A guardrail has ended the attempt, which is not to go on before a person says so."""
    told = _changed(stage, reason=verdict.reason, message=verdict.message)
    return _changed(told, state=StageState.STOPPING) if attempt.live else _stopped(told, case)


def _failed(stage: StageStatus, verdict: Verdict, case: Case) -> StageStatus:
    if verdict.final:
        return fail(stage, verdict.reason, verdict.message, case.now)
    reason, message, counted = verdict.reason, verdict.message, verdict.counted
    return _restart(stage, reason, message, case, counted=counted, patient=verdict.patient)


def _restart(
    stage: StageStatus,
    reason: Reason,
    message: str,
    case: Case,
    *,
    counted: bool,
    patient: bool = False,
) -> StageStatus:
    policy = case.policy
    if counted and stage.restarts >= policy.max_restarts:
        limit = f"runPolicy.maxRestarts {policy.max_restarts} is used up"
        return fail(stage, Reason.MAX_RESTARTS, f"{message} ({limit})", case.now)
    if not counted and stage.disruptions >= policy.max_disruptions:
        limit = f"runPolicy.maxDisruptions {policy.max_disruptions} is used up"
        return fail(stage, Reason.MAX_DISRUPTIONS, f"{message} ({limit})", case.now)
    restarts = stage.restarts + counted
    return _changed(
        stage,
        state=StageState.RESTARTING,
        restarts=restarts,
        disruptions=stage.disruptions + (not counted),
        retry_time=case.now + (backoff(restarts, patient=patient) if counted else DISRUPTION_PAUSE),
        reason=reason,
        message=message,
    )


def _within_deadlines(
    stage: StageStatus, attempt: ObservedAttempt | None, case: Case
) -> StageStatus:
    policy, now = case.policy, case.now
    if stage.state in CLOSED or stage.state in (StageState.SUSPENDED, StageState.STOPPING):
        return stage
    idle = idle_seconds(stage, now)
    if is_past(stage.start_time, policy.stage_deadline_seconds, now, idle):
        message = (
            f"took longer than runPolicy.stageDeadlineSeconds ({policy.stage_deadline_seconds}); "
            f"raise it{of_deletion(attempt, 'it would run on')}"
        )
        return fail(stage, Reason.DEADLINE_EXCEEDED, message, now)
    starting, running = (stage.state is s for s in (StageState.STARTING, StageState.RUNNING))
    pending = starting and not is_held(attempt)
    if pending and is_past(pending_since(stage), policy.pending_deadline_seconds, now):
        message = (
            f"attempt {stage.attempt} did not run within runPolicy.pendingDeadlineSeconds "
            f"({policy.pending_deadline_seconds}): {without_log(stage.message)}"
        )
        return fail(stage, Reason.PENDING_DEADLINE_EXCEEDED, message, now)
    if running and is_past(stage.last_progress_time, policy.progress_deadline_seconds, now):
        return _changed(
            stage,
            state=StageState.STOPPING,
            reason=Reason.PROGRESS_DEADLINE_EXCEEDED,
            message=f"no further step within runPolicy.progressDeadlineSeconds "
            f"({policy.progress_deadline_seconds})" + of_deletion(attempt, "it would hang on"),
        )
    return stage


def _changed(stage: StageStatus, **changes: Any) -> StageStatus:
    for field in ("message", "disruption"):
        if changes.get(field):
            changes[field] = bounded_text(changes[field], MAX_MESSAGE_LENGTH)
    return stage.model_copy(update=changes)
