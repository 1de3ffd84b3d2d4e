"""When a stage gets another attempt, and what it costs."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_api.v1alpha1 import RunPolicy
from rlhf_operator.planning.observed import ObservedAttempt, ProcessPhase

MakeTrial = Callable[..., Any]


def test_a_crash_restarts_with_backoff(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.run("sft", step=30, last_checkpoint_step=20, eta_seconds=9)
    t.look()
    t.end("sft", 1, said={"message": "boom"})
    t.look()
    assert (t.stage("sft").state, t.stage("sft").restarts) == ("Restarting", 1)
    assert (t.condition("Running").reason, t.job.status.phase) == ("Crashed", "Restarting")
    assert t.last.events[0].message == "stage sft: boom"
    t.look(1)
    assert t.last.actions == ()
    t.look(1)
    assert t.started() == [("sft", 2)]
    assert t.last.actions[0].checkpoint_step == 20
    assert t.stage("sft").start_time < t.stage("sft").attempt_start_time
    assert t.stage("sft").progress.step == 30
    assert t.stage("sft").progress.eta_seconds is None
    # The step is an earlier one now, and that is progress all the same.
    t.run("sft", step=21)
    t.look(5)
    assert t.stage("sft").last_progress_time == t.now


def test_what_its_node_does_not_let_run_is_not_tried_three_times_within_a_minute(
    trial: MakeTrial,
) -> None:
    t = trial()
    t.look()
    tries = [t.now]
    for _ in range(3):
        rejected = {"reason": Reason.POD_REJECTED, "message": "OutOfcpu", "patient": True}
        t.end("sft", result=None, exit_code=None, **rejected)
        t.look()
        assert (t.stage("sft").reason, t.stage("sft").message) == ("PodRejected", "OutOfcpu")
        assert t.condition("Running").message == "stage sft: OutOfcpu"
        t.look(t.wait())
        tries.append(t.now)
    assert t.stage("sft").attempt == 4
    for first, third in zip(tries, tries[2:], strict=False):
        assert (third - first).total_seconds() > 60
    t.end("sft", result=None, exit_code=None, **rejected)
    t.look()
    assert t.condition("Failed").message == (
        "stage sft: OutOfcpu (runPolicy.maxRestarts 3 is used up)"
    )


@pytest.mark.parametrize(
    "end",
    [
        pytest.param({"exit_code": 69}, id="a service is not available"),
        pytest.param({"exit_code": 74}, id="the disk is full"),
        pytest.param({"exit_code": 80}, id="a peer is lost"),
        pytest.param({"exit_code": 1}, id="a crash"),
        pytest.param({"exit_code": 143}, id="stopped without a checkpoint"),
        pytest.param({"exit_code": 137, "disrupted": True}, id="preempted without a checkpoint"),
        pytest.param({"exit_code": None, "patient": True}, id="the trainer has not run"),
    ],
)
def test_no_restart_is_tried_three_times_within_a_minute(
    trial: MakeTrial, end: dict[str, Any]
) -> None:
    t = trial(runPolicy={"maxRestarts": 9})
    t.look()
    restarts = []
    for _ in range(6):
        t.end("sft", result=None, **end)
        t.look()
        t.look(t.wait())
        restarts.append(t.now)
    assert t.stage("sft").attempt == 7
    for first, third in zip(restarts, restarts[2:], strict=False):
        assert (third - first).total_seconds() > 60
    pauses = [(later - earlier).seconds for earlier, later in pairwise(restarts)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 300


def test_a_text_in_place_of_a_result_is_told_and_not_hurried(trial: MakeTrial) -> None:
    t = trial().running("sft")
    text = {"result": None, "message": "left no result but: hello", "patient": True}
    t.end("sft", 0, phase=ProcessPhase.SUCCEEDED, **text)
    t.put("sft", complete=True, failed=False)
    t.look()
    assert t.stage("sft").reason is Reason.ARTIFACT_INVALID
    assert t.stage("sft").message.endswith("its result is lost: left no result but: hello")
    assert t.wait() == 30


def test_restarts_are_bounded(trial: MakeTrial) -> None:
    t = trial(runPolicy={"maxRestarts": 1}).running("sft")
    t.end("sft", 1)
    t.look()
    t.look(2)
    t.end("sft", 74, said={"reason": Reason.IO_ERROR, "message": "disk full"})
    t.look()
    assert t.stage("sft").reason is Reason.MAX_RESTARTS
    assert t.condition("Failed").message == (
        "stage sft: disk full (runPolicy.maxRestarts 1 is used up)"
    )
    assert t.job.status.summary.reason == "MaxRestarts"


def test_disruptions_are_counted_apart_and_bounded(trial: MakeTrial) -> None:
    t = trial(runPolicy={"maxRestarts": 0, "maxDisruptions": 1}).running("sft")
    t.run("sft", step=30, last_checkpoint_step=20)
    t.end("sft", 143, disrupted=True)
    t.look()
    assert (t.stage("sft").restarts, t.stage("sft").disruptions) == (0, 1)
    t.look(1)
    assert t.started() == [("sft", 2)]
    t.put("sft", checkpoint_step=20)
    t.run("sft", step=40, last_checkpoint_step=40)
    t.end("sft", 143, disrupted=True)
    t.look()
    assert t.stage("sft").reason is Reason.MAX_DISRUPTIONS


def test_a_persons_mistake_fails_once_at_once(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.end("sft", 65, said={"reason": Reason.DATA_ERROR, "message": "rows.jsonl: line 3: no query"})
    t.look()
    assert t.last.actions == ()
    assert t.condition("Failed").reason is Reason.DATA_ERROR
    assert t.condition("Failed").message == "stage sft: rows.jsonl: line 3: no query"
    assert [event.type for event in t.last.events] == ["Warning"]


def test_the_old_gang_is_gone_before_the_next_starts(trial: MakeTrial) -> None:
    t = trial().running("sft")
    dead = t.process("sft", phase=ProcessPhase.FAILED, exit_code=1, finished_at=t.now)
    hung = t.process("sft", index=1, phase=ProcessPhase.RUNNING, ready=True)
    t.put("sft", processes=(dead, hung))
    t.look(9)
    assert (t.stage("sft").state, t.last.actions) == ("Running", ())
    t.look(1)
    assert (t.stage("sft").state, t.stops()) == ("Restarting", [("sft", 1)])
    t.put("sft", processes=(dead, t.process("sft", phase=ProcessPhase.RUNNING, terminating=True)))
    t.look(60)
    assert t.last.actions == ()
    t.put("sft", processes=(dead, t.process("sft", phase=ProcessPhase.RUNNING, lost=True)))
    t.look()
    assert t.started() == [("sft", 2)]


def test_nothing_starts_beside_an_earlier_attempt_that_has_come_back(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.end("sft", 1)
    t.look()
    t.look(2)
    assert t.started() == [("sft", 2)]
    back = t.process("sft", phase=ProcessPhase.RUNNING, ready=True)
    t.attempts[StageName.SFT, 1] = ObservedAttempt(StageName.SFT, 1, (back,))
    t.look()
    assert (t.started(), t.stops()) == ([], [("sft", 1)])
    del t.attempts[StageName.SFT, 1]
    t.look()
    assert t.started() == [("sft", 2)]


def test_an_attempt_that_vanished_is_another_one(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.attempts.clear()
    t.look()
    assert (t.stage("sft").state, t.stage("sft").restarts) == ("Restarting", 1)
    t.look(2)
    assert t.started() == [("sft", 2)]


def test_a_policy_that_changed_holds_from_now_on(trial: MakeTrial) -> None:
    t = trial(runPolicy={"maxRestarts": 0}).running("sft")
    t.spec(run_policy=RunPolicy(max_restarts=1))
    t.end("sft", 1)
    t.look()
    assert t.stage("sft").state == "Restarting"
