"""What a job does next, case by case: order, acceptance, the end."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_api.v1alpha1 import Artifact, RLHFJobStatus
from rlhf_operator.planning.actions import StopAttempt
from rlhf_operator.planning.observed import ObservedAttempt, ProcessPhase
from rlhf_operator.planning.statuses import is_finished

MakeTrial = Callable[..., Any]


def test_stages_follow_who_reads_whom(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    assert t.started() == [("sft", 1)]
    assert t.stage("reward").message == "waits for sft"
    assert t.stage("ppo").message == "waits for sft and reward"
    t.finish("sft")
    t.look()
    assert t.started() == [("reward", 1)]
    left = t.stage("sft").artifact
    (read,) = t.last.actions[0].config.artifacts.items()
    assert read == (StageName.SFT, Artifact(uri=left.uri, digest=left.digest))
    t.finish("reward")
    t.look()
    assert t.started() == [("ppo", 1)]
    t.finish("ppo")
    t.look(60)
    assert t.last.actions == ()
    assert t.condition("Succeeded").reason is Reason.STAGES_COMPLETE
    assert t.job.status.completion_time == t.now
    assert is_finished(t.job.status)


def test_independent_stages_run_side_by_side(trial: MakeTrial) -> None:
    dataset = {"uri": "file:///rows.jsonl"}
    base = {"model": {"uri": "hf://a/b"}, "dataset": dataset}
    ppo = {"model": {"fromStage": "sft"}, "rewardModel": {"fromStage": "reward"}}
    t = trial(stages={"sft": base, "reward": base, "ppo": ppo | {"dataset": dataset}})
    t.look()
    assert t.started() == [("sft", 1), ("reward", 1)]
    t.finish("reward")
    t.look()
    assert (t.started(), t.stage("ppo").message) == ([("sft", 1)], "waits for sft")


def independent(trial: MakeTrial, *in_turn: str) -> Any:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
    t = trial(stages={"sft": base, "reward": base})
    names = frozenset(StageName(name) for name in in_turn)
    t.placement = replace(t.placement, in_turn=names)
    return t


def test_stages_that_share_gpus_follow_one_another(trial: MakeTrial) -> None:
    t = independent(trial, "sft", "reward")
    t.look()
    assert t.started() == [("sft", 1)]
    assert t.stage("reward").message == "waits for sft to leave the GPUs"
    assert t.condition("Running").message
    t.run("sft", step=10)
    t.look(60)
    assert t.started() == []
    t.finish("sft")
    t.look()
    assert t.started() == [("reward", 1)]
    t.finish("reward")
    t.look()
    assert is_finished(t.job.status)


def test_a_restart_waits_for_who_has_the_gpus_by_then(trial: MakeTrial) -> None:
    t = independent(trial, "sft", "reward")
    t.look()
    t.run("sft", step=10)
    t.look(1)
    t.end("sft")
    t.look(1)
    assert (t.stage("sft").state, t.started()) == ("Restarting", [("reward", 1)])
    t.run("reward", step=1)
    t.look(3600)
    assert (t.stage("sft").state, t.started()) == ("Restarting", [])
    t.finish("reward")
    t.look(1)
    assert t.started() == [("sft", 2)]


@pytest.mark.parametrize("in_turn", [(), ("sft",), ("reward", "ppo")])
def test_a_stage_without_a_rival_waits_for_nobody(
    trial: MakeTrial, in_turn: tuple[str, ...]
) -> None:
    t = independent(trial, *in_turn)
    t.look()
    assert t.started() == [("sft", 1), ("reward", 1)]


def test_a_start_that_was_not_seen_is_repeated_under_its_number(trial: MakeTrial) -> None:
    t = trial()
    first = t.look().actions
    written = t.job.status
    assert t.look(5).actions == first
    assert t.job.status == written
    assert t.last.events == ()


def test_a_stage_runs_when_its_whole_gang_does(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    pending = t.process("sft", reason=Reason.UNSCHEDULABLE, message="0/2 nodes have a GPU")
    t.put("sft", processes=(pending, t.process("sft", phase=ProcessPhase.RUNNING, ready=True)))
    t.look()
    assert (t.stage("sft").state, t.stage("sft").reason) == ("Starting", Reason.UNSCHEDULABLE)
    assert t.condition("Running").reason is Reason.UNSCHEDULABLE
    assert t.condition("Running").message == "stage sft: 0/2 nodes have a GPU"
    assert t.job.status.phase == "Pending"
    t.run("sft")
    t.look()
    assert (t.stage("sft").state, t.condition("Running").status) == ("Running", "True")
    assert t.job.status.phase == "Running"


def test_progress_comes_into_status_and_summary(trial: MakeTrial) -> None:
    t = trial().running("sft", "reward", "ppo")
    metrics = {"reward": 1.308, "kl": 4.2, "critic_loss": 0.0831, "gradient_norm": 3.0}
    t.run("ppo", step=42, eta_seconds=61.6, metrics=metrics, last_checkpoint_step=40)
    t.look()
    ppo = t.stage("ppo")
    assert ppo.progress.to_resolved_document() == {
        "step": 42,
        "totalSteps": 100,
        "percent": 42,
        "etaSeconds": 62,
    }
    assert ppo.metrics == {"reward": 1.308, "kl": 4.2, "critic_loss": 0.0831}
    assert ppo.last_checkpoint_step == 40
    assert t.job.status.summary.to_resolved_document() == {
        "stage": "ppo",
        "progress": "42%",
        "restarts": "0",
        "reward": "1.31",
        "kl": "4.20",
        "criticLoss": "0.0831",
        "rows": "",
        "reason": "PodsReady",
    }


def test_progress_that_cannot_be_shown_is_left_out(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.run("sft", step=3, total_steps=0, eta_seconds=float("nan"))
    t.look()
    assert t.stage("sft").progress.percent == 0
    assert t.stage("sft").progress.eta_seconds is None


OTHER = "sha256:" + "b" * 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attempt": 2}, "its result is of stage sft, attempt 2"),
        ({"stage": StageName.PPO}, "its result is of stage ppo, attempt 1"),
        ({"config_digest": OTHER}, f"its result is of configuration {OTHER}"),
        ({"artifact": None}, "its results name 0 artifacts"),
        (
            {"artifact": Artifact(uri="other-01234567/sft/attempt-1/artifact", digest=OTHER)},
            "does not lie in a folder of this stage",
        ),
        (
            {"artifact": Artifact(uri="reviews-01234567/sft/attempt-2/artifact", digest=OTHER)},
            "does not lie in a folder of this stage",
        ),
    ],
)
def test_a_result_that_does_not_agree_is_refused(
    trial: MakeTrial, changes: dict[str, Any], message: str
) -> None:
    t = trial().running("sft")
    t.finish("sft", **changes)
    t.look()
    assert (t.stage("sft").state, t.stage("sft").reason) == ("Failed", Reason.ARTIFACT_INVALID)
    assert message in t.condition("Failed").message


def test_pods_of_one_gang_must_name_one_artifact(trial: MakeTrial) -> None:
    t = trial().running("sft")
    done = {"phase": ProcessPhase.SUCCEEDED, "exit_code": 0}
    silent = t.process("sft", index=1, result=t.result("sft", artifact=None), **done)
    speaks = t.process("sft", index=0, result=t.result("sft", step=100, metrics={"loss": 1}))
    t.put("sft", processes=(silent, speaks), complete=True)
    t.look()
    sft = t.stage("sft")
    assert (sft.state, sft.progress.percent, sft.metrics) == ("Succeeded", 100, {"loss": 1})


@pytest.mark.parametrize(("gone", "restarts", "disruptions"), [(False, 1, 0), (True, 0, 1)])
def test_a_lost_result_is_asked_for_again(
    trial: MakeTrial, gone: bool, restarts: int, disruptions: int
) -> None:
    t = trial().running("sft")
    done = t.process("sft", phase=ProcessPhase.SUCCEEDED, exit_code=0)
    t.put("sft", processes=() if gone else (done,), complete=True)
    t.look()
    sft = t.stage("sft")
    assert (sft.state, sft.restarts, sft.disruptions) == ("Restarting", restarts, disruptions)
    t.look(2)
    assert t.started() == [("sft", 2)]


def test_a_failure_stops_the_other_stages_and_then_the_job(trial: MakeTrial) -> None:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "file:///rows.jsonl"}}
    t = trial(stages={"sft": base, "reward": base})
    t.look()
    t.run("sft")
    t.run("reward")
    t.look()
    t.end("reward", 78, said={"message": "no"})
    t.look()
    assert t.stops() == [("sft", 1)]
    assert (t.stage("sft").state, t.condition("Failed")) == ("Stopping", None)
    t.end("sft", 75)
    t.look()
    assert (t.stage("sft").state, t.stage("sft").reason) == ("Suspended", Reason.STOPPED)
    assert t.condition("Failed").message == "stage reward: no"
    assert t.job.status.completion_time == t.now


def test_a_terminal_job_only_stops_what_is_left(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.end("sft", 65)
    t.look()
    written = t.job.status.stages, t.job.status.phase
    stray = ObservedAttempt(StageName.SFT, 1)
    t.attempts = {(StageName.SFT, 1): stray}
    t.spec(suspend=True)
    t.look(10)
    assert (t.job.status.stages, t.job.status.phase) == written
    assert t.last.actions == (StopAttempt(StageName.SFT, 1, Reason.FINISHED),)
    assert t.last.events == ()


def test_a_status_survives_being_written(trial: MakeTrial) -> None:
    t = trial().running("sft", "reward")
    document = t.job.status.to_resolved_document()
    assert RLHFJobStatus.model_validate(document) == t.job.status
