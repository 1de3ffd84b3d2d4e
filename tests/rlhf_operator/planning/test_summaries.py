"""What people are told: phase, summary, Events."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import Reason
from rlhf_operator.planning.observed import Refusal

MakeTrial = Callable[..., Any]


def told(trial: Any) -> list[tuple[str, str, str]]:
    return [(event.type, event.reason.value, event.message) for event in trial.last.events]


def test_events_of_a_whole_run(trial: MakeTrial) -> None:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
    t = trial(stages={"sft": base})
    t.look()
    assert told(t) == []
    t.run("sft")
    t.look()
    assert told(t) == [
        ("Normal", "Created", "stage sft: attempt 1 starts"),
        ("Normal", "PodsReady", "stage sft: attempt 1 runs"),
    ]
    t.run("sft", step=5)
    t.look()
    assert told(t) == []
    t.spec(suspend=True)
    t.look()
    assert told(t) == []
    t.end("sft", 75)
    t.look()
    assert [each[1] for each in told(t)] == ["UserRequested"]
    t.spec(suspend=False)
    t.look()
    assert [each[1] for each in told(t)] == ["Resumed"]
    t.finish("sft", message="done after 100 steps")
    t.look()
    assert told(t) == [
        ("Normal", "Created", "stage sft: attempt 2 starts"),
        ("Normal", "Finished", "stage sft: done after 100 steps"),
        ("Normal", "StagesComplete", "all stages are complete"),
    ]


def test_the_phase_of_every_moment(trial: MakeTrial) -> None:
    t = trial()
    phases = []

    def look() -> None:
        t.look()
        phases.append(t.job.status.phase.value)

    look()
    t.run("sft")
    look()
    t.finish("sft")
    look()
    t.run("reward")
    look()
    t.end("reward", 1)
    look()
    t.spec(suspend=True)
    look()
    assert phases == ["Pending", "Running", "Running", "Running", "Restarting", "Suspended"]


def test_a_job_whose_only_stage_waits_for_a_node_is_pending(trial: MakeTrial) -> None:
    t = trial().running("sft", "reward")
    t.end("reward", 1)
    t.look()
    t.look(2)
    assert t.job.status.phase == "Running"
    none = t.process("reward", reason=Reason.UNSCHEDULABLE, message="no GPU")
    t.put("reward", processes=(none,))
    t.look()
    assert (t.job.status.phase, t.condition("Running").reason) == ("Pending", "Unschedulable")


def test_the_summary_names_all_stages_that_run(trial: MakeTrial) -> None:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
    t = trial(stages={"sft": base, "reward": base})
    t.look()
    t.look()
    assert (t.job.status.summary.stage, t.job.status.summary.progress) == ("sft,reward", "-,-")
    t.run("reward", step=7)
    t.look()
    assert t.job.status.summary.progress == "-,7%"
    t.run("sft", step=42)
    t.look()
    assert (t.job.status.summary.stage, t.job.status.summary.progress) == ("sft,reward", "42%,7%")
    t.finish("sft")
    t.end("reward", 65, said={"reason": Reason.DATA_ERROR})
    t.look()
    assert (t.job.status.summary.stage, t.job.status.summary.reason) == ("reward", "DataError")


def ended(trial: Any) -> None:
    trial.end("sft", 65)


def suspended(trial: Any) -> None:
    trial.attempts.clear()
    trial.spec(suspend=True)


def live(trial: Any) -> None:
    trial.run("sft", step=11)


@pytest.mark.parametrize("become", [ended, suspended, live])
def test_every_generation_of_the_spec_is_told(
    trial: MakeTrial, become: Callable[[Any], None]
) -> None:
    """`kubectl wait` waits for a condition of the newest one."""
    t = trial(queueName="q").running("sft")
    become(t)
    t.look()
    t.look()
    metadata = t.job.metadata.model_copy(update={"generation": 7})
    t.job = t.job.model_copy(update={"metadata": metadata})
    before = t.job.status
    t.look()
    assert t.job.status.observed_generation == 7
    assert len(t.job.status.conditions) >= 4
    for old, new in zip(before.conditions, t.job.status.conditions, strict=True):
        assert new == old.model_copy(update={"observed_generation": 7})
    assert (t.last.actions, t.last.events) == ((), ())


def waits(trial: Any, reason: Reason | None, message: str = "") -> None:
    trial.put("sft", processes=(trial.process("sft", reason=reason, message=message),))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Warning", Reason.UNSCHEDULABLE),
        ("Warning", Reason.QUOTA_EXCEEDED),
        ("Warning", Reason.IMAGE_PULL),
        ("Normal", Reason.QUEUED),
    ],
)
def test_what_keeps_an_attempt_from_running_is_told_once(
    trial: MakeTrial, kind: str, reason: Reason
) -> None:
    t = trial()
    t.look()
    waits(t, None)
    t.look(1)
    assert [each[1] for each in told(t)] == ["Created"]
    waits(t, reason, "it waits")
    t.look(1)
    assert told(t) == [(kind, reason.value, "stage sft: it waits")]
    running = t.condition("Running")
    assert (running.reason, running.message) == (reason, "stage sft: it waits")
    for message in ("it waits", "it waits still"):
        waits(t, reason, message)
        t.look(60)
        assert told(t) == []
    # Gone, and there again; and another cause in its place.
    for cause, found in [(None, 0), (reason, 1), (Reason.POD_SECURITY_VIOLATED, 1)]:
        waits(t, cause, "it waits")
        t.look(60)
        assert len(told(t)) == found


@pytest.mark.parametrize("reason", [Reason.CLAIM_MISSING, Reason.WEBHOOK_UNAVAILABLE])
def test_a_refusal_is_told_once_for_an_attempt_and_in_one_word(
    trial: MakeTrial, reason: Reason
) -> None:
    t = trial(stages={"sft": {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows"}}})
    t.look()
    t.refusals["sft", 1] = Refusal(reason, "it is refused")
    t.look(1)
    assert told(t) == [("Warning", reason.value, "stage sft: it is refused")]
    assert {t.condition(kind).reason for kind in ("ChildrenReady", "Running")} == {reason}
    assert t.job.status.summary.reason == reason
    for message in ("it is refused", "it is refused again"):
        t.refusals["sft", 1] = Refusal(reason, message)
        t.look(60)
        assert told(t) == []


def test_a_child_that_cannot_be_deleted_is_told_once(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.spec(suspend=True)
    t.look(1)
    t.refusals["sft", 1] = Refusal(Reason.FORBIDDEN, "deleting Job reviews-sft-1: no")
    t.look(1)
    assert told(t) == [("Warning", "Forbidden", "deleting Job reviews-sft-1: no")]
    t.look(60)
    assert told(t) == []


def test_the_first_hindrance_of_several_stages_is_the_reason(trial: MakeTrial) -> None:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
    t = trial(stages={"sft": base, "reward": base})
    t.look()
    for name, reason in (("sft", None), ("reward", Reason.UNSCHEDULABLE)):
        t.put(name, processes=(t.process(name, reason=reason, message="no GPU"),))
    t.look(1)
    assert t.condition("Running").reason is Reason.UNSCHEDULABLE
