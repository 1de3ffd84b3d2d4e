"""What others say of a job: Kueue's queue, rank 0 that cannot be asked, a child that is refused."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_operator.planning.observed import ProcessPhase
from rlhf_operator.planning.plan import fail_stage, is_finished

MakeTrial = Callable[..., Any]


def condition(trial: Any, kind: str) -> tuple[str, str, str] | None:
    found = trial.condition(kind)
    return None if found is None else (found.status, found.reason.value, found.message)


def hold_back(trial: Any) -> None:
    """Kueue keeps the current attempt of sft from running."""
    held = trial.process("sft", reason=Reason.QUEUED, message="Job reviews-sft-1 waits in queue q")
    trial.put("sft", processes=(held,))
    trial.look()


def test_a_job_waits_in_its_queue(trial: MakeTrial) -> None:
    t = trial(queueName="q")
    t.look()
    assert t.condition("Admitted") is None
    hold_back(t)
    waiting = ("False", "Queued", "Job reviews-sft-1 waits in queue q")
    assert condition(t, "Admitted") == waiting
    assert (t.condition("Running").reason, t.job.status.summary.reason) == ("Queued", "Queued")
    pending = t.process("sft", reason=Reason.UNSCHEDULABLE, message="no GPU")
    t.put("sft", processes=(pending,))
    t.look(60)
    assert condition(t, "Admitted") == ("True", "Admitted", "queue q let it run")
    assert t.condition("Admitted").last_transition_time == t.now


def test_a_queued_attempt_that_is_stopped_was_not_let_in(trial: MakeTrial) -> None:
    t = trial(queueName="q")
    t.look()
    hold_back(t)
    t.spec(suspend=True)
    t.look()
    assert (t.stage("sft").state, t.condition("Admitted").status) == ("Stopping", "False")


def test_what_kueue_takes_away_waits_again(trial: MakeTrial) -> None:
    t = trial(queueName="q")
    t.look()
    t.run("sft", step=5, last_checkpoint_step=5)
    t.look()
    t.end("sft", 143, disrupted=True)
    t.look()
    assert (t.stage("sft").disruptions, t.condition("Admitted").status) == (1, "True")
    t.look(1)
    hold_back(t)
    assert condition(t, "Admitted")[:2] == ("False", "Queued")


def test_a_job_without_queue_says_nothing_of_one(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    hold_back(t)
    t.run("sft")
    t.look()
    assert t.condition("Admitted") is None


def test_progress_is_reported_from_the_first_word_to_the_end(trial: MakeTrial) -> None:
    t = trial(stages={"sft": {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}})
    t.look()
    t.scrape_error = "nobody is asked while nothing runs"
    t.look()
    assert t.condition("ProgressReporting") is None
    t.put("sft", processes=(t.process("sft", phase=ProcessPhase.RUNNING, ready=True),))
    t.scrape_error = ""
    t.look()
    assert t.condition("ProgressReporting") is None
    t.run("sft", step=1)
    t.look()
    assert condition(t, "ProgressReporting")[:2] == ("True", "Fresh")
    t.scrape_error = "http://10.0.0.1:9400/metrics: connection refused; let the operator reach it"
    t.look()
    assert condition(t, "ProgressReporting") == ("False", "Unreachable", t.scrape_error)
    t.finish("sft")
    t.look()
    assert condition(t, "ProgressReporting") == ("False", "Finished", "nothing runs any more")


def test_reporting_stays_as_it_was_between_attempts(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.run("sft", step=1)
    t.look()
    before = t.condition("ProgressReporting")
    t.end("sft", 1)
    t.look()
    t.look(2)
    assert t.started() == [("sft", 2)]
    assert t.condition("ProgressReporting") == before


def test_a_job_that_never_ran_reports_nothing_at_its_end(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.end("sft", 78)
    t.look()
    assert is_finished(t.job.status)
    assert t.condition("ProgressReporting") is None


@pytest.mark.parametrize("error", ["", "connection refused"])
def test_what_is_reported_is_written_once(trial: MakeTrial, error: str) -> None:
    t = trial(queueName="q")
    t.look()
    t.run("sft", step=1)
    t.scrape_error = error
    t.look()
    written = t.job.status
    t.look(60)
    assert t.job.status == written


def fail(trial: Any, name: StageName, message: str = "Job is invalid") -> None:
    status = fail_stage(trial.job, name, Reason.INVALID_SPEC, message, trial.now)
    trial.job = trial.job.model_copy(update={"status": status})


@pytest.mark.parametrize("begun", [False, True])
def test_a_refused_child_ends_the_job_in_the_next_pass(trial: MakeTrial, begun: bool) -> None:
    t = trial()
    if begun:
        t.look()
    fail(t, StageName.SFT)
    assert not is_finished(t.job.status)
    t.look()
    assert t.last.actions == ()
    assert condition(t, "Failed") == ("True", "InvalidSpec", "stage sft: Job is invalid")
    assert [event.reason for event in t.last.events] == [Reason.INVALID_SPEC]


def test_a_refused_child_stops_the_other_stages_first(trial: MakeTrial) -> None:
    base = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
    t = trial(stages={"sft": base, "reward": base})
    t.look()
    t.run("reward")
    fail(t, StageName.SFT)
    t.look()
    assert (t.stops(), t.condition("Failed")) == ([("reward", 1)], None)
    t.end("reward", 75)
    t.look()
    assert t.condition("Failed").message == "stage sft: Job is invalid"


def test_what_has_ended_is_not_failed_again(trial: MakeTrial) -> None:
    """A pass that finds the same mistake each time writes nothing at rest."""
    t = trial()
    fail(t, StageName.SFT)
    once = t.job.status
    t.seconds += 100
    fail(t, StageName.SFT, "another")
    assert t.job.status == once
    t.look()
    over = t.job.status
    t.seconds += 100
    fail(t, StageName.PPO)
    assert t.job.status == over


def test_a_result_of_another_release_fails_its_stage_and_says_so(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.run("sft")
    t.look()
    told = {"result": None, "reason": Reason.CONTRACT_VERSION, "message": "contractVersion is 2"}
    done = t.process("sft", phase=ProcessPhase.SUCCEEDED, exit_code=0, **told)
    t.put("sft", processes=(done,), complete=True)
    t.look()
    assert condition(t, "Failed") == ("True", "ContractVersion", "stage sft: contractVersion is 2")


def test_an_attempt_that_another_release_refused_fails_its_stage(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.end("sft", 78, result=None, reason=Reason.CONTRACT_VERSION, message="contractVersion is 2")
    t.look()
    assert t.condition("Failed").reason is Reason.CONTRACT_VERSION
