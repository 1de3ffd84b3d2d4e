"""A failed job goes on with its next attempt and all restarts."""

from datetime import UTC, datetime, timedelta

from rlhf_api.names import ConditionType, Reason, StageState
from rlhf_api.v1alpha1 import Condition, RLHFJobStatus, StageStatus, StageStatuses
from rlhf_operator.planning.statuses import reopened

START = datetime(2026, 1, 1, tzinfo=UTC)
END = START + timedelta(minutes=10)
NOW = END + timedelta(hours=5)


def test_what_failed_is_opened_and_the_rest_stays() -> None:
    failed = Condition(
        type=ConditionType.FAILED,
        status="True",
        reason=Reason.MAX_RESTARTS,
        message="no",
        last_transition_time=END,
    )
    done = StageStatus(state=StageState.SUCCEEDED, attempt=1, restarts=1, start_time=START)
    lost = StageStatus(
        state=StageState.FAILED,
        attempt=4,
        restarts=3,
        disruptions=2,
        start_time=START,
        completion_time=END,
        last_checkpoint_step=40,
    )
    never = StageStatus(state=StageState.FAILED, completion_time=END)
    status = RLHFJobStatus(
        start_time=START,
        completion_time=END,
        conditions=(failed,),
        stages=StageStatuses(sft=done, reward=lost, ppo=never),
    )
    again = reopened(status, NOW)
    assert (again.conditions, again.completion_time) == ((), None)
    assert (again.start_time, again.idle_seconds) == (START, 5 * 3600)
    assert again.stages.sft == done
    reward = again.stages.reward
    assert reward is not None
    assert (reward.state, reward.attempt, reward.restarts, reward.disruptions) == (
        StageState.SUSPENDED,
        4,
        0,
        0,
    )
    assert (reward.last_checkpoint_step, reward.completion_time) == (40, None)
    assert again.stages.ppo is not None
    assert again.stages.ppo.state is StageState.WAITING
