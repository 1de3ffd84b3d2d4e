"""What people are told of a job: conditions, phase, summary and Events, derived from its stages.

Called by `plan` at the end of every pass. Pure, and nothing here is ever read back by a decision
but the conditions Suspended, Succeeded and Failed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rlhf_api.names import ConditionType, Metric, Phase, Reason, StageName, StageState
from rlhf_api.v1alpha1 import Condition, RLHFJob, RLHFJobStatus, StageStatus, Summary
from rlhf_operator.planning.conditions import Finding, find_condition, is_true, set_condition
from rlhf_operator.planning.stages import ACTIVE

Stages = Mapping[StageName, StageStatus]

_PENDING_REASONS = (
    Reason.UNSCHEDULABLE,
    Reason.IMAGE_PULL,
    Reason.QUEUED,
    Reason.QUOTA_EXCEEDED,
    Reason.FORBIDDEN,
)
_SHOWN_STATES = (*ACTIVE, StageState.RESTARTING)


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event, or a line of the local runner: told once, after the status is written."""

    type: Literal["Normal", "Warning"]
    reason: Reason
    message: str


def derive_conditions(
    job: RLHFJob, stages: Stages, *, live: bool, scrape_error: str, now: datetime
) -> tuple[Condition, ...]:
    """All conditions that follow from the stages; those of others stay as they are."""
    conditions = job.status.conditions
    findings = [*_findings(job, stages, live=live), *_admission(job, stages)]
    ended = any(each.reason is Reason.FINISHED for each in findings)
    reported = find_condition(conditions, ConditionType.PROGRESS_REPORTING) is not None
    findings += _reporting(stages, scrape_error, ended=ended and reported)
    for finding in findings:
        conditions = set_condition(conditions, finding, now, job.metadata.generation)
    return conditions


def derive_phase(conditions: tuple[Condition, ...], stages: Stages) -> Phase:
    """The job in one word."""
    for kind, phase in (
        (ConditionType.SUCCEEDED, Phase.SUCCEEDED),
        (ConditionType.FAILED, Phase.FAILED),
        (ConditionType.SUSPENDED, Phase.SUSPENDED),
    ):
        if is_true(conditions, kind):
            return phase
    states = {stage.state for stage in stages.values()}
    if states & {StageState.RUNNING, StageState.STOPPING}:
        return Phase.RUNNING
    if StageState.RESTARTING in states:
        return Phase.RESTARTING
    return Phase.RUNNING if StageState.SUCCEEDED in states else Phase.PENDING


def derive_summary(conditions: tuple[Condition, ...], stages: Stages) -> Summary:
    """The short texts that printer columns show."""
    shown = _shown(stages)
    ppo = stages.get(StageName.PPO)
    metrics = (ppo.metrics if ppo is not None else None) or {}
    percents = [stage.progress.percent for stage in shown.values() if stage.progress is not None]
    return Summary(
        stage=",".join(shown),
        progress=",".join(f"{percent}%" for percent in percents),
        restarts=str(sum(stage.restarts for stage in stages.values())),
        reward=_number(metrics.get(Metric.REWARD), ".2f"),
        kl=_number(metrics.get(Metric.KL), ".2f"),
        critic_loss=_number(metrics.get(Metric.CRITIC_LOSS), ".3g"),
        reason=_explaining_reason(conditions),
    )


def derive_events(old: RLHFJobStatus, new: RLHFJobStatus) -> Iterator[Event]:
    """One Event for each transition from `old` to `new`."""
    for name in StageName:
        before, after = getattr(old.stages, name), getattr(new.stages, name)
        if after is not None:
            yield from _stage_events(name, before or StageStatus(state=StageState.WAITING), after)
    for kind in (ConditionType.SUSPENDED, ConditionType.SUCCEEDED, ConditionType.FAILED):
        after_turn = find_condition(new.conditions, kind)
        if after_turn is None or is_true(old.conditions, kind) == (after_turn.status == "True"):
            continue
        severe = kind is ConditionType.FAILED
        yield Event("Warning" if severe else "Normal", after_turn.reason, after_turn.message)


def _findings(job: RLHFJob, stages: Stages, *, live: bool) -> Iterator[Finding]:
    states = [stage.state for stage in stages.values()]
    yield Finding(ConditionType.ACCEPTED, "True", Reason.VALID, "the spec is valid")
    failed = {name: stage for name, stage in stages.items() if stage.state is StageState.FAILED}
    if all(state is StageState.SUCCEEDED for state in states):
        message = "all stages are complete"
        yield Finding(ConditionType.SUCCEEDED, "True", Reason.STAGES_COMPLETE, message)
        yield Finding(ConditionType.RUNNING, "False", Reason.FINISHED, message)
        return
    resting = not live and not any(state in _SHOWN_STATES for state in states)
    if failed and resting:
        message = "; ".join(f"stage {name}: {stage.message}" for name, stage in failed.items())
        first = next(iter(failed.values()))
        yield Finding(ConditionType.FAILED, "True", first.reason or Reason.CRASHED, message)
        yield Finding(ConditionType.RUNNING, "False", Reason.FINISHED, "the job failed")
        return
    suspended = job.spec.suspend and resting
    if suspended:
        message = "suspended on request; it goes on from the last checkpoints"
        yield Finding(ConditionType.SUSPENDED, "True", Reason.USER_REQUESTED, message)
    elif is_true(job.status.conditions, ConditionType.SUSPENDED):
        yield Finding(ConditionType.SUSPENDED, "False", Reason.RESUMED, "resumed")
    yield _running(stages, suspended=suspended)


