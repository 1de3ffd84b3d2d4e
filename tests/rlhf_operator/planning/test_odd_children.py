"""What is odd among a job's children is told, and keeps nothing of the job from being done."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_operator.planning.observed import ObservedAttempt, Oddity, ProcessPhase

MakeTrial = Callable[..., Any]
KIND = "ChildrenIntact"
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}


def odd(number: int = 1, reason: Reason = Reason.FOREIGN_CHILD) -> Oddity:
    return Oddity(reason, f"Job mine-{number} is odd")


def test_nothing_is_said_of_a_job_whose_children_are_its_own(trial: MakeTrial) -> None:
    t = trial().running("sft")
    assert t.condition(KIND) is None


def test_a_foreign_child_is_named_until_it_is_gone(trial: MakeTrial) -> None:
    t = trial()
    t.oddities = (odd(), odd(2, Reason.CHILD_CHANGED))
    t.look()
    found = t.condition(KIND)
    assert (found.status, found.reason) == ("False", "ForeignChild")
    assert found.message == "left alone: Job mine-1 is odd; Job mine-2 is odd"
    assert t.started() == [("sft", 1)]
    t.oddities = ()
    t.running("sft")
    found = t.condition(KIND)
    assert (found.status, found.reason) == ("True", "Intact")


def test_of_many_only_some_are_named(trial: MakeTrial) -> None:
    t = trial()
    t.oddities = tuple(odd(number) for number in range(1, 9))
    t.look()
    message = t.condition(KIND).message
    assert message.count(" is odd") == 5
    assert message.endswith("and 3 more")


def test_a_job_with_odd_children_is_suspended_and_bounded(trial: MakeTrial) -> None:
    t = trial(runPolicy={"activeDeadlineSeconds": 60})
    t.oddities = (odd(reason=Reason.CHILD_CHANGED),)
    t.running("sft")
    t.spec(suspend=True)
    t.look(1)
    assert t.stops() == [("sft", 1)]
    t.end("sft", 75)
    t.look(1)
    assert (t.job.status.phase, t.condition(KIND).status) == ("Suspended", "False")
    t.spec(suspend=False)
    t.look(1)
    t.look(100)
    assert t.condition("Failed").reason == "DeadlineExceeded"
    # Of a finished job, too, what is odd is told, and that it is gone.
    assert t.condition(KIND).status == "False"
    t.oddities = ()
    t.look(1)
    assert t.condition(KIND).status == "True"


def disown(trial: Any, number: int) -> None:
    key = StageName.SFT, number
    trial.attempts[key] = replace(trial.attempts[key], disowned=True)


def test_an_attempt_without_owner_counts_and_is_not_stopped(trial: MakeTrial) -> None:
    t = trial().running("sft")
    disown(t, 1)
    t.run("sft", step=20)
    t.look(1)
    assert (t.stage("sft").state, t.stage("sft").progress.step) == ("Running", 20)
    t.spec(suspend=True)
    t.look(1)
    assert (t.last.actions, t.stage("sft").state) == ((), "Stopping")
    t.spec(suspend=False)
    t.look(100)
    assert (t.last.actions, t.stage("sft").attempt) == ((), 1)
    t.attempts.clear()
    t.look(1)
    assert t.started() == [("sft", 2)]


@pytest.mark.parametrize("how", ["live", "over"])
def test_the_next_attempt_waits_for_one_without_owner_while_that_may_run(
    trial: MakeTrial, how: str
) -> None:
    t = trial(runPolicy={"keepFailedAttempts": 0}).running("sft")
    t.end("sft", 1)
    if how == "live":
        rest = t.process("sft", index=1, phase=ProcessPhase.RUNNING, ready=True)
        ended = t.attempts[StageName.SFT, 1].processes
        t.put("sft", processes=(*ended, rest), failed=False)
    disown(t, 1)
    t.look(60)
    assert (t.stage("sft").state, t.last.actions) == ("Restarting", ())
    t.look(60)
    assert t.started() == ([] if how == "live" else [("sft", 2)])
    # It is not removed either, nor does it end with the job.
    t.spec(run_policy=t.job.spec.run_policy.model_copy(update={"active_deadline_seconds": 1}))
    t.look(60)
    assert t.last.actions == ()
    assert (t.condition("Failed") is None) == (how == "live")


def test_a_finished_job_leaves_an_attempt_without_owner_alone(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE}).running("sft")
    t.end("sft", 1)
    t.look()
    t.look(10)
    t.finish("sft")
    t.look()
    assert t.job.status.phase == "Succeeded"
    runs = t.process("sft", phase=ProcessPhase.RUNNING, ready=True)
    for is_disowned, stops in ((True, []), (False, [("sft", 1)])):
        found = ObservedAttempt(StageName.SFT, 1, (runs,), disowned=is_disowned)
        t.attempts[StageName.SFT, 1] = found
        t.look()
        assert t.stops() == stops
