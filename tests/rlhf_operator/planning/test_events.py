"""Events tell of each transition once, and of nothing that has not happened."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_operator.planning.events import derive_events
from rlhf_operator.planning.observed import Oddity, ProcessPhase, Refusal

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
CREATED = ("Normal", "Created", "stage sft: attempt 1 starts")


def told(trial: Any) -> list[tuple[str, str, str]]:
    return [(event.type, str(event.reason), event.message) for event in trial.last.events]


def reasons(trial: Any) -> list[str]:
    return [str(event.reason) for event in trial.last.events]


@pytest.mark.parametrize("reason", [None, Reason.QUOTA_EXCEEDED])
def test_an_attempt_is_told_when_it_is_made_and_no_sooner(
    trial: MakeTrial, reason: Reason | None
) -> None:
    t = trial(stages={"sft": BASE})
    t.look()
    assert told(t) == []
    if reason is not None:
        t.refusals[StageName.SFT, 1] = Refusal(reason, "exceeded quota")
        t.look(1)
        t.look(60)
        assert "Created" not in reasons(t)
        t.refusals.clear()
    t.put("sft", processes=(t.process("sft", reason=reason, message="exceeded quota"),))
    t.look(1)
    assert CREATED in told(t)
    t.put("sft", processes=())
    t.look(1)
    t.run("sft")
    t.look(1)
    assert "Created" not in reasons(t)


def test_a_new_leader_tells_an_attempt_that_was_made_in_its_absence(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE})
    t.look()
    t.finish("sft")
    t.look(300)
    assert reasons(t) == ["Created", "Finished", "StagesComplete"]
    t.look()
    assert told(t) == []


def test_an_attempt_that_an_older_release_has_made_is_not_told_again(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE}).running("sft")
    sft = t.stage("sft").model_copy(update={"created_attempt": None})
    stages = t.job.status.stages.model_copy(update={"sft": sft})
    t.job = t.job.model_copy(update={"status": t.job.status.model_copy(update={"stages": stages})})
    t.look()
    assert (told(t), t.stage("sft").created_attempt) == ([], 1)
    t.end("sft", 1)
    t.look()
    t.look(2)
    t.run("sft")
    t.look()
    assert reasons(t) == ["Created", "PodsReady"]
    # So it is where both were missed, as after a write without an answer.
    before = t.job.status.model_copy(update={"stages": stages})
    assert "Created" in [each.reason for each in derive_events(before, t.job.status)]


@pytest.mark.parametrize("names", [("sft",), ("sft", "reward")])
def test_a_suspension_is_told_once(trial: MakeTrial, names: tuple[str, ...]) -> None:
    t = trial(stages=dict.fromkeys(names, BASE))
    t.look()
    for name in names:
        t.run(name)
    t.look()
    t.spec(suspend=True)
    found = []
    for name in (None, *names):
        if name is not None:
            t.end(name, 75)
        t.look(1)
        found += told(t)
    message = "suspended on request; it goes on from the last checkpoints"
    assert found == [("Normal", "UserRequested", message)]


def test_work_that_fails_while_it_is_suspended_is_told(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE}).running("sft")
    t.spec(suspend=True)
    t.look()
    t.end("sft", 65, said={"reason": Reason.DATA_ERROR})
    t.look()
    assert reasons(t) == ["DataError"]


def denied(t: Any) -> None:
    t.refusals[StageName.SFT, 1] = Refusal(Reason.INVALID_POD, "it is wrong", final=True)


def waits(t: Any) -> None:
    t.put("sft", processes=(t.process("sft", reason=Reason.IMAGE_PULL, message="no image x"),))


def one_of_two(t: Any) -> None:
    """Rank 0 has failed, and rank 1 saves."""
    saves = t.process("sft", index=1, phase=ProcessPhase.RUNNING)
    t.end("sft", 65, said={"reason": Reason.DATA_ERROR})
    (first,) = t.attempts[StageName.SFT, 1].processes
    t.put("sft", processes=(first, saves), failed=False)


def beside_a_proxy(t: Any) -> None:
    t.end("sft", 65, said={"reason": Reason.DATA_ERROR})
    (process,) = t.attempts[StageName.SFT, 1].processes
    t.put("sft", processes=(replace(process, beside=("proxy",)),))


@pytest.mark.parametrize("names", [("sft",), ("sft", "reward")])
@pytest.mark.parametrize(
    ("begin", "limits", "reason"),
    [
        (denied, {}, Reason.INVALID_POD),
        (waits, {"pendingDeadlineSeconds": 30}, Reason.PENDING_DEADLINE_EXCEEDED),
        (waits, {"activeDeadlineSeconds": 30}, Reason.DEADLINE_EXCEEDED),
        (waits, {"stageDeadlineSeconds": 30}, Reason.DEADLINE_EXCEEDED),
        (one_of_two, {}, Reason.DATA_ERROR),
        (beside_a_proxy, {}, Reason.DATA_ERROR),
    ],
)
def test_a_failure_is_told_once_however_long_its_gang_is_there(
    trial: MakeTrial,
    names: tuple[str, ...],
    begin: Callable[[Any], None],
    limits: dict[str, int],
    reason: Reason,
) -> None:
    t = trial(stages=dict.fromkeys(names, BASE), runPolicy=limits)
    t.look()
    begin(t)
    found = []
    for seconds in (1, 40, 40):
        found += t.look(seconds).events
    t.attempts.clear()
    for seconds in (1, 40):
        found += t.look(seconds).events
    assert t.condition("Failed").reason is reason
    of_sft = [each for each in found if each.message.startswith("stage sft: ")]
    assert [each.reason for each in of_sft if each.reason != "Created"] == [
        *([Reason.IMAGE_PULL] if begin is waits else []),
        reason,
    ]
    assert len({(each.reason, each.message) for each in found}) == len(found)


def odd(reason: Reason, text: str = "is odd") -> tuple[Oddity, ...]:
    return (Oddity(reason, f"Job mine {text}"),)


def test_what_is_odd_among_the_children_is_told_when_its_kind_changes(trial: MakeTrial) -> None:
    t = trial(suspend=True)
    t.look()
    foreign, changed = Reason.FOREIGN_CHILD, Reason.CHILD_CHANGED
    steps = [
        (odd(foreign), [("Warning", "ForeignChild", "left alone: Job mine is odd")]),
        (odd(foreign), []),
        (odd(foreign, "is very odd"), []),
        (odd(changed), [("Warning", "ChildChanged", "left alone: Job mine is odd")]),
        ((), [("Normal", "Intact", "all that carries the job's labels is its own")]),
        ((), []),
        (odd(changed), [("Warning", "ChildChanged", "left alone: Job mine is odd")]),
    ]
    for oddities, expected in steps:
        t.oddities = oddities
        t.look(1)
        assert told(t) == expected
