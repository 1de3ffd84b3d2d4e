"""Deadlines leave out the time in which a queue, a quota or a refusal lets nothing run."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_operator.planning.observed import ProcessPhase, Refusal

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
LIMITS = {"activeDeadlineSeconds": 100, "stageDeadlineSeconds": 90}


def hold(trial: Any, name: str = "sft") -> None:
    """A queue holds the current attempt back from now on."""
    held = trial.process(name, reason=Reason.QUEUED, message="waits in queue q")
    trial.put(name, processes=(held,), held_since=trial.now)


def release(trial: Any, name: str = "sft") -> None:
    """The queue lets it run from now on."""
    pending = trial.process(name)
    trial.put(name, processes=(pending,), held_since=None, released_at=trial.now)


def clocks(trial: Any, name: str = "sft") -> tuple[int, int]:
    """Idle seconds of a stage and of the job."""
    return trial.stage(name).idle_seconds, trial.job.status.idle_seconds


# The passes of an operator that is there all the time, at the begin, at the end, or after it.
@pytest.mark.parametrize("seen", [(5, 40, 65), (5, 65), (5, 70), (64, 70), (65,), (70,), (99,)])
def test_time_in_a_queue_is_left_out_whoever_saw_it(
    trial: MakeTrial, seen: tuple[int, ...]
) -> None:
    t = trial(runPolicy=LIMITS | {"pendingDeadlineSeconds": 40}, queueName="q")
    t.look()
    for second in range(0, 100):
        t.seconds = second
        if second == 5:
            hold(t)
        if second == 65:
            release(t)
        if second in seen:
            t.look()
    t.look()
    # The Job is held from its creation on; what went before is lost if nobody saw the hold begin.
    unseen = seen[0] >= 65
    assert clocks(t) == ((65, 65) if unseen else (60, 60))
    assert (t.stage("sft").state, t.stage("sft").idle_since) == ("Starting", None)
    assert t.stage("sft").pending_since == t.attempts[StageName.SFT, 1].released_at
    written = t.job.status
    t.look()
    assert t.job.status == written
    t.seconds = 105
    t.look()
    assert t.stage("sft").reason is Reason.PENDING_DEADLINE_EXCEEDED


def test_no_deadline_runs_in_a_queue(trial: MakeTrial) -> None:
    t = trial(runPolicy=LIMITS | {"pendingDeadlineSeconds": 40}, queueName="q")
    t.look()
    hold(t)
    t.look()
    written = t.job.status
    t.look(100_000)
    assert t.job.status == written
    release(t)
    t.look()
    t.run("sft")
    t.look(89)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert t.stage("sft").reason is Reason.DEADLINE_EXCEEDED


def test_the_job_is_idle_only_while_nothing_else_of_it_runs(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE, "reward": BASE}, queueName="q")
    t.look()
    t.run("reward")
    hold(t)
    t.look()
    assert t.job.status.idle_since is None
    t.look(30)
    t.finish("reward")
    t.look()
    assert t.job.status.idle_since == t.now
    t.look(50)
    release(t)
    t.look(7)
    assert clocks(t) == (80, 50)
    assert t.job.status.idle_since is None


def test_two_stages_in_a_queue_are_idle_until_the_first_may_run(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE, "reward": BASE}, queueName="q")
    t.look()
    hold(t)
    t.look(10)
    hold(t, "reward")
    t.look()
    t.seconds = 40
    release(t, "reward")
    t.seconds = 50
    release(t)
    t.look(9)
    assert (clocks(t), t.stage("reward").idle_seconds) == ((50, 30), 30)


def test_a_queue_may_hold_an_attempt_back_again(trial: MakeTrial) -> None:
    t = trial(queueName="q", runPolicy={"pendingDeadlineSeconds": 40})
    t.look()
    for _ in range(3):
        hold(t)
        t.look()
        t.seconds += 60
        release(t)
        t.look(30)
    assert (t.stage("sft").state, clocks(t)) == ("Starting", (180, 180))


def test_suspension_in_a_queue_is_counted_once(trial: MakeTrial) -> None:
    t = trial(queueName="q")
    t.look()
    hold(t)
    t.look()
    t.spec(suspend=True)
    t.look(20)
    t.attempts.clear()
    t.look()
    assert (t.condition("Suspended").status, clocks(t)) == ("True", (20, 20))
    t.spec(suspend=False)
    t.look(100)
    assert (t.started(), clocks(t)) == ([("sft", 2)], (120, 120))
    assert t.stage("sft").pending_since is None


def test_what_a_queue_takes_away_is_a_disruption(trial: MakeTrial) -> None:
    t = trial(queueName="q")
    t.look()
    hold(t)
    t.look()
    t.seconds = 30
    preempted = t.process("sft", phase=ProcessPhase.FAILED, disrupted=True, message="suspended")
    t.put("sft", processes=(preempted,), failed=True)
    t.look()
    assert (t.stage("sft").reason, clocks(t)) == (Reason.DISRUPTED, (30, 30))


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("limit", [None, 200])
def test_what_is_refused_counts_as_pending_alone(
    trial: MakeTrial, made: bool, limit: int | None
) -> None:
    pending = {} if limit is None else {"pendingDeadlineSeconds": limit}
    t = trial(runPolicy=LIMITS | pending)
    t.look()
    if made:
        no = t.process("sft", reason=Reason.QUOTA_EXCEEDED, message="pods are forbidden")
        t.put("sft", processes=(no,))
    else:
        t.refusals[StageName.SFT, 1] = Refusal(Reason.QUOTA_EXCEEDED, "exceeded quota", at_least=15)
    t.look()
    t.look(199)
    assert (t.stage("sft").state, t.stage("sft").idle_since) == (
        "Starting",
        t.last.status.idle_since,
    )
    assert t.wait() == (None if limit is None else 1)
    if limit is not None:
        t.look(1)
        assert t.stage("sft").reason is Reason.PENDING_DEADLINE_EXCEEDED
        return
    t.look(100_000)
    t.run("sft")
    t.look()
    assert clocks(t) == (100_199, 100_199)
    t.look(89)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert t.stage("sft").reason is Reason.DEADLINE_EXCEEDED


def test_a_new_leader_goes_on_with_the_time_of_a_refusal(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.refusals[StageName.SFT, 1] = Refusal(Reason.FORBIDDEN, "no")
    t.look()
    since = t.stage("sft").idle_since
    t.refusals.clear()
    t.look(50)
    assert t.stage("sft").idle_since == since
    t.refusals[StageName.SFT, 1] = Refusal(Reason.FORBIDDEN, "no")
    t.look(50)
    t.run("sft")
    t.look()
    assert clocks(t) == (100, 100)
