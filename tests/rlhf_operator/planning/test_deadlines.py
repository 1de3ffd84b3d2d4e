"""Deadlines of a job, a stage, an attempt that waits and one that hangs."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import Reason

MakeTrial = Callable[..., Any]


def test_no_deadline_counts_time_in_suspension(trial: MakeTrial) -> None:
    t = trial(runPolicy={"activeDeadlineSeconds": 100, "stageDeadlineSeconds": 90}).running("sft")
    t.spec(suspend=True)
    t.look(10)
    t.end("sft", 75)
    t.look(10)
    t.look(5000)
    t.spec(suspend=False)
    t.look()
    assert t.started() == [("sft", 2)]
    t.run("sft")
    t.look(68)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert t.stage("sft").reason is Reason.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("limits", "reason", "field"),
    [
        ({"activeDeadlineSeconds": 50}, Reason.DEADLINE_EXCEEDED, "activeDeadlineSeconds (50)"),
        ({"stageDeadlineSeconds": 50}, Reason.DEADLINE_EXCEEDED, "stageDeadlineSeconds (50)"),
    ],
)
def test_deadlines_stop_what_runs_and_then_fail(
    trial: MakeTrial, limits: dict[str, int], reason: Reason, field: str
) -> None:
    t = trial(runPolicy=limits).running("sft")
    t.look(48)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert (t.stage("sft").state, t.stops(), t.condition("Failed")) == (
        "Failed",
        [("sft", 1)],
        None,
    )
    t.end("sft", 75)
    t.look(5)
    assert t.condition("Failed").reason is reason
    lost = "; attempt 1 is deleted, and its logs with it, since it would run on"
    assert t.stage("sft").message.endswith(f"{field}; raise it{lost}")
    assert t.stage("sft").message in t.condition("Failed").message


@pytest.mark.parametrize("limit", ["stageDeadlineSeconds", "progressDeadlineSeconds"])
def test_who_keeps_logs_in_files_is_told_nothing_of_their_end(trial: MakeTrial, limit: str) -> None:
    t = trial(runPolicy={limit: 50}).running("sft")
    t.put("sft", leaves_logs=True)
    t.look(60)
    assert limit in t.stage("sft").message
    assert "logs" not in t.stage("sft").message


def test_the_job_deadline_also_ends_the_wait_for_a_restart(trial: MakeTrial) -> None:
    t = trial(runPolicy={"activeDeadlineSeconds": 50}).running("sft")
    t.look(47)
    t.end("sft", 1)
    t.look(1)
    assert t.stage("sft").state == "Restarting"
    t.look(1)
    assert t.condition("Failed").reason is Reason.DEADLINE_EXCEEDED
    assert "deleted" not in t.condition("Failed").message, "it keeps its logs"


def test_the_job_deadline_ends_what_runs_beside_an_end_that_is_not_confirmed(
    trial: MakeTrial,
) -> None:
    stage = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "file:///data/rows.jsonl"}}
    t = trial(stages={"sft": stage, "reward": stage}, runPolicy={"activeDeadlineSeconds": 50})
    t.look()
    for name in ("sft", "reward"):
        t.run(name)
    t.look(1)
    t.put("sft", processes=(), complete=True, confirmed=False)
    t.look(60)
    # It may have ended well, and in time.
    assert (t.stage("sft").state, t.stage("reward").state) == ("Running", "Failed")
    assert t.stops() == [("reward", 1)]


def test_the_pending_deadline(trial: MakeTrial) -> None:
    t = trial(runPolicy={"pendingDeadlineSeconds": 30})
    t.look()
    t.put("sft", processes=(t.process("sft", reason=Reason.IMAGE_PULL, message="no image x"),))
    t.look(29)
    assert t.stage("sft").state == "Starting"
    t.look(1)
    assert t.stage("sft").reason is Reason.PENDING_DEADLINE_EXCEEDED
    assert t.stage("sft").message.endswith("no image x")


def test_a_gang_that_hangs_is_restarted_and_the_restart_counted(trial: MakeTrial) -> None:
    t = trial(runPolicy={"progressDeadlineSeconds": 60}).running("sft")
    t.look(59)
    assert t.stage("sft").state == "Running"
    t.run("sft", step=11)
    t.look(1)
    t.look(59)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert (t.stage("sft").state, t.stops()) == ("Stopping", [("sft", 1)])
    lost = "; attempt 1 is deleted, and its logs with it, since it would hang on"
    (event,) = t.last.events
    assert event.message == f"stage sft: {t.stage('sft').message}"
    assert event.message.endswith(f"progressDeadlineSeconds (60){lost}")
    t.end("sft", 75)
    t.look()
    assert (t.stage("sft").state, t.stage("sft").restarts) == ("Restarting", 1)
    assert t.stage("sft").reason is Reason.PROGRESS_DEADLINE_EXCEEDED
    t.look(2)
    t.run("sft", step=10)
    t.look(30)
    assert t.stage("sft").state == "Running"


@pytest.mark.parametrize("state", ["Starting", "Running"])
def test_nothing_is_judged_of_an_attempt_whose_job_cannot_be_read(
    trial: MakeTrial, state: str
) -> None:
    limits = {"pendingDeadlineSeconds": 9, "progressDeadlineSeconds": 10}
    t = trial(runPolicy=limits).running("sft") if state == "Running" else trial(runPolicy=limits)
    t.look()
    t.put("sft", processes=(), disowned=True, unread=True)
    before = t.job.status.stages
    assert t.stage("sft").state == state
    assert t.look(1000).actions == ()
    assert (t.job.status.stages, t.last.events) == (before, ())
