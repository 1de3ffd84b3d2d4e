"""A failed job that a person wants to go on. Called by `rlhf run --retry`; pure."""

from datetime import datetime, timedelta
from typing import Any

from rlhf_api.names import ConditionType, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJobStatus, StageStatus
from rlhf_operator.planning.conditions import find_condition
from rlhf_operator.planning.plan import with_idle_time


def retried(status: RLHFJobStatus, now: datetime) -> RLHFJobStatus:
    """The status in which no stage has failed and all restarts are there again.

    Attempts go on counting, so that checkpoints are found and no folder is used twice.
    """
    stages: dict[str, Any] = {}
    for name in StageName:
        stage = getattr(status.stages, name)
        if stage is not None and stage.state is StageState.FAILED:
            stages[name.value] = _reopened(stage)
    failed = find_condition(status.conditions, ConditionType.FAILED)
    reopened = status.model_copy(
        update={
            "stages": status.stages.model_copy(update=stages),
            "conditions": tuple(each for each in status.conditions if each is not failed),
            "completion_time": None,
        }
    )
    # Deadlines and `secondsTotal` leave out the time in which the job lay still.
    return with_idle_time(reopened, now - failed.last_transition_time if failed else timedelta())


def _reopened(stage: StageStatus) -> StageStatus:
    return stage.model_copy(
        update={
            "state": StageState.SUSPENDED if stage.attempt else StageState.WAITING,
            "restarts": 0,
            "disruptions": 0,
            "completion_time": None,
            "reason": Reason.USER_REQUESTED,
            "message": "to be tried again on request",
        }
    )
