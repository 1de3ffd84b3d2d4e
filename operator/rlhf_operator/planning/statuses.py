"""A job's status as a whole: its stages, whether it is over, and how it is opened again.

Called by `plan` and by all that read a status. Pure.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta

from rlhf_api.names import ConditionType, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJobStatus, StageStatus, StageStatuses
from rlhf_operator.planning.conditions import find_condition, is_true
from rlhf_operator.planning.stages import CLOSED, is_known


def is_finished(status: RLHFJobStatus) -> bool:
    """Whether the job has succeeded or failed.

    Nothing but a person's wish changes that, see `reopened`.
    """
    kinds = (ConditionType.SUCCEEDED, ConditionType.FAILED)
    return any(is_true(status.conditions, kind) for kind in kinds)


def is_open(stage: StageStatus) -> bool:
    """Whether anything may be decided about the stage."""
    return is_known(stage) and stage.state not in CLOSED


def stages_of(status: RLHFJobStatus) -> dict[StageName, StageStatus]:
    """The stages that have a status."""
    found = {name: getattr(status.stages, name) for name in StageName}
    return {name: stage for name, stage in found.items() if stage is not None}


def with_stages(status: RLHFJobStatus, stages: Mapping[StageName, StageStatus]) -> StageStatuses:
    """The stages in the place of those of `status`; what a newer operator has there stays."""
    changes = {name.value: stages.get(name) for name in StageName}
    return status.stages.model_copy(update=changes)


def with_idle_time(status: RLHFJobStatus, idle: timedelta) -> RLHFJobStatus:
    """The status in which the job, and every stage that has begun, was `idle` for so much longer.

    Start times stay what they were: a stage that is done would else have begun before its job.
    """
    seconds = max(0, round(idle.total_seconds()))
    stages = {
        name: stage.model_copy(update={"idle_seconds": stage.idle_seconds + seconds})
        if is_open(stage) and stage.start_time is not None
        else stage
        for name, stage in stages_of(status).items()
    }
    total = status.idle_seconds + (seconds if status.start_time is not None else 0)
    return status.model_copy(update={"idle_seconds": total, "stages": with_stages(status, stages)})


def reopened(status: RLHFJobStatus, now: datetime) -> RLHFJobStatus:
    """The status in which no stage has failed and all restarts are there again.

    Attempts go on counting, so that checkpoints are found and no folder is used twice. Deadlines
    and `secondsTotal` leave out the time in which the job, or a stage, lay still.
    """
    failed = find_condition(status.conditions, ConditionType.FAILED)
    rested = with_idle_time(status, now - failed.last_transition_time if failed else timedelta())
    return rested.model_copy(
        update={
            "stages": with_stages(rested, reopened_stages(stages_of(rested), now)),
            "conditions": tuple(each for each in status.conditions if each is not failed),
            "completion_time": None,
        }
    )


def reopened_stages(
    stages: Mapping[StageName, StageStatus], now: datetime
) -> dict[StageName, StageStatus]:
    """The same of a job's stages; those that have succeeded stay as they are."""
    return {
        name: stage
        if stage.state is StageState.SUCCEEDED
        else _reopened(stage.model_copy(update={"restarts": 0, "disruptions": 0}), now)
        for name, stage in stages.items()
    }


def _reopened(stage: StageStatus, now: datetime) -> StageStatus:
    if stage.state is not StageState.FAILED:
        return stage
    # One that never began has no clock.
    still = now - (stage.completion_time or now) if stage.start_time else timedelta()
    return stage.model_copy(
        update={
            "state": StageState.SUSPENDED if stage.attempt else StageState.WAITING,
            "idle_seconds": stage.idle_seconds + max(0, round(still.total_seconds())),
            "completion_time": None,
            "reason": Reason.USER_REQUESTED,
            "message": "to be tried again on request",
        }
    )
