"""A job that is suspended and resumed goes on where it was, and its clocks stand meanwhile."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import RLHFJobStatus
from rlhf_operator.planning.statuses import with_idle_time

MakeTrial = Callable[..., Any]


def test_suspension_saves_and_counts_nothing_against_the_stage(trial: MakeTrial) -> None:
    t = trial(runPolicy={"maxRestarts": 0}).running("sft")
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
    t = trial().running("sft")
    t.spec(suspend=True)
    t.look()
    t.finish("sft")
    t.look()
    assert t.stage("sft").state == "Succeeded"
    assert t.condition("Suspended").status == "True"
    assert t.started() == []


def test_a_mistake_found_while_stopping_is_told(trial: MakeTrial) -> None:
    t = trial().running("sft")
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
    t = trial().running("sft")
    t.end("sft", 1)
    t.look()
    t.spec(suspend=True)
    t.look()
    assert (t.stage("sft").state, t.condition("Suspended").status) == ("Suspended", "True")


def test_a_job_that_is_resumed_while_it_stops_goes_on_at_once(trial: MakeTrial) -> None:
    t = trial().running("sft")
    t.spec(suspend=True)
    t.look()
    t.spec(suspend=False)
    t.look()
    assert (t.stage("sft").state, t.stops()) == ("Stopping", [("sft", 1)])
    t.attempts.clear()
    t.look()
    assert t.started() == [("sft", 2)]


def test_idle_time_counts_for_clocks_that_run(trial: MakeTrial) -> None:
    t = trial().running("sft", "reward")
    status = t.job.status
    once = with_idle_time(status, timedelta(seconds=90.4))
    later = with_idle_time(once, timedelta(seconds=10))
    assert (later.idle_seconds, later.stages.reward.idle_seconds) == (100, 100)
    assert later.stages.sft == status.stages.sft
    assert later.stages.ppo == status.stages.ppo
    assert with_idle_time(status, timedelta(seconds=-5)) == status
    assert with_idle_time(RLHFJobStatus(), timedelta(seconds=9)) == RLHFJobStatus()


def test_no_stage_begins_before_its_job(trial: MakeTrial) -> None:
    t = trial().running("sft", "reward")
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
