"""What keeps an attempt from running is told once, in words that last as long as the cause."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import Reason
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH
from rlhf_operator.planning.observed import ObservedProcess

MakeTrial = Callable[..., Any]
GPU = "no node is available: Insufficient nvidia.com/gpu"
TAINT = "no node is available: node(s) had untolerated taint {team: a}"


def wait(t: Any, index: int, reason: Reason | None, words: str = "") -> None:
    """A pod of the first attempt waits, for nothing in particular without a reason."""
    message = f"pod sft-1-{index} {words}" if reason else ""
    t.put("sft", processes=(ObservedProcess("sft-1", index, reason=reason, message=message),))
    t.look(1)


def told(t: Any) -> list[tuple[str, str]]:
    return [(each.type, each.reason) for each in t.last.events]


@pytest.mark.parametrize(
    "reason",
    [Reason.CONTAINER_CONFIG, Reason.CONTAINER_NOT_STARTED, Reason.CRASH_LOOP, Reason.IMAGE_PULL],
)
def test_the_stage_the_condition_and_one_event_have_the_reason(
    trial: MakeTrial, reason: Reason
) -> None:
    t = trial()
    t.look()
    wait(t, 0, reason, "waits")
    assert told(t) == [("Normal", Reason.CREATED), ("Warning", reason)]
    condition = t.condition("Running")
    assert (condition.status, condition.reason) == ("False", reason)
    assert condition.message == t.last.events[-1].message == "stage sft: pod sft-1-0 waits"
    before = t.job.status
    wait(t, 1, reason, "waits")
    assert (t.job.status, told(t)) == (before, []), "another pod that waits for the same is no news"


def test_a_cause_in_many_words_is_told_with_its_remedy_wherever_it_is(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    wait(t, 0, Reason.CONTAINER_CONFIG, "waits: " + "x" * 10_000 + "; create it")
    shown = (t.stage("sft").message, t.condition("Running").message, t.last.events[-1].message)
    assert all(each.endswith("x; create it") for each in shown)
    assert len(shown[0]) == MAX_MESSAGE_LENGTH


def test_other_causes_of_the_scheduler_are_told_by_the_condition(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    for index, words, shown in ((0, GPU, 0), (1, GPU, 0), (1, TAINT, 1), (0, TAINT, 1)):
        wait(t, index, Reason.UNSCHEDULABLE, words)
        assert t.condition("Running").message == f"stage sft: pod sft-1-{shown} {words}"
    assert told(t) == []


def test_what_crashes_again_and_again_is_told_once(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    wait(t, 0, Reason.CRASH_LOOP, "crashes")
    before = t.job.status
    for reason in (None, Reason.CRASH_LOOP, None):
        wait(t, 0, reason, "crashes")
        assert (t.job.status, told(t)) == (before, [])
    wait(t, 0, Reason.CONTAINER_CONFIG, "waits")
    assert told(t) == [("Warning", Reason.CONTAINER_CONFIG)]
    wait(t, 0, None)
    assert t.stage("sft").reason is Reason.PODS_PENDING


def test_a_process_that_runs_keeps_nobody_waiting(trial: MakeTrial) -> None:
    """A container beside its trainer may crash; another process is what the gang waits for."""
    t = trial()
    t.look()
    runs = ObservedProcess("a", 0, ready=True, reason=Reason.CRASH_LOOP, message="pod a crashes")
    waits = ObservedProcess("b", 1, reason=Reason.UNSCHEDULABLE, message="pod b has no node")
    t.put("sft", processes=(runs, waits))
    t.look(1)
    assert told(t)[-1] == ("Warning", Reason.UNSCHEDULABLE)
    assert t.stage("sft").message == "pod b has no node"
