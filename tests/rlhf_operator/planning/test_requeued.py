"""An attempt that a queue takes back waits as one that was not let in yet, and then goes on."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from rlhf_api.names import Reason
from rlhf_operator.planning.observed import ProcessPhase

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
WAITS = "Job reviews-sft-1 waits in queue q"


def admitted(make: MakeTrial, **spec: Any) -> Any:
    """A job whose only attempt was let run after 5 s, and runs at step 42 since second 10."""
    t = make(queueName="q", stages={"sft": BASE}, **spec)
    t.look()
    hold(t)
    t.look()
    t.seconds = 5
    t.put("sft", processes=(t.process("sft"),), held_since=None, released_at=t.now)
    t.look()
    t.run("sft", step=42, eta_seconds=30.0)
    t.look(5)
    return t


def hold(trial: Any, *processes: Any, since: float | None = None) -> None:
    """The attempt is held back, as seen from now on."""
    held = trial.process("sft", index=-1, reason=Reason.QUEUED, message=WAITS)
    before, trial.seconds = trial.seconds, trial.seconds if since is None else since
    trial.put("sft", processes=(held, *processes), held_since=trial.now, released_at=None)
    trial.seconds = before


def release(trial: Any, *, ready: bool = False) -> None:
    phase = ProcessPhase.RUNNING if ready else ProcessPhase.PENDING
    pod = trial.process("sft", phase=phase, ready=ready)
    trial.put("sft", processes=(pod,), held_since=None, released_at=trial.now)


def told(trial: Any) -> list[tuple[str, str, str]]:
    return [(event.type, str(event.reason), event.message) for event in trial.last.events]


def ends(trial: Any, how: str) -> tuple[Any, ...]:
    """What may be left of its pods while they are taken away."""
    shapes: dict[str, dict[str, Any]] = {
        "gone": {},
        "stopping": {"phase": ProcessPhase.RUNNING, "ready": True, "terminating": True},
    }
    return () if how == "gone" else (trial.process("sft", **shapes[how]),)


@pytest.mark.parametrize("how", ["gone", "stopping"])
def test_a_running_attempt_that_is_held_back_waits_in_its_queue(trial: MakeTrial, how: str) -> None:
    t = admitted(trial)
    t.seconds = 60
    hold(t, *ends(t, how))
    t.look()
    sft = t.stage("sft")
    assert (sft.state, sft.reason, sft.message) == ("Starting", Reason.QUEUED, WAITS)
    assert (sft.attempt, sft.restarts, sft.disruptions) == (1, 0, 0)
    assert (sft.progress.step, sft.progress.eta_seconds) == (42, None)
    assert (sft.idle_since, t.job.status.idle_since) == (t.now, t.now)
    assert t.job.status.phase == "Pending"
    assert (t.job.status.summary.stage, t.job.status.summary.reason) == ("sft", "Queued")
    for kind in ("Admitted", "Running"):
        assert (t.condition(kind).status, t.condition(kind).reason) == ("False", "Queued")
    assert t.condition("ProgressReporting").status == "Unknown"
    assert told(t) == [("Normal", "Queued", f"stage sft: {WAITS}")]
    written = t.job.status
    assert t.look(100_000).actions == ()
    assert t.job.status == written


def test_it_goes_on_as_the_same_attempt_and_its_idle_time_is_counted(trial: MakeTrial) -> None:
    limits = {
        "stageDeadlineSeconds": 100,
        "activeDeadlineSeconds": 100,
        "pendingDeadlineSeconds": 9,
    }
    t = admitted(trial, runPolicy=limits)
    t.seconds = 60
    hold(t)
    t.look()
    t.seconds = 1060
    release(t)
    t.look(3)
    sft = t.stage("sft")
    assert (sft.state, sft.reason, t.condition("Admitted").status) == (
        "Starting",
        Reason.PODS_PENDING,
        "True",
    )
    assert (sft.idle_since, sft.idle_seconds, t.job.status.idle_seconds) == (None, 1005, 1005)
    assert sft.progress.eta_seconds is None
    assert t.wait() == 6
    t.run("sft", step=40)
    t.look(1)
    assert (t.stage("sft").state, t.stage("sft").attempt) == ("Running", 1)
    assert t.stage("sft").last_progress_time == t.now
    assert told(t) == [("Normal", "PodsReady", "stage sft: attempt 1 runs")]
    # It has run for 59 s, and 4 s of the second time.
    t.look(40)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert t.stage("sft").reason is Reason.DEADLINE_EXCEEDED


def test_what_does_not_run_in_time_after_it_was_let_in_fails(trial: MakeTrial) -> None:
    t = admitted(trial, runPolicy={"pendingDeadlineSeconds": 9})
    hold(t)
    t.look(60)
    release(t)
    t.look(8)
    assert t.stage("sft").state == "Starting"
    t.look(1)
    assert t.stage("sft").reason is Reason.PENDING_DEADLINE_EXCEEDED


@pytest.mark.parametrize("known", [None, 5.0])
def test_where_nobody_says_when_it_was_let_run_that_is_when_it_is_seen(
    trial: MakeTrial, known: float | None
) -> None:
    """Of `spec.parallelism` no condition tells, or one of before; and a clock may be far ahead."""
    t = admitted(trial, runPolicy={"pendingDeadlineSeconds": 9})
    hold(t)
    t.look(60)
    earlier = None if known is None else t.job.status.start_time + timedelta(seconds=known)
    t.put("sft", processes=(t.process("sft"),), held_since=None, released_at=earlier)
    t.look(5000)
    sft = t.stage("sft")
    assert (sft.state, sft.attempt, sft.pending_since) == ("Starting", 1, t.now)
    assert (sft.idle_since, sft.idle_seconds) == (None, 5065)
    t.look(8)
    assert t.stage("sft").state == "Starting"
    t.look(1)
    assert t.stage("sft").reason is Reason.PENDING_DEADLINE_EXCEEDED


@pytest.mark.parametrize(("since", "idle_from"), [(60, 60), (2, 90), (500, 90)])
def test_no_time_in_which_it_ran_counts_as_idle(
    trial: MakeTrial, since: float, idle_from: float
) -> None:
    """Who has just suspended a Job has not said yet since when; a clock may be ahead of ours."""
    t = admitted(trial)
    t.seconds = 90
    hold(t, since=since)
    t.look()
    begun = (t.stage("sft").idle_since - t.stage("sft").start_time).total_seconds()
    assert begun == idle_from


@pytest.mark.parametrize("ready", [False, True])
def test_a_hold_that_nobody_saw_is_idle_from_the_last_step_on(
    trial: MakeTrial, ready: bool
) -> None:
    t = admitted(trial)
    t.seconds = 70
    release(t, ready=ready)
    t.seconds = 75
    t.look()
    sft = t.stage("sft")
    # 5 s before its first start, and from second 10 to 70.
    assert (sft.idle_seconds, t.job.status.idle_seconds) == (65, 65)
    assert (sft.state, sft.attempt) == ("Running" if ready else "Starting", 1)
    assert "Created" not in [reason for _, reason, _ in told(t)]
    written = t.job.status
    t.look()
    assert t.job.status == written


def test_pods_that_are_seen_to_run_before_their_release_are_not_taken_back(
    trial: MakeTrial,
) -> None:
    t = trial(queueName="q", stages={"sft": BASE})
    t.look()
    hold(t)
    t.look(1)
    t.run("sft")
    t.look(4)
    written = t.job.status
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert t.job.status == written
    t.put("sft", held_since=None, released_at=t.job.status.start_time)
    t.look()
    assert t.job.status == written
    t.seconds = 4
    release(t)
    released, t.seconds = t.now, 8
    t.look()
    assert (t.stage("sft").state, t.stage("sft").idle_seconds) == ("Running", 5)
    assert t.stage("sft").pending_since == released


@pytest.mark.parametrize("over", ["failed", "complete"])
def test_a_verdict_of_the_platform_is_heard_though_it_is_held_back(
    trial: MakeTrial, over: str
) -> None:
    t = admitted(trial)
    t.seconds = 20
    hold(t, since=12)
    if over == "complete":
        t.finish("sft")
    else:
        failed = {"phase": ProcessPhase.FAILED, "disrupted": True, "message": "suspended"}
        t.put("sft", processes=(t.process("sft", **failed),), failed=True)
    t.look()
    state = "Succeeded" if over == "complete" else "Restarting"
    assert (t.stage("sft").state, t.stage("sft").idle_seconds) == (state, 5)


def test_the_job_runs_on_while_another_stage_does(trial: MakeTrial) -> None:
    t = trial(queueName="q", stages={"sft": BASE, "reward": BASE})
    t.look()
    t.run("sft")
    t.run("reward")
    t.look()
    t.seconds = 10
    hold(t)
    t.look()
    assert (t.stage("sft").state, t.job.status.phase) == ("Starting", "Running")
    assert (t.stage("sft").idle_since, t.job.status.idle_since) == (t.now, None)


def test_one_that_is_held_back_is_suspended(trial: MakeTrial) -> None:
    t = admitted(trial)
    hold(t)
    t.look()
    t.spec(suspend=True)
    t.look()
    assert t.stops() == [("sft", 1)]
    t.attempts.clear()
    t.look()
    assert t.job.status.phase == "Suspended"
    t.spec(suspend=False)
    t.look()
    assert t.started() == [("sft", 2)]
