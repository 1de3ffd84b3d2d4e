"""What people are told of a job: conditions, phase and summary, derived from its stages.

Called by `plan` at the end of every pass. Pure, and nothing here is ever read back by a decision
but the conditions Suspended, Succeeded and Failed.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal

from rlhf_api.metrics import Metric
from rlhf_api.names import ConditionType, Phase, Reason, StageName, StageState
from rlhf_api.v1alpha1 import Condition, RLHFJob, StageStatus
from rlhf_api.v1alpha1.status import MAX_TEXT_LENGTH
from rlhf_operator.planning.conditions import (
    Finding,
    find_condition,
    is_true,
    of_generation,
    set_condition,
)
from rlhf_operator.planning.guardrails import (
    RESUME,
    awaits_resume,
    guardrails_digest,
    health,
    is_failed_by_guardrail,
)
from rlhf_operator.planning.hindrances import UNHINDERED
from rlhf_operator.planning.observed import Observed, ObservedAttempt
from rlhf_operator.planning.removal import surplus
from rlhf_operator.planning.rows import rows_text
from rlhf_operator.planning.stages import ACTIVE, CLOSED

Stages = Mapping[StageName, StageStatus]
Attempts = Mapping[StageName, ObservedAttempt]

_MANY_DIGITS = 1e9
_NAMED_ODDITIES = 5
_SHOWN_STATES = (*ACTIVE, StageState.RESTARTING)
_RESTING_STATES = (*CLOSED, StageState.WAITING, StageState.SUSPENDED)


def is_suspended(job: RLHFJob, stages: Stages, observed: Observed) -> bool:
    """Whether nothing of the job runs, since a person or a guardrail has suspended it."""
    resting = _is_resting(stages, observed)
    if job.spec.suspend:
        return resting
    held = any(awaits_resume(stage) for stage in stages.values())
    return held and (resting or is_true(job.status.conditions, ConditionType.SUSPENDED))


def derive_conditions(
    job: RLHFJob, stages: Stages, observed: Observed, now: datetime
) -> tuple[Condition, ...]:
    """All conditions that follow from the stages; those of others stay as they are."""
    conditions, generation = job.status.conditions, job.metadata.generation
    attempts = {name: observed.find(name, stage.attempt) for name, stage in stages.items()}
    made = {name: found for name, found in attempts.items() if found is not None}
    findings = [*_findings(job, stages, observed)]
    admitted = find_condition(conditions, ConditionType.ADMITTED)
    findings += _admission(job, stages, made, findings, admitted)
    ended = any(each.reason is Reason.FINISHED for each in findings)
    reported = find_condition(conditions, ConditionType.PROGRESS_REPORTING)
    findings += _reporting(stages, made, reported, ended=ended)
    findings += [finding for finding in [health(stages)] if finding is not None]
    for finding in findings:
        conditions = set_condition(conditions, finding, now, generation)
    return of_generation(with_children(conditions, job, stages, observed, now), generation)


def with_children(
    conditions: tuple[Condition, ...],
    job: RLHFJob,
    stages: Stages,
    observed: Observed,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with what is to be said of children, which a finished job may still have."""
    told = find_condition(conditions, ConditionType.CHILDREN_READY)
    for finding in _children(job, stages, observed, told):
        conditions = set_condition(conditions, finding, now, job.metadata.generation)
    for finding in _intact(observed, find_condition(conditions, ConditionType.CHILDREN_INTACT)):
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
    starting = [stage for stage in stages.values() if stage.state is StageState.STARTING]
    # Of an attempt that was just announced nobody can say yet that it has to wait.
    if any(stage.reason is not Reason.CREATED for stage in starting):
        return Phase.PENDING
    return Phase.RUNNING if StageState.SUCCEEDED in states else Phase.PENDING


def derive_summary(conditions: tuple[Condition, ...], stages: Stages) -> dict[str, str]:
    """The short texts of `Summary`, which printer columns show."""
    shown = _shown(stages)
    ppo = stages.get(StageName.PPO)
    metrics = (ppo.metrics if ppo is not None else None) or {}
    return {
        "stage": ",".join(shown),
        "progress": ",".join(_percent(stage) for stage in shown.values()),
        "restarts": str(sum(stage.restarts for stage in stages.values())),
        "reward": _number(metrics.get(Metric.REWARD), ".2f"),
        "kl": _number(metrics.get(Metric.KL), ".2f"),
        "critic_loss": _number(metrics.get(Metric.CRITIC_LOSS), ".3g"),
        "rows": rows_text(stages)[:MAX_TEXT_LENGTH],
        "reason": _explaining_reason(conditions),
    }


