"""The one decision: from a job, what is seen of it and the time, to what is to be done.

Called by the operator in every reconcile, and by `rlhf run` in every pass. Pure: nothing is read,
waited for or started here. The caller writes `Plan.status` first, and only then carries out
`Plan.actions` and tells `Plan.events`; a crash between any two of them is made good by the next
pass, since an attempt that status names and nobody sees is started again under the same name.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from rlhf_api.names import ConditionType, Reason, StageName, StageState
from rlhf_api.v1alpha1 import (
    Artifact,
    JobReference,
    RLHFJob,
    RLHFJobStatus,
    StageStatus,
    stage_order,
)
from rlhf_operator.planning.actions import Action, StopAttempt, actions_of, is_unmade
from rlhf_operator.planning.beside import of_deletion
from rlhf_operator.planning.clocks import (
    idle_seconds,
    is_past,
    roused,
    with_job_idle,
    without_guardrail,
)
from rlhf_operator.planning.conditions import find_condition, is_true, of_generation
from rlhf_operator.planning.configs import Configs, Placement
from rlhf_operator.planning.events import Event, derive_events
from rlhf_operator.planning.guardrails import (
    awaits_resume,
    is_failed_by_guardrail,
    resumed,
)
from rlhf_operator.planning.looks import expiry, next_change
from rlhf_operator.planning.observed import Observed
from rlhf_operator.planning.removal import surplus
from rlhf_operator.planning.stages import (
    ACTIVE,
    Case,
    absorb,
    begin,
    fail,
    halt,
    is_unconfirmed,
)
from rlhf_operator.planning.statuses import (
    is_finished,
    is_open,
    reopened,
    reopened_stages,
    stages_of,
    with_idle_time,
    with_stages,
)
from rlhf_operator.planning.summaries import (
    derive_conditions,
    derive_phase,
    derive_summary,
    is_suspended,
    with_children,
)


@dataclass(frozen=True)
class Plan:
    """What follows from a pass.

    Attributes:
        actions: to be carried out in order, after the status is written; each may be repeated.
        status: to be written, unless it is the one that the job has.
        events: to be told after the status is written.
        look_at: when the job must be looked at again though nothing changes; None stands for never.
        unconfirmed: attempts whose processes must be listed before anything follows from one that
            is not there.
    """

    actions: tuple[Action, ...]
    status: RLHFJobStatus
    events: tuple[Event, ...] = ()
    look_at: datetime | None = None
    unconfirmed: tuple[tuple[StageName, int], ...] = ()


def plan(job: RLHFJob, observed: Observed, now: datetime, placement: Placement) -> Plan:
    """What is to be done about `job` now.

    Args:
        job: with its uid and its last written status.
        observed: what is there of it; must be at least as new as that status.
        now: the time, with its zone.
        placement: where its stages run.
    """
    now = now.astimezone(UTC).replace(microsecond=0)
    known = job.status
    if job.spec.suspend and is_failed_by_guardrail(stages_of(known)):
        # Whoever suspends what a guardrail failed may resume it.
        job = job.model_copy(update={"status": reopened(known, now)})
    elif is_finished(known):
        return _at_rest(job, observed, now)
    status = _without_suspension(job, now)
    status, stages = _absorbed(job, status, observed, now, placement)
    if job.spec.suspend and is_failed_by_guardrail(stages):
        stages = reopened_stages(stages, now)
    configs = Configs(job, _artifacts(stages), placement)
    decided = _decided(job, stages, observed, now, configs)
    status = with_job_idle(status, stages, decided, now)
    removed = surplus(decided, observed, job.spec.run_policy)
    actions = (*actions_of(decided, observed, configs), *removed)
    status = _told(job, status, decided, observed, now)
    return Plan(
        actions,
        status,
        tuple(derive_events(known, status)),
        _look_at(job, status, observed, now),
        tuple(_unconfirmed(stages, observed)),
    )


def _at_rest(job: RLHFJob, observed: Observed, now: datetime) -> Plan:
    """A finished job: nothing of it is to run, and every generation of its spec was looked at."""
    stages = stages_of(job.status)
    conditions = with_children(job.status.conditions, job, stages, observed, now)
    stops = tuple(
        StopAttempt(each.stage, each.attempt, Reason.FINISHED)
        for each in observed.attempts
        if each.occupied and not (each.stopping or each.disowned)
    )
    generation = job.metadata.generation
    status = job.status.model_copy(
        update={
            "observed_generation": generation,
            "conditions": of_generation(conditions, generation),
        }
    )
    removed = surplus(stages, observed, job.spec.run_policy)
    # Whoever was refused its deletion knows when to try again.
    end = expiry(job.spec.run_policy, status) if observed.expiry is None else None
    return Plan((*stops, *removed), status, look_at=end)


def _look_at(
    job: RLHFJob, status: RLHFJobStatus, observed: Observed, now: datetime
) -> datetime | None:
    if is_finished(status):
        return expiry(job.spec.run_policy, status)
    return next_change(job, status, observed, now)


def _unconfirmed(
    stages: Mapping[StageName, StageStatus], observed: Observed
) -> Iterator[tuple[StageName, int]]:
    for name, stage in stages.items():
        if is_unconfirmed(stage, observed.find(name, stage.attempt)):
            yield name, stage.attempt


def _without_suspension(job: RLHFJob, now: datetime) -> RLHFJobStatus:
    """The status that a resumed job goes on from."""
    suspended = find_condition(job.status.conditions, ConditionType.SUSPENDED)
    if _is_suspended(job) or suspended is None or suspended.status != "True":
        return job.status
    return with_idle_time(job.status, now - suspended.last_transition_time)


def _is_suspended(job: RLHFJob) -> bool:
    """Whether nothing of the job is to run, as its spec or its last status says."""
    held = any(awaits_resume(stage) for stage in stages_of(job.status).values())
    return job.spec.suspend or (held and is_true(job.status.conditions, ConditionType.SUSPENDED))


def _absorbed(
    job: RLHFJob, status: RLHFJobStatus, observed: Observed, now: datetime, placement: Placement
) -> tuple[RLHFJobStatus, dict[StageName, StageStatus]]:
    """The job's clock and its stages, in the order in which they run, after looking at attempts."""
    known = stages_of(status)
    folder = JobReference(name=job.metadata.name, uid=job.metadata.uid).folder
    stages = {}
    for name in stage_order(job.spec.stages):
        stage = known.get(name, StageStatus(state=StageState.WAITING))
        refusal = observed.refusals.get((name, stage.attempt))
        case = Case(name, folder, job.spec.run_policy, now, refusal)
        stages[name] = absorb(stage, observed.find(name, stage.attempt), case)
    status = with_job_idle(status, known, stages, now)
    unfinished = [name for name, stage in stages.items() if is_open(stage)]
    if not placement.storage:
        message = "spec.storage is missing; name a claim, for example pvc://claim/runs"
        for name in unfinished[:1]:
            stages[name] = fail(stages[name], Reason.INVALID_SPEC, message, now)
        return status, stages
    limit, idle = job.spec.run_policy.active_deadline_seconds, idle_seconds(status, now)
    if _is_suspended(job) or not is_past(status.start_time, limit, now, idle):
        return status, stages
    message = f"the job took longer than runPolicy.activeDeadlineSeconds ({limit}); raise it"
    begun = [name for name in unfinished if stages[name].state is not StageState.WAITING]
    # What has ended may have ended well, and the job with it.
    unconfirmed = {name for name, _ in _unconfirmed(stages, observed)}
    for name in [each for each in begun or unfinished[:1] if each not in unconfirmed]:
        found = observed.find(name, stages[name].attempt)
        told = message + of_deletion(found, "it would run on")
        stages[name] = fail(stages[name], Reason.DEADLINE_EXCEEDED, told, now)
    return status, stages


