"""When a job's status is written, and when the job is deleted."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from rlhf_api.names import Reason
from rlhf_operator.planning.pace import is_expired, is_pressing, is_worth_writing

MakeTrial = Callable[..., Any]


def started(trial: Any) -> Any:
    trial.look()
    trial.run("sft", step=1)
    trial.look()
    return trial


def test_a_job_that_is_over_is_deleted_when_its_time_has_come(trial: MakeTrial) -> None:
    t = started(trial(runPolicy={"ttlSecondsAfterFinished": 60}))
    assert not is_expired(t.job, t.now + timedelta(days=1))
    t.end("sft", 65)
    t.look()
    assert not is_expired(t.job, t.now + timedelta(seconds=59))
    assert is_expired(t.job, t.now + timedelta(seconds=60))


def test_a_job_without_ttl_stays(trial: MakeTrial) -> None:
    t = started(trial())
    t.end("sft", 65)
    t.look()
    assert not is_expired(t.job, t.now + timedelta(days=1000))


def test_mere_progress_is_written_when_it_is_time_and_the_rest_at_once(trial: MakeTrial) -> None:
    t = started(trial())
    before = t.job.status
    t.run("sft", step=2, eta_seconds=5, metrics={"loss": 1.0})
    t.scrape_error = "connection refused"
    t.look(5)
    assert t.condition("ProgressReporting").status == "False"
    assert not is_worth_writing(before, t.job.status, fresh_progress=False)
    assert is_worth_writing(before, t.job.status, fresh_progress=True)
    progressed = t.job.status
    t.end("sft", 1)
    t.look()
    assert is_worth_writing(progressed, t.job.status, fresh_progress=False)


@pytest.mark.parametrize("progress", [{"step": 1}, {"step": 0, "last_checkpoint_step": 0}])
def test_what_verdicts_need_is_written_at_once(trial: MakeTrial, progress: dict[str, int]) -> None:
    """A new leader must know of the first step and of every checkpoint."""
    t = trial()
    t.look()
    t.run("sft", step=0)
    t.look()
    before = t.job.status
    t.run("sft", **progress)
    t.look()
    assert is_worth_writing(before, t.job.status, fresh_progress=False)


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
    assert not is_worth_writing(before, t.job.status, fresh_progress=False)


def test_the_same_is_never_written(trial: MakeTrial) -> None:
    t = started(trial())
    before = t.job.status
    t.look(100)
    assert not is_worth_writing(before, t.job.status, fresh_progress=True)


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
    assert is_worth_writing(status, status.model_copy(update=change), fresh_progress=False)


def test_a_new_reason_of_a_stage_is_written_at_once(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    before = t.job.status
    t.put("sft", processes=(t.process("sft", reason=Reason.IMAGE_PULL, message="no image x"),))
    t.look()
    assert is_worth_writing(before, t.job.status, fresh_progress=False)


def test_decisions_are_pressing_and_waiting_and_progress_are_not(trial: MakeTrial) -> None:
    t = trial()
    fresh = t.job.status
    t.look()
    assert is_pressing(fresh, t.job.status)  # an attempt is announced
    announced = t.job.status
    held = t.process("sft", reason=Reason.UNSCHEDULABLE, message="0/2 nodes are available")
    t.put("sft", processes=(held,))
    t.look()
    assert announced != t.job.status
    assert not is_pressing(announced, t.job.status)
    waiting = t.job.status
    t.run("sft", step=0)
    t.look()
    assert is_pressing(waiting, t.job.status)  # it runs
    running = t.job.status
    t.run("sft", step=1)
    t.look()
    assert is_pressing(running, t.job.status)  # its first step
    stepped = t.job.status
    t.run("sft", step=2, metrics={"loss": 1.0})
    t.look(10)
    assert not is_pressing(stepped, t.job.status)
    t.run("sft", step=3, last_checkpoint_step=3)
    t.look()
    assert is_pressing(stepped, t.job.status)  # a checkpoint
    saved = t.job.status
    t.finish("sft")
    t.look()
    assert is_pressing(saved, t.job.status)
