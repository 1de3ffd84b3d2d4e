"""What is odd among a job's children is told, and keeps nothing of the job from being done."""

from collections.abc import Callable
from typing import Any

from rlhf_api.names import Reason
from rlhf_operator.planning.observed import Oddity

MakeTrial = Callable[..., Any]
KIND = "ChildrenIntact"


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
