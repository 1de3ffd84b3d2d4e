"""When a job must be looked at again though nothing changes: never early, and never too late."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from rlhf_api.names import ConditionType, Reason, StageName
from rlhf_operator.planning.conditions import find_condition
from rlhf_operator.planning.observed import Observed, ObservedAttempt, ProcessPhase, Refusal
from rlhf_operator.planning.plan import plan

MakeTrial = Callable[..., Any]
PROGRESS_DEADLINE = 1800
"""The default of runPolicy.progressDeadlineSeconds."""


def wait(trial: Any, after: float = 0) -> float | None:
    """Seconds to the next look, after one now."""
    trial.look(after)
    return trial.wait()


def started(trial: Any) -> Any:
    trial.look()
    trial.run("sft", step=1)
    trial.look()
    return trial


def test_nothing_is_asked_for_again_and_again(trial: MakeTrial) -> None:
    assert wait(trial(suspend=True)) is None
    t = trial()
    assert wait(t) is None
    t.run("sft")
    assert wait(t) == PROGRESS_DEADLINE
    t.spec(suspend=True)
    assert wait(t) is None


def test_a_gang_that_has_begun_to_fail_is_judged_when_its_wait_is_over(trial: MakeTrial) -> None:
    t = started(trial())
    dead = t.process("sft", phase=ProcessPhase.FAILED, exit_code=1, finished_at=t.now)
    t.put("sft", processes=(dead, t.process("sft", index=1, phase=ProcessPhase.RUNNING)))
    assert wait(t) == 10
    assert wait(t, 7) == 3
    # Nobody is left who may tell more.
    t.put("sft", processes=(dead,), failed=True)
    assert wait(t) == 2
    assert t.stage("sft").state == "Restarting"


def test_a_restart_is_due_when_its_backoff_is_over(trial: MakeTrial) -> None:
    t = started(trial())
    t.end("sft", 1)
    assert wait(t) == 2
    assert wait(t, 0.75) == 1.25


def test_what_waits_for_the_old_gang_is_told_when_it_is_gone(trial: MakeTrial) -> None:
    t = started(trial())
    dead = t.process("sft", phase=ProcessPhase.FAILED, exit_code=1, finished_at=t.now)
    hung = t.process("sft", index=1, phase=ProcessPhase.RUNNING, terminating=True)
    t.put("sft", processes=(dead, hung))
    assert wait(t, 10) == 2
    assert wait(t, 60) is None
    assert t.stage("sft").state == "Restarting"


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ({"activeDeadlineSeconds": 100}, 100),
        ({"stageDeadlineSeconds": 100}, 100),
        ({"progressDeadlineSeconds": 100}, 100),
        ({"pendingDeadlineSeconds": 100}, PROGRESS_DEADLINE),
        ({"activeDeadlineSeconds": 100, "stageDeadlineSeconds": 99}, 99),
    ],
)
def test_the_nearest_deadline_is_not_missed(
    trial: MakeTrial, policy: dict[str, int], seconds: int
) -> None:
    t = started(trial(runPolicy=policy))
    t.seconds = 97.5
    assert wait(t) == seconds - 97.5


def test_a_deadline_that_is_over_is_not_looked_at_again(trial: MakeTrial) -> None:
    t = started(trial(runPolicy={"activeDeadlineSeconds": 100}))
    t.seconds = 200
    assert wait(t) is None
    assert (t.stage("sft").state, t.stage("reward").state) == ("Failed", "Waiting")


def test_the_pending_deadline_is_not_missed(trial: MakeTrial) -> None:
    t = trial(runPolicy={"pendingDeadlineSeconds": 100})
    t.look()
    t.seconds = 97.5
    assert wait(t) == 2.5


def test_no_deadline_is_near_while_its_clock_stands(trial: MakeTrial) -> None:
    limits = {"activeDeadlineSeconds": 100, "stageDeadlineSeconds": 200}
    t = trial(runPolicy=limits | {"pendingDeadlineSeconds": 50}, queueName="q")
    t.look()
    t.put("sft", processes=(t.process("sft", reason=Reason.QUEUED),), held_since=t.now)
    assert wait(t) is None
    t.seconds = 1000
    t.put("sft", processes=(t.process("sft"),), held_since=None, released_at=t.now)
    assert wait(t) == 50
    t.run("sft")
    assert wait(t) == 100


def test_time_in_suspension_moves_deadlines(trial: MakeTrial) -> None:
    t = started(trial(runPolicy={"activeDeadlineSeconds": 100, "stageDeadlineSeconds": 200}))
    t.spec(suspend=True)
    t.look()
    t.attempts.clear()
    assert wait(t) is None
    t.seconds = 1000
    assert wait(t) is None
    t.spec(suspend=False)
    t.look()
    t.seconds = 1095
    assert wait(t) == 5


@pytest.mark.parametrize(
    ("seconds", "expected"), [(30, 30), (0, PROGRESS_DEADLINE), (-5, PROGRESS_DEADLINE)]
)
def test_what_is_seen_may_change_its_meaning_by_time(
    trial: MakeTrial, seconds: int, expected: int
) -> None:
    t = started(trial())
    when = t.now + timedelta(seconds=seconds)
    seen = Observed(tuple(t.attempts.values()), look_at=when)
    due = plan(t.job, seen, t.now, t.placement).look_at
    assert due == t.now + timedelta(seconds=expected)


def test_a_job_that_is_over_rests_until_it_is_deleted(trial: MakeTrial) -> None:
    t = started(trial(runPolicy={"ttlSecondsAfterFinished": 60}))
    t.end("sft", 65)
    assert wait(t) == 60
    # An attempt that is left over changes nothing.
    t.attempts[StageName.SFT, 9] = ObservedAttempt(StageName.SFT, 9)
    assert wait(t) == 60
    assert wait(t, 61) == -1
    endless = started(trial())
    endless.end("sft", 65)
    assert wait(endless) is None
    # Whoever was refused its deletion tries again by a clock of its own.
    refused = Observed(expiry=Refusal(Reason.WEBHOOK_DENIED, "no"))
    found = plan(t.job, refused, t.now + timedelta(seconds=61), t.placement)
    assert found.look_at is None
    told = find_condition(found.status.conditions, ConditionType.CHILDREN_READY)
    assert told is not None
    assert (told.status, told.reason, told.message) == ("False", "WebhookDenied", "no")