def _decided(
    job: RLHFJob,
    stages: dict[StageName, StageStatus],
    observed: Observed,
    now: datetime,
    configs: Configs,
) -> dict[StageName, StageStatus]:
    """The stages after starting those that can start, or halting all."""
    failed = [name for name, stage in stages.items() if stage.state is StageState.FAILED]
    decided = dict(stages)
    for name, stage in stages.items():
        attempt = observed.find(name, stage.attempt)
        if not is_open(stage) or is_unconfirmed(stage, attempt):
            continue
        if failed:
            because = f"stopped since stage {failed[0]} failed"
            decided[name] = halt(stage, attempt, Reason.STOPPED, because)
        elif job.spec.suspend:
            halted = halt(stage, attempt, Reason.USER_REQUESTED, "stopped on request")
            decided[name] = resumed(halted)
        elif not observed.occupied(name) and (
            _is_due(stage, now) or _is_outdated(name, stage, observed, configs)
        ):
            busy = _busy(configs.rivals(name), decided, observed)
            decided[name] = _begun(name, stage, now, configs, busy)
    suspended = is_suspended(job, decided, observed)
    return {name: _with_idle(stage, now, suspended) for name, stage in decided.items()}


def _with_idle(stage: StageStatus, now: datetime, suspended: bool) -> StageStatus:
    if awaits_resume(stage):
        return without_guardrail(stage, now, suspended=suspended)
    return stage if stage.state is StageState.STARTING else roused(stage, now)


