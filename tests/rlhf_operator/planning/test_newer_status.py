"""An operator of this release beside a status that a newer one has written."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus
from rlhf_operator.planning.statuses import is_finished, with_idle_time

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}


def rewritten(trial: Any, change: Callable[[dict[str, Any]], None]) -> None:
    """The job as it is read when its status was changed in JSON."""
    document = trial.job.status.to_resolved_document()
    change(document)
    whole = trial.job.to_document() | {"status": document}
    whole["metadata"] = {"name": "reviews", "uid": trial.job.metadata.uid}
    trial.job = RLHFJob.from_document(whole)


def test_what_is_not_known_is_written_back(trial: MakeTrial) -> None:
    t = trial().running("sft")

    def change(status: dict[str, Any]) -> None:
        status["spare"] = {"nodes": [1, 2]}
        status["summary"]["speed"] = "fast"
        status["stages"]["distill"] = {"state": "Running"}
        status["stages"]["sft"]["spare"] = 7
        status["stages"]["sft"]["progress"]["tokens"] = 5
        status["conditions"][0]["severity"] = "High"
        other = {"type": "Melting", "status": "True", "reason": "Heat", "message": ""}
        status["conditions"].append(other | {"lastTransitionTime": "2026-01-01T00:00:00Z"})

    rewritten(t, change)
    t.run("sft", step=11)
    t.look(1)
    written = t.job.status.to_resolved_document()
    assert written["spare"] == {"nodes": [1, 2]}
    assert written["summary"]["speed"] == "fast"
    assert written["stages"]["distill"] == {"state": "Running"}
    assert written["stages"]["sft"]["spare"] == 7
    assert written["stages"]["sft"]["progress"] | {"step": 0} == {
        "step": 0,
        "totalSteps": 100,
        "percent": 11,
        "tokens": 5,
    }
    assert written["conditions"][0]["severity"] == "High"
    assert [each["type"] for each in written["conditions"]][-1] == "Melting"
    assert "observedGeneration" not in written["conditions"][-1]
    t.finish("sft")
    t.look()
    assert t.job.status.to_resolved_document()["stages"]["sft"]["spare"] == 7


def test_an_artifact_is_read_and_its_new_fields_stay_in_status(trial: MakeTrial) -> None:
    t = trial().running("sft", "reward")
    t.finish("reward")
    t.look()

    def change(status: dict[str, Any]) -> None:
        status["stages"]["sft"]["artifact"]["size"] = 9

    rewritten(t, change)
    t.look()
    assert t.started() == [("ppo", 1)]
    config = t.last.actions[0].config.to_resolved_document()
    assert set(config["artifacts"]["sft"]) == {"uri", "digest"}
    assert t.job.status.to_resolved_document()["stages"]["sft"]["artifact"]["size"] == 9


def thawing(status: dict[str, Any]) -> None:
    status["stages"]["sft"] |= {"state": "Thawing", "reason": "SpringTime"}
    status["phase"] = "Thawing"


@pytest.mark.parametrize("happens", ["run", "finish", "end", "vanish"])
def test_a_stage_in_a_state_that_is_not_known_is_left_alone(trial: MakeTrial, happens: str) -> None:
    limits = {"stageDeadlineSeconds": 60, "activeDeadlineSeconds": 60}
    t = trial(stages={"sft": BASE, "reward": BASE}, runPolicy=limits).running("sft")
    rewritten(t, thawing)
    before = t.stage("sft")
    assert (before.state, before.reason) == ("Thawing", "SpringTime")
    t.attempts.clear() if happens == "vanish" else getattr(t, happens)("sft")
    t.look(1000)
    assert t.stage("sft") == before
    assert [each for each in t.started() + t.stops() if each[0] == "sft"] == []
    # The other one is over, by its deadline.
    assert t.stage("reward").state == "Failed"
    t.spec(suspend=True)
    t.look(10)
    assert t.stage("sft") == before
    assert not is_finished(t.job.status)
    assert t.condition("Suspended") is None
    assert with_idle_time(t.job.status, timedelta(seconds=5)).stages.sft == before


def test_who_reads_a_stage_in_an_unknown_state_does_not_start(trial: MakeTrial) -> None:
    t = trial().running("sft", "reward")
    t.attempts.clear()
    t.look()
    t.look(2)
    assert t.started() == [("reward", 2)]
    rewritten(t, thawing)
    t.look()
    assert t.last.actions == ()


def test_a_word_that_is_not_known_is_kept(trial: MakeTrial) -> None:
    status = RLHFJobStatus.model_validate({"phase": "Thawing", "stages": {"sft": {"state": "Odd"}}})
    assert status.to_resolved_document()["phase"] == "Thawing"
    assert RLHFJobStatus.model_validate(status.to_resolved_document()) == status