def _is_resting(stages: Stages, observed: Observed) -> bool:
    """Whether nothing runs, or is about to."""
    live = any(observed.occupied(name) for name in stages)
    # A state that only a newer operator knows may be one in which something runs.
    return not live and all(stage.state in _RESTING_STATES for stage in stages.values())


def _findings(job: RLHFJob, stages: Stages, observed: Observed) -> Iterator[Finding]:
    states = [stage.state for stage in stages.values()]
    yield Finding(ConditionType.ACCEPTED, "True", Reason.VALID, "the spec is valid")
    failed = {name: stage for name, stage in stages.items() if stage.state is StageState.FAILED}
    if all(state is StageState.SUCCEEDED for state in states):
        message = "all stages are complete"
        yield Finding(ConditionType.SUCCEEDED, "True", Reason.STAGES_COMPLETE, message)
        yield Finding(ConditionType.RUNNING, "False", Reason.FINISHED, message)
        return
    if failed and _is_resting(stages, observed):
        message = _messages(failed) + (f"; {RESUME}" if is_failed_by_guardrail(failed) else "")
        first = next(iter(failed.values()))
        yield Finding(ConditionType.FAILED, "True", first.reason or Reason.CRASHED, message)
        yield Finding(ConditionType.RUNNING, "False", Reason.FINISHED, "the job failed")
        return
    suspended = is_suspended(job, stages, observed)
    if suspended:
        yield _suspended(stages)
    elif is_true(job.status.conditions, ConditionType.SUSPENDED):
        yield Finding(ConditionType.SUSPENDED, "False", Reason.RESUMED, "resumed")
    yield _running(job, stages, observed, suspended=suspended)


def _suspended(stages: Stages) -> Finding:
    held = {name: stage for name, stage in stages.items() if awaits_resume(stage)}
    if not held:
        message = "suspended on request; it goes on from the last checkpoints"
        return Finding(ConditionType.SUSPENDED, "True", Reason.USER_REQUESTED, message)
    message = f"{_messages(held)}; {RESUME}"
    return Finding(ConditionType.SUSPENDED, "True", Reason.GUARDRAIL, message)


def _admission(
    job: RLHFJob,
    stages: Stages,
    made: Attempts,
    findings: Sequence[Finding],
    told: Condition | None,
) -> Iterator[Finding]:
    """Whether Kueue lets the job's attempts run; nothing is said of a job without a queue."""
    if job.spec.queue_name is None:
        return
    begun = (StageState.STARTING, StageState.RUNNING)
    seen = [stages[name] for name in stages if name in made and stages[name].state in begun]
    queued = [stage for stage in seen if stage.reason is Reason.QUEUED]
    if queued:
        yield Finding(ConditionType.ADMITTED, "False", Reason.QUEUED, queued[0].message or "")
    elif seen:
        message = f"queue {job.spec.queue_name} let it run"
        yield Finding(ConditionType.ADMITTED, "True", Reason.ADMITTED, message)
    elif told is not None:
        yield from _unqueued(findings, told)


def _unqueued(findings: Sequence[Finding], told: Condition) -> Iterator[Finding]:
    """A job of which nothing stands in a queue, since it is suspended or over."""
    holding = {each.type: each for each in findings if each.status == "True"}
    kind, message = ConditionType.ADMITTED, "nothing of the job stands in its queue: it is"
    suspended = holding.get(ConditionType.SUSPENDED)
    if suspended is not None:
        yield Finding(kind, "False", suspended.reason, f"{message} suspended")
    elif told.status == "False" and holding.keys() & {
        ConditionType.SUCCEEDED,
        ConditionType.FAILED,
    }:
        yield Finding(kind, "False", Reason.FINISHED, f"{message} over")


def _reporting(
    stages: Stages, made: Attempts, told: Condition | None, *, ended: bool
) -> Iterator[Finding]:
    """Whether running attempts say how far they are; of those that are over nothing is said."""
    running = [
        name
        for name, stage in stages.items()
        if stage.state is StageState.RUNNING and name in made and made[name].live
    ]
    errors = [made[name].scrape_error for name in running if made[name].scrape_error]
    kind = ConditionType.PROGRESS_REPORTING
    if ended and told is not None:
        yield Finding(kind, "False", Reason.FINISHED, "nothing runs any more")
    elif errors:
        yield Finding(kind, "False", Reason.UNREACHABLE, errors[0])
    elif any(stages[name].progress is not None for name in running):
        yield Finding(kind, "True", Reason.FRESH, "progress is read from rank 0")
    elif told is not None and not any(s.state is StageState.RUNNING for s in stages.values()):
        yield Finding(kind, "Unknown", Reason.PODS_PENDING, "no attempt runs now")