def _is_due(stage: StageStatus, now: datetime) -> bool:
    if stage.state is StageState.RESTARTING:
        return stage.retry_time is None or now >= stage.retry_time
    waits = stage.state in (StageState.WAITING, StageState.SUSPENDED)
    return waits and not awaits_resume(stage)


def _is_outdated(name: StageName, stage: StageStatus, observed: Observed, configs: Configs) -> bool:
    """Whether the announced attempt is not made, and would now be made with another digest.

    Its result would be refused; so would that of an attempt under its number which is seen late.
    """
    if not is_unmade(name, stage, observed) or configs.missing(name):
        return False
    return configs.of(name, stage.attempt).config_digest != stage.config_digest


def _busy(
    rivals: Iterable[StageName], stages: Mapping[StageName, StageStatus], observed: Observed
) -> list[StageName]:
    """Those of `rivals` that run, or are about to."""
    return [
        name
        for name, stage in stages.items()
        if name in rivals and (stage.state in ACTIVE or observed.occupied(name))
    ]


def _begun(
    name: StageName, stage: StageStatus, now: datetime, configs: Configs, busy: list[StageName]
) -> StageStatus:
    """The stage at its next attempt, or waiting for the stages that it reads or that are `busy`."""
    missing = configs.missing(name)
    if busy and not missing and stage.state is not StageState.WAITING:
        return stage
    if missing or busy:
        waits = f"waits for {' and '.join(missing or busy)}"
        return stage.model_copy(
            update={
                "state": StageState.WAITING,
                "reason": Reason.WAITING_FOR_STAGE,
                "message": waits if missing else f"{waits} to leave the GPUs",
            }
        )
    return begin(stage, configs.of(name, stage.attempt + 1).config_digest, now)


def _artifacts(stages: Mapping[StageName, StageStatus]) -> dict[StageName, Artifact]:
    return {
        name: Artifact(uri=stage.artifact.uri, digest=stage.artifact.digest)
        for name, stage in stages.items()
        if stage.state is StageState.SUCCEEDED and stage.artifact is not None
    }


def _told(
    job: RLHFJob,
    status: RLHFJobStatus,
    stages: Mapping[StageName, StageStatus],
    observed: Observed,
    now: datetime,
) -> RLHFJobStatus:
    """The new status as a whole."""
    conditions = derive_conditions(job, stages, observed, now)
    starts = [stage.start_time for stage in stages.values() if stage.start_time is not None]
    updated = status.model_copy(
        update={
            "observed_generation": job.metadata.generation,
            "phase": derive_phase(conditions, stages),
            "start_time": status.start_time or min(starts, default=None),
            "conditions": conditions,
            "stages": with_stages(status, stages),
            "summary": status.summary.model_copy(update=derive_summary(conditions, stages)),
        }
    )
    if is_finished(updated):
        return updated.model_copy(update={"completion_time": now})
    return updated
