"""What others say of a job: Kueue's queue, rank 0 that cannot be asked, a child that is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rlhf_api.names import Reason, StageName
from rlhf_operator.planning.observed import ProcessPhase, Refusal
from rlhf_operator.planning.statuses import is_finished

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}


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


@pytest.mark.parametrize("runs", [False, True])
def test_a_suspended_job_stands_in_no_queue(trial: MakeTrial, runs: bool) -> None:
    t = trial(queueName="q")
    t.look()
    if runs:
        t.run("sft")
        t.look()
    else:
        hold_back(t)
    t.spec(suspend=True)
    t.look()
    t.attempts.clear()
    t.look()
    said = "nothing of the job stands in its queue: it is suspended"
    assert condition(t, "Suspended")[0] == "True"
    assert condition(t, "Admitted") == ("False", "UserRequested", said)
    t.spec(suspend=False)
    t.look()
    hold_back(t)
    assert condition(t, "Admitted")[:2] == ("False", "Queued")


def test_a_job_that_fails_in_its_queue_stands_there_no_more(trial: MakeTrial) -> None:
    t = trial(queueName="q", stages={"sft": BASE})
    t.look()
    hold_back(t)
    t.refusals[StageName.SFT, 1] = Refusal(Reason.INVALID_SPEC, "refused", final=True)
    t.look()
    t.attempts.clear()
    t.look()
    assert condition(t, "Failed")[0] == "True"
    said = "nothing of the job stands in its queue: it is over"
    assert condition(t, "Admitted") == ("False", "Finished", said)


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


@pytest.mark.parametrize("error", ["", "http://10.0.0.1:9400/metrics: refused"])
def test_between_attempts_nothing_is_said_of_the_one_that_is_over(
    trial: MakeTrial, error: str
) -> None:
    t = trial()
    t.look()
    t.run("sft", step=1)
    t.look()
    t.put("sft", scrape_error=error)
    t.look()
    assert t.condition("ProgressReporting").status == ("False" if error else "True")
    t.end("sft", 1)
    t.look()
    said = ("Unknown", "PodsPending", "no attempt runs now")
    assert condition(t, "ProgressReporting") == said
    t.look(2)
    assert t.started() == [("sft", 2)]
    assert condition(t, "ProgressReporting") == said
    t.run("sft", step=2)
    t.look()
    assert condition(t, "ProgressReporting")[:2] == ("True", "Fresh")


def test_nothing_is_said_of_an_attempt_that_is_over(trial: MakeTrial) -> None:
    """What could not be asked for the last time is no news of what runs beside it."""
    t = trial(stages={"sft": BASE, "reward": BASE})
    t.look()
    t.run("sft", step=1)
    t.run("reward", step=1)
    t.look()
    t.put("sft", scrape_error="connection refused")
    t.look()
    assert condition(t, "ProgressReporting") == ("False", "Unreachable", "connection refused")
    t.end("sft", 1)
    t.look()
    assert condition(t, "ProgressReporting")[:2] == ("True", "Fresh")


def test_an_attempt_whose_end_is_not_confirmed_reports_nothing(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    t.run("sft", step=1)
    t.look()
    before = t.condition("ProgressReporting")
    t.put("sft", processes=(), complete=True, confirmed=False, scrape_error="connection refused")
    t.look()
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


def refuse(trial: Any, name: str, *, final: bool = True, message: str = "Job is invalid") -> None:
    """The current attempt of a stage could not be made."""
    reason = Reason.INVALID_SPEC if final else Reason.CLAIM_MISSING
    key = StageName(name), trial.stage(name).attempt
    trial.refusals[key] = Refusal(reason, message, final=final)


def test_a_refused_child_ends_the_job(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    refuse(t, "sft")
    t.look()
    assert (t.last.actions, is_finished(t.job.status)) == ((), True)
    assert condition(t, "Failed") == ("True", "InvalidSpec", "stage sft: Job is invalid")
    assert condition(t, "ChildrenReady") is None
    assert [event.reason for event in t.last.events] == [Reason.INVALID_SPEC]


def test_a_refused_child_stops_the_other_stages_first(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE, "reward": BASE})
    t.look()
    t.run("reward")
    refuse(t, "sft")
    t.look()
    assert (t.stops(), t.condition("Failed")) == ([("reward", 1)], None)
    t.end("reward", 75)
    t.look()
    assert t.condition("Failed").message == "stage sft: Job is invalid"


def test_a_child_that_is_refused_for_now_is_told_until_it_is_made(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    assert t.condition("ChildrenReady") is None
    refuse(t, "sft", final=False, message="PersistentVolumeClaim runs is missing; create it")
    t.look(1)
    said = ("False", "ClaimMissing", "PersistentVolumeClaim runs is missing; create it")
    assert condition(t, "ChildrenReady") == said
    assert (t.started(), t.stage("sft").message) == ([("sft", 1)], said[2])
    assert (t.job.status.summary.reason, t.job.status.phase) == ("ClaimMissing", "Pending")
    written = t.job.status
    t.look(60)
    assert t.job.status == written
    # A new leader has not tried yet.
    t.refusals.clear()
    t.look()
    assert t.job.status == written
    t.run("sft")
    t.look()
    assert condition(t, "ChildrenReady") == ("True", "Created", "all children are made")


def test_a_leftover_of_a_finished_job_that_may_not_be_deleted_is_told(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE}).running("sft")
    old = t.attempts[StageName.SFT, 1]
    t.end("sft", 65)
    t.look()
    t.attempts[StageName.SFT, 1] = replace(old, failed=False)
    t.look()
    assert (t.stops(), is_finished(t.job.status)) == ([("sft", 1)], True)
    finished = t.job.status
    refuse(t, "sft", final=False, message="deleting Job reviews-sft-1: forbidden")
    t.look(1)
    said = ("False", "ClaimMissing", "deleting Job reviews-sft-1: forbidden")
    assert condition(t, "ChildrenReady") == said
    assert t.job.status.completion_time == finished.completion_time
    assert t.job.status.summary == finished.summary
    # A new leader has not tried yet.
    t.refusals.clear()
    t.look()
    assert condition(t, "ChildrenReady") == said
    t.attempts.clear()
    t.look()
    assert condition(t, "ChildrenReady") == ("True", "Created", "no child is wanted now")


def test_a_refusal_about_an_attempt_that_is_over_says_nothing(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    refuse(t, "sft", final=False)
    t.spec(suspend=True)
    t.look()
    t.spec(suspend=False)
    t.look()
    t.run("sft")
    t.look()
    assert (t.stage("sft").attempt, t.condition("ChildrenReady").status) == (2, "True")


def test_a_refusal_goes_when_nothing_is_wanted_any_more(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    refuse(t, "sft", final=False)
    t.look()
    assert t.condition("ChildrenReady").status == "False"
    t.spec(suspend=True)
    t.look()
    assert condition(t, "ChildrenReady") == ("True", "Created", "no child is wanted now")


def test_all_children_are_made_when_each_stage_has_its_own(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE, "reward": BASE})
    t.look()
    t.run("sft")
    t.look()
    assert t.condition("ChildrenReady") is None
    t.run("reward")
    t.look()
    assert t.condition("ChildrenReady").status == "True"
    # Nothing is said while there is nothing to be made, or it was just asked for.
    before = t.condition("ChildrenReady")
    t.end("reward", 1)
    t.finish("sft")
    t.look()
    t.look(2)
    assert (t.started(), t.condition("ChildrenReady")) == ([("reward", 2)], before)


@pytest.mark.parametrize("done", [False, True])
def test_a_job_without_storage_fails(trial: MakeTrial, done: bool) -> None:
    t = trial()
    t.look()
    if done:
        t.finish("sft")
    t.placement = replace(t.placement, storage="")
    t.look()
    stage = "reward" if done else "sft"
    message = "spec.storage is missing; name a claim, for example pvc://claim/runs"
    assert condition(t, "Failed") == ("True", "InvalidSpec", f"stage {stage}: {message}")
    over = t.job.status
    t.look(100)
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
