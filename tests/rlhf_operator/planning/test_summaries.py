"""What people are told: phase, summary, Events."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import Reason

MakeTrial = Callable[..., Any]


def told(trial: Any) -> list[tuple[str, str, str]]:
    return [(event.type, event.reason.value, event.message) for event in trial.last.events]


def test_events_of_a_whole_run(trial: MakeTrial) -> None:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
    t = trial(stages={"sft": base})
    t.look()
    assert told(t) == [("Normal", "Created", "stage sft: attempt 1 starts")]
    t.run("sft")
    t.look()
    assert told(t) == [("Normal", "PodsReady", "stage sft: attempt 1 runs")]
    t.run("sft", step=5)
    t.look()
    assert told(t) == []
    t.spec(suspend=True)
    t.look()
    assert told(t) == [("Normal", "Stopping", "stage sft: stopped on request")]
    t.end("sft", 75)
    t.look()
    assert [each[1] for each in told(t)] == ["UserRequested", "UserRequested"]
    t.spec(suspend=False)
    t.look()
    assert [each[1] for each in told(t)] == ["Created", "Resumed"]
    t.finish("sft", message="done after 100 steps")
    t.look()
    assert told(t) == [
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
