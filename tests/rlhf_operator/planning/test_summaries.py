"""What people are told: phase, summary, Events."""

from collections.abc import Callable
from typing import Any

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


def test_the_summary_names_all_stages_that_run(trial: MakeTrial) -> None:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
    t = trial(stages={"sft": base, "reward": base})
    t.look()
    t.run("sft", step=42)
    t.run("reward", step=7)
    t.look()
    assert (t.job.status.summary.stage, t.job.status.summary.progress) == ("sft,reward", "42%,7%")
    t.finish("sft")
    t.end("reward", 65, said={"reason": Reason.DATA_ERROR})
    t.look()
    assert (t.job.status.summary.stage, t.job.status.summary.reason) == ("reward", "DataError")