def _children(
    job: RLHFJob, stages: Stages, observed: Observed, told: Condition | None
) -> Iterator[Finding]:
    """Whether all children that are wanted could be made, and what is to go could be deleted.

    Nothing is said in between.
    """
    kind = ConditionType.CHILDREN_READY
    wanted = [(name, stage.attempt) for name, stage in stages.items() if stage.state in ACTIVE]
    left = [(found.stage, found.attempt) for found in observed.attempts if found.occupied]
    removed = list(surplus(stages, observed, job.spec.run_policy))
    due = {*wanted, *left, *((each.stage, each.attempt) for each in removed)}
    refusals = sorted(observed.refusals.items(), key=lambda item: item[0])
    refusal = next((refusal for each, refusal in refusals if each in due), observed.expiry)
    if refusal is not None:
        yield Finding(kind, "False", refusal.reason, refusal.message)
    elif wanted and all(observed.find(*each) is not None for each in wanted):
        yield Finding(kind, "True", Reason.CREATED, "all children are made")
    elif not (wanted or left or removed) and told is not None and told.status == "False":
        yield Finding(kind, "True", Reason.CREATED, "no child is wanted now")


def _intact(observed: Observed, told: Condition | None) -> Iterator[Finding]:
    """What is odd among the children; nothing is said of a job where nothing ever was."""
    kind, found = ConditionType.CHILDREN_INTACT, observed.oddities
    if found:
        named = [odd.message for odd in found[:_NAMED_ODDITIES]]
        more = len(found) - len(named)
        message = "; ".join([*named, f"and {more} more"] if more else named)
        yield Finding(kind, "False", found[0].reason, f"left alone: {message}")
    elif told is not None and told.status == "False":
        yield Finding(kind, "True", Reason.INTACT, "all that carries the job's labels is its own")


def _running(job: RLHFJob, stages: Stages, observed: Observed, *, suspended: bool) -> Finding:
    def holders(state: StageState) -> dict[StageName, StageStatus]:
        return {name: stage for name, stage in stages.items() if stage.state is state}

    def finding(status: Literal["True", "False"], reason: Reason | str, found: Stages) -> Finding:
        message = _messages(found) + _outdated_guardrails(job, found, observed)
        return Finding(ConditionType.RUNNING, status, reason, message)

    if suspended:
        return Finding(ConditionType.RUNNING, "False", Reason.STOPPING, "suspended")
    if found := holders(StageState.RUNNING):
        return finding("True", Reason.PODS_READY, found)
    if found := holders(StageState.STOPPING):
        return finding("False", Reason.STOPPING, found)
    if found := holders(StageState.RESTARTING):
        return finding("False", next(iter(found.values())).reason or Reason.CRASHED, found)
    if found := holders(StageState.STARTING):
        hindered = (each.reason for each in found.values() if each.reason not in UNHINDERED)
        return finding("False", next(hindered, None) or Reason.PODS_PENDING, found)
    return finding("False", Reason.WAITING_FOR_STAGE, holders(StageState.WAITING))


def _messages(stages: Stages) -> str:
    return "; ".join(f"stage {name}: {stage.message}" for name, stage in stages.items())


def _outdated_guardrails(job: RLHFJob, stages: Stages, observed: Observed) -> str:
    """A clause for an attempt that was started with other guardrails than the job has now."""
    ppo = stages.get(StageName.PPO)
    attempt = None if ppo is None else observed.find(StageName.PPO, ppo.attempt)
    begun = None if attempt is None or not attempt.live else attempt.guardrails
    if begun is None or begun == guardrails_digest(job.spec.guardrails):
        return ""
    return "; spec.guardrails has changed, which holds from the next attempt on"


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


def _percent(stage: StageStatus) -> str:
    return "-" if stage.progress is None else f"{stage.progress.percent}%"


def _number(value: float | None, form: str) -> str:
    if value is None:
        return ""
    # All digits of one that went astray would be more than a short text can hold.
    return format(value, form if abs(value) < _MANY_DIGITS else ".3g")