def _admission(job: RLHFJob, stages: Stages) -> Iterator[Finding]:
    """Whether Kueue lets the job's attempts run; nothing is said of a job without a queue."""
    if job.spec.queue_name is None:
        return
    begun = (StageState.STARTING, StageState.RUNNING)
    # While the reason is Created nobody has seen the attempt yet.
    seen = [s for s in stages.values() if s.state in begun and s.reason is not Reason.CREATED]
    queued = [stage for stage in seen if stage.reason is Reason.QUEUED]
    if queued:
        yield Finding(ConditionType.ADMITTED, "False", Reason.QUEUED, queued[0].message or "")
    elif seen:
        message = f"queue {job.spec.queue_name} let it run"
        yield Finding(ConditionType.ADMITTED, "True", Reason.ADMITTED, message)


def _reporting(stages: Stages, error: str, *, ended: bool) -> Iterator[Finding]:
    """Whether running attempts say how far they are; nothing is said while none runs."""
    running = [stage for stage in stages.values() if stage.state is StageState.RUNNING]
    kind = ConditionType.PROGRESS_REPORTING
    if ended:
        yield Finding(kind, "False", Reason.FINISHED, "nothing runs any more")
    elif error and running:
        yield Finding(kind, "False", Reason.UNREACHABLE, error)
    elif any(stage.progress is not None for stage in running):
        yield Finding(kind, "True", Reason.FRESH, "progress is read from rank 0")


def _running(stages: Stages, *, suspended: bool) -> Finding:
    def holders(state: StageState) -> dict[StageName, StageStatus]:
        return {name: stage for name, stage in stages.items() if stage.state is state}

    def finding(status: Literal["True", "False"], reason: Reason, found: Stages) -> Finding:
        message = "; ".join(f"stage {name}: {stage.message}" for name, stage in found.items())
        return Finding(ConditionType.RUNNING, status, reason, message)

    if suspended:
        return Finding(ConditionType.RUNNING, "False", Reason.STOPPING, "suspended")
    if found := holders(StageState.RUNNING):
        return finding("True", Reason.PODS_READY, found)
    if found := holders(StageState.STOPPING):
        return finding("False", Reason.STOPPING, found)
    if found := holders(StageState.RESTARTING):
        return finding("False", Reason.RESTARTING, found)
    if found := holders(StageState.STARTING):
        told = next(iter(found.values())).reason
        pending = told if told in _PENDING_REASONS else Reason.PODS_PENDING
        return finding("False", pending or Reason.PODS_PENDING, found)
    return finding("False", Reason.WAITING_FOR_STAGE, holders(StageState.WAITING))


def _shown(stages: Stages) -> dict[StageName, StageStatus]:
    """The stages that run now, else the one that ended last."""
    now = {name: stage for name, stage in stages.items() if stage.state in _SHOWN_STATES}
    if now:
        return now
    begun = {name: stage for name, stage in stages.items() if stage.attempt_start_time is not None}
    failed = {name: stage for name, stage in begun.items() if stage.state is StageState.FAILED}
    last = list((failed or begun).items())[-1:]
    return dict(last)


def _explaining_reason(conditions: tuple[Condition, ...]) -> str:
    kinds = (ConditionType.FAILED, ConditionType.SUCCEEDED, ConditionType.SUSPENDED)
    found = [find_condition(conditions, kind) for kind in (*kinds, ConditionType.RUNNING)]
    holding = [each for each in found if each is not None and each.status == "True"]
    refused = find_condition(conditions, ConditionType.CHILDREN_READY)
    if refused is not None and refused.status == "False" and not holding:
        return str(refused.reason)
    explaining = holding or [each for each in found if each is not None][-1:]
    return str(explaining[0].reason) if explaining else ""


def _stage_events(name: StageName, before: StageStatus, after: StageStatus) -> Iterator[Event]:
    if after.attempt != before.attempt:
        yield Event("Normal", Reason.CREATED, f"stage {name}: attempt {after.attempt} starts")
    if after.state is before.state or after.state in (StageState.WAITING, StageState.STARTING):
        return
    severe = after.state in (StageState.FAILED, StageState.RESTARTING)
    reason = Reason.STOPPING if after.state is StageState.STOPPING else after.reason
    yield Event(
        "Warning" if severe else "Normal",
        reason or Reason.STOPPED,
        f"stage {name}: {after.message or after.state}",
    )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
