"""When a job's status is written, and when the job is deleted."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import StageStatuses
from rlhf_operator.planning.observed import ProcessPhase
from rlhf_operator.planning.pace import Change, change, is_expired, without_progress

MakeTrial = Callable[..., Any]


def starting(trial: Any) -> Any:
    trial.look()
    return trial


def running(trial: Any, step: int = 0) -> Any:
    starting(trial).run("sft", step=step)
    trial.look()
    return trial


def restarted(trial: Any) -> Any:
    """A second attempt that runs and has told nothing yet."""
    running(trial, 1).end("sft", 1)
    trial.look()
    trial.look(5)
    trial.put("sft", processes=(trial.process("sft", phase=ProcessPhase.RUNNING, ready=True),))
    trial.look()
    return trial


def in_ppo(trial: Any) -> Any:
    trial.running("sft", "reward", "ppo")
    return trial


def held(t: Any) -> None:
    process = t.process("sft", reason=Reason.UNSCHEDULABLE, message="0/2 nodes are available")
    t.put("sft", processes=(process,))


def unreachable(t: Any) -> None:
    t.scrape_error = "connection refused"


def test_a_job_that_is_over_is_deleted_when_its_time_has_come(trial: MakeTrial) -> None:
    t = running(trial(runPolicy={"ttlSecondsAfterFinished": 60}))
    assert not is_expired(t.job, t.now + timedelta(days=1))
    t.end("sft", 65)
    t.look()
    assert not is_expired(t.job, t.now + timedelta(seconds=59))
    assert is_expired(t.job, t.now + timedelta(seconds=60))


def test_a_job_without_ttl_stays(trial: MakeTrial) -> None:
    t = running(trial())
    t.end("sft", 65)
    t.look()
    assert not is_expired(t.job, t.now + timedelta(days=1000))


@pytest.mark.parametrize(
    ("before", "then", "expected"),
    [
        pytest.param(running, lambda _: None, Change.NOTHING, id="nothing"),
        pytest.param(lambda t: t, lambda _: None, Change.DECISION, id="an attempt is announced"),
        pytest.param(starting, held, Change.EXPLANATION, id="why it waits"),
        pytest.param(starting, lambda t: t.run("sft"), Change.DECISION, id="it runs"),
        pytest.param(running, lambda t: t.run("sft", step=1), Change.DECISION, id="first step"),
        pytest.param(
            lambda t: running(t, 1),
            lambda t: t.run("sft", step=2, eta_seconds=5, metrics={"loss": 1.0}),
            Change.PROGRESS,
            id="a later step",
        ),
        pytest.param(
            restarted,
            lambda t: t.run("sft", step=1),
            Change.PROGRESS,
            id="the first word of a later attempt",
        ),
        pytest.param(lambda t: running(t, 1), unreachable, Change.PROGRESS, id="it is not read"),
        pytest.param(
            running,
            lambda t: t.run("sft", step=0, last_checkpoint_step=0),
            Change.DECISION,
            id="a checkpoint",
        ),
        pytest.param(
            in_ppo,
            lambda t: t.run("ppo", step=11, metrics={"reward": 1.0, "kl": 2.0, "critic_loss": 0.5}),
            Change.PROGRESS,
            id="figures of the summary",
        ),
        pytest.param(running, lambda t: t.end("sft", 1), Change.DECISION, id="it ended badly"),
        pytest.param(running, lambda t: t.finish("sft"), Change.DECISION, id="it ended well"),
        pytest.param(running, lambda t: t.spec(suspend=True), Change.DECISION, id="stopped"),
    ],
)
def test_what_kind_of_change_a_pass_makes(
    trial: MakeTrial, before: Callable[[Any], Any], then: Callable[[Any], None], expected: Change
) -> None:
    t = before(trial())
    old = t.job.status
    then(t)
    t.look(5)
    assert change(old, t.job.status) is expected


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("observed_generation", 7, Change.EXPLANATION),
        ("idle_seconds", 3, Change.EXPLANATION),
        ("conditions", (), Change.EXPLANATION),
        ("stages", StageStatuses(), Change.DECISION),
    ],
)
def test_no_change_but_progress_waits_for_progress(
    trial: MakeTrial, field: str, value: Any, expected: Change
) -> None:
    status = running(trial(), 1).job.status
    assert change(status, status.model_copy(update={field: value})) is expected


def test_three_stages_take_ten_writes_beside_their_progress(trial: MakeTrial) -> None:
    t, written = trial(), []

    def look() -> None:
        before = without_progress(t.job.status)
        if without_progress(t.look(1).status) != before:
            written.append(t.condition("Running").message)

    look()
    for name in ("sft", "reward", "ppo"):
        t.put(name, processes=())
        look()
        t.put(name, processes=(t.process(name),))
        look()
        t.put(name, processes=(t.process(name, phase=ProcessPhase.RUNNING, ready=True),))
        look()
        for step in range(4):
            t.run(name, step=step, metrics={"loss": 1 / (step + 1)})
            look()
        ended = t.process(name, phase=ProcessPhase.SUCCEEDED, exit_code=0)
        t.put(name, processes=(ended,), progress=None)
        look()
        t.finish(name)
        look()
    assert len(written) == 10, "\n".join(written)
    assert t.condition("Succeeded").status == "True"
