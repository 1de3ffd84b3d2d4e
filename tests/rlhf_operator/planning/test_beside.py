"""What follows where an injected container runs on when the trainer has ended."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf_api.names import ExitCode, Reason, StageName, StageState
from rlhf_api.v1alpha1 import StageStatus
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH
from rlhf_operator.planning.beside import with_beside
from rlhf_operator.planning.observed import ObservedAttempt, ObservedProcess

MakeTrial = Callable[..., Any]
SAID = "attempt 1 is deleted, and its logs with it, since proxy would run on beside it"


def leave(t: Any, name: str, **changes: Any) -> None:
    """Something runs on beside the processes of the current attempt, which have ended."""
    attempt = t.attempts[StageName(name), t.stage(name).attempt]
    beside = {"beside": ("proxy",)} | changes
    t.put(name, processes=tuple(replace(each, **beside) for each in attempt.processes))


def drop(t: Any, name: str, number: int) -> None:
    """The attempt's pods are gone."""
    del t.attempts[StageName(name), number]


def test_the_verdict_is_written_before_the_attempt_is_deleted(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.finish("sft")
    leave(t, "sft")
    t.look(1)
    assert t.stage("sft").state == "Succeeded"
    # The caller writes the status before it acts, and tells the Event after that.
    assert ("sft", 1) in t.stops()
    (event,) = [each for each in t.last.events if each.reason == Reason.FINISHED]
    assert event.message.endswith(SAID)
    assert event.message == f"stage sft: {t.stage('sft').message}"
    # What reads its artifact need not wait.
    assert ("reward", 1) in t.started()
    t.look(1)
    assert ("sft", 1) in t.stops(), "as long as it is not being deleted"
    leave(t, "sft", terminating=True)
    t.look(1)
    assert t.stops() == []
    assert t.last.events == ()


@pytest.mark.parametrize(
    ("message", "code"), [("", 1), ("container mesh ended with exit code 1 (see its log)", 1)]
)
def test_nobody_is_sent_to_a_log_that_is_about_to_go(
    trial: MakeTrial, message: str, code: int
) -> None:
    t = trial(runPolicy={"maxRestarts": 0}).running("sft")
    t.end("sft")
    leave(t, "sft", result=None, exit_code=code, message=message)
    t.put("sft", failed=False)
    t.look(1)
    assert t.stage("sft").message.endswith(SAID)
    assert "see its log" not in t.stage("sft").message
    assert f"exit code {code}" in t.stage("sft").message


def test_the_last_stage_ends_the_job_and_is_deleted_all_the_same(trial: MakeTrial) -> None:
    t = trial(stages={"sft": {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///d"}}})
    t.running("sft")
    t.finish("sft")
    leave(t, "sft")
    t.look(1)
    assert t.condition("Succeeded").status == "True"
    assert t.stops() == [("sft", 1)]
    t.look(1)
    assert t.stops() == [("sft", 1)], "a new leader finishes it"
    drop(t, "sft", 1)
    t.look(1)
    assert t.stops() == []


def test_a_failed_attempt_makes_room_before_the_next_one(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.end("sft")
    leave(t, "sft")
    t.put("sft", failed=False)
    t.look(1)
    assert t.stage("sft").state == "Restarting"
    assert t.stage("sft").message.endswith(SAID)
    assert t.stops() == [("sft", 1)]
    leave(t, "sft", terminating=True)
    t.look(60)
    assert (t.stops(), t.started()) == ([], [])
    assert (t.stage("sft").state, t.stage("sft").attempt) == ("Restarting", 1)
    drop(t, "sft", 1)
    t.look(1)
    assert t.started() == [("sft", 2)]


def test_a_job_is_failed_when_the_last_place_is_free(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.end("sft", ExitCode.DATA)
    leave(t, "sft")
    t.put("sft", failed=False)
    t.look(1)
    assert t.stage("sft").state == "Failed"
    assert t.stops() == [("sft", 1)]
    assert t.condition("Failed") is None
    drop(t, "sft", 1)
    t.look(1)
    assert t.condition("Failed").message.endswith(SAID)


def test_what_was_stopped_anyway_is_said_to_be_stopped_alone(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.spec(suspend=True)
    t.look(1)
    t.end("sft", ExitCode.STOPPED_WITH_CHECKPOINT)
    leave(t, "sft", terminating=True)
    t.look(1)
    assert t.stage("sft").state == "Suspended"
    assert "would run on" not in t.stage("sft").message
    assert t.condition("Suspended") is None
    drop(t, "sft", 1)
    t.look(1)
    assert t.condition("Suspended").status == "True"


@pytest.mark.parametrize("length", [0, MAX_MESSAGE_LENGTH - 1, MAX_MESSAGE_LENGTH])
def test_the_sentence_is_not_cut_off(length: int) -> None:
    attempt = ObservedAttempt(
        StageName.SFT, 1, processes=(ObservedProcess("a", beside=("proxy", "log-shipper")),)
    )
    stage = StageStatus(state=StageState.FAILED, message="x" * length)
    told = with_beside(stage, attempt).message or ""
    assert told.endswith("since proxy and log-shipper would run on beside it")
    assert len(told) <= MAX_MESSAGE_LENGTH
