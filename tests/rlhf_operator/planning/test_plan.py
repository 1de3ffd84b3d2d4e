"""What a job does next, case by case: order, acceptance, restarts, suspension, deadlines."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_api.v1alpha1 import Artifact, RLHFJobStatus, RunPolicy
from rlhf_operator.planning.observed import ObservedAttempt, ProcessPhase
from rlhf_operator.planning.plan import StopAttempt, is_finished, with_idle_time

MakeTrial = Callable[..., Any]


def policy(**changes: Any) -> dict[str, Any]:
    return {"runPolicy": changes}


def running(trial: Any, *names: str) -> Any:
    """`trial` with each stage before the last done and the last one running."""
    trial.look()
    for name in names[:-1]:
        trial.run(name)
        trial.look(1)
        trial.finish(name)
        trial.look(1)
    trial.run(names[-1], step=10)
    trial.look(1)
    return trial


def test_stages_follow_who_reads_whom(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    assert t.started() == [("sft", 1)]
    assert t.stage("reward").message == "waits for sft"
    assert t.stage("ppo").message == "waits for sft and reward"
    t.finish("sft")
    t.look()
    assert t.started() == [("reward", 1)]
    assert t.last.actions[0].config.artifacts == {StageName.SFT: t.stage("sft").artifact}
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
    t = running(trial(), "sft", "reward", "ppo")
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
        "reason": "PodsReady",
    }


def test_progress_that_cannot_be_shown_is_left_out(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
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
    t = running(trial(), "sft")
    t.finish("sft", **changes)
    t.look()
    assert (t.stage("sft").state, t.stage("sft").reason) == ("Failed", Reason.ARTIFACT_INVALID)
    assert message in t.condition("Failed").message


def test_pods_of_one_gang_must_name_one_artifact(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
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
    t = running(trial(), "sft")
    done = t.process("sft", phase=ProcessPhase.SUCCEEDED, exit_code=0)
    t.put("sft", processes=() if gone else (done,), complete=True)
    t.look()
    sft = t.stage("sft")
    assert (sft.state, sft.restarts, sft.disruptions) == ("Restarting", restarts, disruptions)
    t.look(2)
    assert t.started() == [("sft", 2)]


def test_a_crash_restarts_with_backoff(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    t.run("sft", step=30, last_checkpoint_step=20, eta_seconds=9)
    t.look()
    t.end("sft", 1, said={"message": "boom"})
    t.look()
    assert (t.stage("sft").state, t.stage("sft").restarts) == ("Restarting", 1)
    assert (t.condition("Running").reason, t.job.status.phase) == ("Restarting", "Restarting")
    assert t.last.events[0].message == "stage sft: boom"
    t.look(1)
    assert t.last.actions == ()
    t.look(1)
    assert t.started() == [("sft", 2)]
    assert t.last.actions[0].checkpoint_step == 20
    assert t.stage("sft").start_time < t.stage("sft").attempt_start_time
    assert t.stage("sft").progress.step == 30
    assert t.stage("sft").progress.eta_seconds is None
    # The step is an earlier one now, and that is progress all the same.
    t.run("sft", step=21)
    t.look(5)
    assert t.stage("sft").last_progress_time == t.now


def test_restarts_are_bounded(trial: MakeTrial) -> None:
    t = running(trial(**policy(maxRestarts=1)), "sft")
    t.end("sft", 1)
    t.look()
    t.look(2)
    t.end("sft", 74, said={"reason": Reason.IO_ERROR, "message": "disk full"})
    t.look()
    assert t.stage("sft").reason is Reason.MAX_RESTARTS
    assert t.condition("Failed").message == (
        "stage sft: disk full (runPolicy.maxRestarts 1 is used up)"
    )
    assert t.job.status.summary.reason == "MaxRestarts"


def test_disruptions_are_counted_apart_and_bounded(trial: MakeTrial) -> None:
    t = running(trial(**policy(maxRestarts=0, maxDisruptions=1)), "sft")
    t.run("sft", step=30, last_checkpoint_step=20)
    t.end("sft", 143, disrupted=True)
    t.look()
    assert (t.stage("sft").restarts, t.stage("sft").disruptions) == (0, 1)
    t.look(1)
    assert t.started() == [("sft", 2)]
    t.put("sft", checkpoint_step=20)
    t.run("sft", step=40, last_checkpoint_step=40)
    t.end("sft", 143, disrupted=True)
    t.look()
    assert t.stage("sft").reason is Reason.MAX_DISRUPTIONS


def test_a_persons_mistake_fails_once_at_once(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    t.end("sft", 65, said={"reason": Reason.DATA_ERROR, "message": "rows.jsonl: line 3: no query"})
    t.look()
    assert t.last.actions == ()
    assert t.condition("Failed").reason is Reason.DATA_ERROR
    assert t.condition("Failed").message == "stage sft: rows.jsonl: line 3: no query"
    assert [event.type for event in t.last.events] == ["Warning", "Warning"]


def test_the_old_gang_is_gone_before_the_next_starts(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    dead = t.process("sft", phase=ProcessPhase.FAILED, exit_code=1, finished_at=t.now)
    hung = t.process("sft", index=1, phase=ProcessPhase.RUNNING, ready=True)
    t.put("sft", processes=(dead, hung))
    t.look(9)
    assert (t.stage("sft").state, t.last.actions) == ("Running", ())
    t.look(1)
    assert (t.stage("sft").state, t.stops()) == ("Restarting", [("sft", 1)])
    t.put("sft", processes=(dead, t.process("sft", phase=ProcessPhase.RUNNING, terminating=True)))
    t.look(60)
    assert t.last.actions == ()
    t.put("sft", processes=(dead, t.process("sft", phase=ProcessPhase.RUNNING, lost=True)))
    t.look()
    assert t.started() == [("sft", 2)]


def test_nothing_starts_beside_an_earlier_attempt_that_has_come_back(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    t.end("sft", 1)
    t.look()
    t.look(2)
    assert t.started() == [("sft", 2)]
    back = t.process("sft", phase=ProcessPhase.RUNNING, ready=True)
    t.attempts[StageName.SFT, 1] = ObservedAttempt(StageName.SFT, 1, (back,))
    t.look()
    assert (t.started(), t.stops()) == ([], [("sft", 1)])
    del t.attempts[StageName.SFT, 1]
    t.look()
    assert t.started() == [("sft", 2)]


def test_an_attempt_that_vanished_is_another_one(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    t.attempts.clear()
    t.look()
    assert (t.stage("sft").state, t.stage("sft").restarts) == ("Restarting", 1)
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
    t = running(trial(), "sft")
    t.end("sft", 65)
    t.look()
    written = t.job.status
    stray = ObservedAttempt(StageName.SFT, 1)
    t.attempts = {(StageName.SFT, 1): stray}
    t.spec(suspend=True)
    t.look(10)
    assert t.job.status is written
    assert t.last.actions == (StopAttempt(StageName.SFT, 1, Reason.FINISHED),)
    assert t.last.events == ()


def test_suspension_saves_and_counts_nothing_against_the_stage(trial: MakeTrial) -> None:
    t = running(trial(**policy(maxRestarts=0)), "sft")
    t.spec(suspend=True)
    t.look()
    assert (t.stage("sft").state, t.stops()) == ("Stopping", [("sft", 1)])
    assert t.condition("Suspended") is None
    t.end("sft", 143)
    t.look()
    assert (t.stage("sft").state, t.stage("sft").disruptions) == ("Suspended", 1)
    assert t.condition("Suspended").status == "True"
    assert (t.job.status.phase, t.condition("Running").status) == ("Suspended", "False")
    assert t.look(1000).actions == ()
    t.spec(suspend=False)
    t.look()
    assert t.started() == [("sft", 2)]
    assert (t.condition("Suspended").status, t.condition("Suspended").reason) == (
        "False",
        Reason.RESUMED,
    )
    assert t.stage("sft").restarts == 0


def test_work_that_ends_while_it_is_stopped_is_kept(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    t.spec(suspend=True)
    t.look()
    t.finish("sft")
    t.look()
    assert t.stage("sft").state == "Succeeded"
    assert t.condition("Suspended").status == "True"
    assert t.started() == []


def test_a_mistake_found_while_stopping_is_told(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    t.spec(suspend=True)
    t.look()
    t.end("sft", 65)
    t.look()
    assert t.condition("Failed").reason is Reason.CRASHED  # what its result said


def test_suspension_before_the_first_attempt_and_while_it_is_made(trial: MakeTrial) -> None:
    t = trial(suspend=True)
    t.look()
    assert (t.last.actions, t.condition("Suspended").status) == ((), "True")
    t.spec(suspend=False)
    t.look()
    assert t.started() == [("sft", 1)]
    t.spec(suspend=True)
    t.look()
    assert (t.last.actions, t.stage("sft").state) == ((), "Suspended")
    t.spec(suspend=False)
    t.look()
    assert t.started() == [("sft", 2)]


def test_suspension_while_waiting_to_restart(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    t.end("sft", 1)
    t.look()
    t.spec(suspend=True)
    t.look()
    assert (t.stage("sft").state, t.condition("Suspended").status) == ("Suspended", "True")


def test_a_job_that_is_resumed_while_it_stops_goes_on_at_once(trial: MakeTrial) -> None:
    t = running(trial(), "sft")
    t.spec(suspend=True)
    t.look()
    t.spec(suspend=False)
    t.look()
    assert (t.stage("sft").state, t.stops()) == ("Stopping", [("sft", 1)])
    t.attempts.clear()
    t.look()
    assert t.started() == [("sft", 2)]


def test_no_deadline_counts_time_in_suspension(trial: MakeTrial) -> None:
    t = running(trial(**policy(activeDeadlineSeconds=100, stageDeadlineSeconds=90)), "sft")
    t.spec(suspend=True)
    t.look(10)
    t.end("sft", 75)
    t.look(10)
    t.look(5000)
    t.spec(suspend=False)
    t.look()
    assert t.started() == [("sft", 2)]
    t.run("sft")
    t.look(68)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert t.stage("sft").reason is Reason.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("limits", "reason", "field"),
    [
        ({"activeDeadlineSeconds": 50}, Reason.DEADLINE_EXCEEDED, "activeDeadlineSeconds (50)"),
        ({"stageDeadlineSeconds": 50}, Reason.DEADLINE_EXCEEDED, "stageDeadlineSeconds (50)"),
    ],
)
def test_deadlines_stop_what_runs_and_then_fail(
    trial: MakeTrial, limits: dict[str, int], reason: Reason, field: str
) -> None:
    t = running(trial(**policy(**limits)), "sft")
    t.look(48)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert (t.stage("sft").state, t.stops(), t.condition("Failed")) == (
        "Failed",
        [("sft", 1)],
        None,
    )
    t.end("sft", 75)
    t.look(5)
    assert t.condition("Failed").reason is reason
    assert field in t.condition("Failed").message


def test_the_job_deadline_also_ends_the_wait_for_a_restart(trial: MakeTrial) -> None:
    t = running(trial(**policy(activeDeadlineSeconds=50)), "sft")
    t.look(47)
    t.end("sft", 1)
    t.look(1)
    assert t.stage("sft").state == "Restarting"
    t.look(1)
    assert t.condition("Failed").reason is Reason.DEADLINE_EXCEEDED


def test_the_pending_deadline(trial: MakeTrial) -> None:
    t = trial(**policy(pendingDeadlineSeconds=30))
    t.look()
    t.put("sft", processes=(t.process("sft", reason=Reason.IMAGE_PULL, message="no image x"),))
    t.look(29)
    assert t.stage("sft").state == "Starting"
    t.look(1)
    assert t.stage("sft").reason is Reason.PENDING_DEADLINE_EXCEEDED
    assert t.stage("sft").message.endswith("no image x")


def test_a_gang_that_hangs_is_restarted_and_the_restart_counted(trial: MakeTrial) -> None:
    t = running(trial(**policy(progressDeadlineSeconds=60)), "sft")
    t.look(59)
    assert t.stage("sft").state == "Running"
    t.run("sft", step=11)
    t.look(1)
    t.look(59)
    assert t.stage("sft").state == "Running"
    t.look(1)
    assert (t.stage("sft").state, t.stops()) == ("Stopping", [("sft", 1)])
    t.end("sft", 75)
    t.look()
    assert (t.stage("sft").state, t.stage("sft").restarts) == ("Restarting", 1)
    assert t.stage("sft").reason is Reason.PROGRESS_DEADLINE_EXCEEDED
    t.look(2)
    t.run("sft", step=10)
    t.look(30)
    assert t.stage("sft").state == "Running"


def test_a_policy_that_changed_holds_from_now_on(trial: MakeTrial) -> None:
    t = running(trial(**policy(maxRestarts=0)), "sft")
    t.spec(run_policy=RunPolicy(max_restarts=1))
    t.end("sft", 1)
    t.look()
    assert t.stage("sft").state == "Restarting"


def test_idle_time_counts_for_clocks_that_run(trial: MakeTrial) -> None:
    t = running(trial(), "sft", "reward")
    status = t.job.status
    once = with_idle_time(status, timedelta(seconds=90.4))
    later = with_idle_time(once, timedelta(seconds=10))
    assert (later.idle_seconds, later.stages.reward.idle_seconds) == (100, 100)
    assert later.stages.sft == status.stages.sft
    assert later.stages.ppo == status.stages.ppo
    assert with_idle_time(status, timedelta(seconds=-5)) == status
    assert with_idle_time(RLHFJobStatus(), timedelta(seconds=9)) == RLHFJobStatus()


def test_no_stage_begins_before_its_job(trial: MakeTrial) -> None:
    t = running(trial(), "sft", "reward")
    started = t.job.status.start_time
    t.spec(suspend=True)
    t.look()
    t.end("reward", 75)
    t.look(2)
    assert t.stage("reward").state == "Suspended"
    t.spec(suspend=False)
    t.look(3600)
    assert t.job.status.start_time == started == t.stage("sft").start_time
    assert (t.job.status.idle_seconds, t.stage("reward").idle_seconds) == (3600, 3600)
    assert t.stage("sft").idle_seconds == 0


def test_a_status_survives_being_written(trial: MakeTrial) -> None:
    t = running(trial(), "sft", "reward")
    document = t.job.status.to_resolved_document()
    assert RLHFJobStatus.model_validate(document) == t.job.status
