"""When a job is looked at again, when its status is written, when it is deleted."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_operator.planning.observed import Observed, ObservedAttempt, ProcessPhase
from rlhf_operator.planning.pace import (
    PROGRESS_SECONDS,
    REST_SECONDS,
    is_expired,
    is_worth_writing,
    next_look,
)

MakeTrial = Callable[..., Any]


def wait(trial: Any) -> float:
    """Seconds to the next look, after one now."""
    trial.look()
    return next_look(trial.job, Observed(tuple(trial.attempts.values())), trial.now)


def started(trial: Any) -> Any:
    trial.look()
    trial.run("sft", step=1)
    trial.look()
    return trial


def test_a_job_that_waits_for_nothing_rests(trial: MakeTrial) -> None:
    assert wait(trial(suspend=True)) == REST_SECONDS


def test_what_runs_or_starts_is_looked_at_for_its_progress(trial: MakeTrial) -> None:
    t = trial()
    assert wait(t) == PROGRESS_SECONDS
    t.run("sft")
    assert wait(t) == PROGRESS_SECONDS
    t.spec(suspend=True)
    assert wait(t) == PROGRESS_SECONDS


def test_a_gang_that_has_begun_to_fail_is_looked_at_every_second(trial: MakeTrial) -> None:
    t = started(trial())
    dead = t.process("sft", phase=ProcessPhase.FAILED, exit_code=1, finished_at=t.now)
    t.put("sft", processes=(dead, t.process("sft", index=1, phase=ProcessPhase.RUNNING)))
    assert wait(t) == 1


def test_a_restart_is_due_when_its_backoff_is_over(trial: MakeTrial) -> None:
    t = started(trial())
    t.end("sft", 1)
    assert wait(t) == 2
    t.seconds += 0.75
    assert wait(t) == 1.25


def test_a_restart_that_waits_for_the_old_gang_is_not_looked_at_without_pause(
    trial: MakeTrial,
) -> None:
    t = started(trial())
    dead = t.process("sft", phase=ProcessPhase.FAILED, exit_code=1, finished_at=t.now)
    hung = t.process("sft", index=1, phase=ProcessPhase.RUNNING, terminating=True)
    t.put("sft", processes=(dead, hung))
    t.seconds += 10
    assert wait(t) == 2
    t.seconds += 60
    assert t.stage("sft").state == "Restarting"
    assert wait(t) == PROGRESS_SECONDS


def test_a_deadline_that_is_over_is_not_looked_at_without_pause(trial: MakeTrial) -> None:
    t = started(trial(runPolicy={"activeDeadlineSeconds": 100}))
    t.seconds = 200
    assert wait(t) == PROGRESS_SECONDS
    assert (t.stage("sft").state, t.stage("reward").state) == ("Failed", "Waiting")


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        ({"activeDeadlineSeconds": 100}, 100),
        ({"stageDeadlineSeconds": 100}, 100),
        ({"progressDeadlineSeconds": 100}, 100),
        ({"pendingDeadlineSeconds": 100}, None),
    ],
)
def test_the_nearest_deadline_is_not_missed(
    trial: MakeTrial, policy: dict[str, int], seconds: int | None
) -> None:
    t = started(trial(runPolicy=policy))
    t.seconds = 97.5
    assert wait(t) == (PROGRESS_SECONDS if seconds is None else 2.5)


def test_the_pending_deadline_is_not_missed(trial: MakeTrial) -> None:
    t = trial(runPolicy={"pendingDeadlineSeconds": 100})
    t.look()
    t.seconds = 97.5
    assert wait(t) == 2.5


def test_time_in_suspension_moves_deadlines(trial: MakeTrial) -> None:
    t = started(trial(runPolicy={"activeDeadlineSeconds": 100, "stageDeadlineSeconds": 200}))
    t.spec(suspend=True)
    t.look()
    t.attempts.clear()
    assert wait(t) == REST_SECONDS
    t.seconds = 1000
    assert wait(t) == REST_SECONDS
    t.spec(suspend=False)
    t.look()
    t.seconds = 1095
    assert wait(t) == 5


def test_a_job_that_is_over_rests_until_it_is_deleted(trial: MakeTrial) -> None:
    t = started(trial(runPolicy={"ttlSecondsAfterFinished": 60}))
    assert not is_expired(t.job, t.now + timedelta(days=1))
    t.end("sft", 65)
    assert wait(t) == 60
    assert not is_expired(t.job, t.now + timedelta(seconds=59))
    assert is_expired(t.job, t.now + timedelta(seconds=60))
    # An attempt that is left over changes nothing.
    left = ObservedAttempt(StageName.SFT, 9)
    assert next_look(t.job, Observed((left,)), t.now) == 60
    assert next_look(t.job, Observed(), t.now + timedelta(seconds=61)) == 0


def test_a_job_without_ttl_stays(trial: MakeTrial) -> None:
    t = started(trial())
    t.end("sft", 65)
    assert wait(t) == REST_SECONDS
    assert not is_expired(t.job, t.now + timedelta(days=1000))


def test_progress_is_written_now_and_then_and_the_rest_at_once(trial: MakeTrial) -> None:
    t = started(trial())
    before = t.job.status
    t.run("sft", step=2, eta_seconds=5, metrics={"loss": 1.0}, last_checkpoint_step=2)
    t.look(5)
    assert t.job.status != before
    assert not is_worth_writing(before, t.job.status, 9.9)
    assert is_worth_writing(before, t.job.status, 10)
    progressed = t.job.status
    t.end("sft", 1)
    t.look()
    assert is_worth_writing(progressed, t.job.status, 0)


def test_ppo_figures_of_the_summary_are_progress(trial: MakeTrial) -> None:
    t = trial()
    for name in ("sft", "reward"):
        t.look()
        t.finish(name)
    t.look()
    t.run("ppo", step=1)
    t.look()
    before = t.job.status
    t.run("ppo", step=2, metrics={"reward": 1.0, "kl": 2.0, "critic_loss": 0.5})
    t.look()
    assert t.job.status.summary != before.summary
    assert not is_worth_writing(before, t.job.status, 1)


def test_the_same_is_never_written(trial: MakeTrial) -> None:
    t = started(trial())
    before = t.job.status
    t.look(100)
    assert not is_worth_writing(before, t.job.status, 1e9)


@pytest.mark.parametrize(
    "change",
    [
        {"observed_generation": 7},
        {"idle_seconds": 3},
        {"conditions": ()},
    ],
)
def test_every_other_change_is_written_at_once(trial: MakeTrial, change: dict[str, Any]) -> None:
    status = started(trial()).job.status
    assert is_worth_writing(status, status.model_copy(update=change), 0)


def test_a_new_reason_of_a_stage_is_written_at_once(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    before = t.job.status
    t.put("sft", processes=(t.process("sft", reason=Reason.IMAGE_PULL, message="no image x"),))
    t.look()
    assert is_worth_writing(before, t.job.status, 0)
