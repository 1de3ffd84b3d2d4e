"""Guardrails: one that fires stops a stage, and the job, until a person resumes it."""

from collections.abc import Callable
from typing import Any

import pytest
from guardrail_trials import BASE, NUMBERS, PPO, MakeTrial, alone, fires, told, verdict

from rlhf_api.names import GuardrailAction, GuardrailRule, Reason
from rlhf_operator.planning.observed import ProcessPhase
from rlhf_operator.planning.pace import Change, change

SAID = (
    "spec.guardrails: KLAboveLimit: KL is 12.5 nats an answer; threshold 10; action Suspend ends "
    "the stage after update 40, the last checkpoint is of step 40; raise klCoef"
)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (SAID, SAID),
        (f"rank 1: {SAID}", f"rank 1: {SAID}"),
        ("stopped", f"guardrail KLAboveLimit (Suspend): {NUMBERS}; stopped"),
    ],
)
def test_rule_value_and_threshold_are_said_once(trial: MakeTrial, said: str, message: str) -> None:
    t = alone(trial)
    fires(t, last_checkpoint_step=40, message=said)
    t.look()
    assert t.stage("ppo").message == message
    told = t.condition("Suspended").message
    assert [told.count(word) for word in ("KLAboveLimit", "12.5", "threshold")] == [1, 1, 1]


def test_the_next_attempt_is_told_which_verdict_is_known(trial: MakeTrial) -> None:
    """A crash is not among them: what its checkpoint says of a guardrail was told to nobody."""
    t = alone(trial)
    assert t.stage("ppo").guardrail_attempt is None
    t.end("ppo", 137)
    t.look()
    t.look(2)
    assert t.started() == [("ppo", 2)]
    assert t.last.actions[0].config.guardrail_attempt == 0
    t.run("ppo", step=40)
    t.look()
    fires(t)
    t.look()
    assert t.stage("ppo").guardrail_attempt == 2
    for suspend in (True, False):
        t.spec(suspend=suspend)
        t.look()
    assert t.started() == [("ppo", 3)]
    assert t.last.actions[0].config.guardrail_attempt == 2
    t.run("ppo", step=41)
    t.look()
    t.end("ppo", 137)
    t.look()
    t.look(8)
    assert t.started() == [("ppo", 4)]
    assert t.last.actions[0].config.guardrail_attempt == 2


def test_suspend_stops_the_stage_and_the_job_until_a_person_resumes_it(trial: MakeTrial) -> None:
    t = alone(trial, runPolicy={"maxRestarts": 0})
    fires(t, last_checkpoint_step=40, message="the actor has moved too far")
    t.look()
    stage = t.stage("ppo")
    assert (stage.state, stage.reason, stage.restarts) == ("Suspended", Reason.GUARDRAIL, 0)
    assert (
        stage.message == f"guardrail KLAboveLimit (Suspend): {NUMBERS}; the actor has moved too far"
    )
    assert told(t, "Suspended") == ("True", "Guardrail")
    said = t.condition("Suspended").message
    assert NUMBERS in said
    assert "set spec.suspend to true" in said
    assert (t.job.status.phase, t.job.status.summary.reason) == ("Suspended", "Guardrail")
    assert told(t, "Running")[0] == "False"
    # Condition Healthy turns too, for the same cause.
    assert told(t, "Healthy") == ("False", "KLAboveLimit")
    assert [(each.type, each.reason) for each in t.last.events] == [("Warning", "Guardrail")]
    assert t.last.events[0].message == said
    for _ in range(3):
        assert t.look(1000).actions == ()
        assert told(t, "Suspended") == ("True", "Guardrail")
    t.spec(suspend=True)
    t.look()
    assert (told(t, "Suspended"), t.started()) == (("True", "UserRequested"), [])
    t.spec(suspend=False)
    t.look(5)
    assert t.started() == [("ppo", 2)]
    assert t.last.actions[0].checkpoint_step == 40
    assert told(t, "Suspended") == ("False", "Resumed")
    assert t.stage("ppo").restarts == 0


@pytest.mark.parametrize(
    "said", [{"result": None}, {"result": None, "reason": Reason.CONTRACT_VERSION, "message": "v2"}]
)
def test_without_a_result_that_can_be_read_it_is_suspended(
    trial: MakeTrial, said: dict[str, Any]
) -> None:
    t = alone(trial)
    t.end("ppo", 42, **said)
    t.look()
    assert told(t, "Suspended") == ("True", "Guardrail")
    assert said.get("message", "exit code 42") in t.condition("Suspended").message


def test_fail_ends_the_job_until_a_person_resumes_it(trial: MakeTrial) -> None:
    t = alone(trial, runPolicy={"maxRestarts": 0, "ttlSecondsAfterFinished": 7200})
    fires(t, verdict(GuardrailAction.FAIL), last_checkpoint_step=40)
    t.look()
    assert t.stage("ppo").state == "Failed"
    assert told(t, "Failed") == ("True", "Guardrail")
    assert f"guardrail KLAboveLimit (Fail): {NUMBERS}" in t.condition("Failed").message
    assert "set spec.suspend to true" in t.condition("Failed").message
    assert [(each.type, each.reason) for each in t.last.events] == [("Warning", "Guardrail")]
    assert t.last.events[0].message == t.condition("Failed").message
    assert told(t, "Healthy") == ("False", "KLAboveLimit")
    ended, failed = t.now, t.job.status
    assert failed.completion_time == ended
    assert t.look(1000).actions == ()
    assert t.job.status == failed
    t.spec(suspend=True)
    t.look()
    assert t.condition("Failed") is None
    assert (told(t, "Suspended"), t.started()) == (("True", "UserRequested"), [])
    assert (t.job.status.phase, t.job.status.completion_time) == ("Suspended", None)
    assert [(each.type, each.reason) for each in t.last.events] == [("Normal", "UserRequested")]
    t.spec(suspend=False)
    t.look(500)
    assert t.started() == [("ppo", 2)]
    started = t.last.actions[0]
    assert (started.checkpoint_step, started.config.guardrail_attempt) == (40, 1)
    # No clock has run on meanwhile.
    assert t.job.status.idle_seconds == (t.now - ended).total_seconds()
    t.run("ppo", step=41)
    t.look()
    assert told(t, "Suspended") == ("False", "Resumed")
    t.finish("ppo")
    t.look()
    assert t.job.status.phase == "Succeeded"


def failed_by_a_guardrail(t: Any) -> None:
    fires(t, verdict(GuardrailAction.FAIL))
    t.look()
    t.spec(suspend=True)


def failed_while_it_was_suspended(t: Any) -> None:
    t.spec(suspend=True)
    t.look()
    fires(t, verdict(GuardrailAction.FAIL))
    t.look()


def failed_by_its_data(t: Any) -> None:
    t.end("ppo", 65)
    t.look()
    t.spec(suspend=True)


def failed_by_numbers(t: Any) -> None:
    broken = verdict(GuardrailAction.FAIL, rule=GuardrailRule.NON_FINITE)
    t.end("ppo", 70, result=t.result("ppo", reason=Reason.NON_FINITE, verdicts=(broken,)))
    t.look()
    t.spec(suspend=True)


def succeeded(t: Any) -> None:
    t.finish("ppo")
    t.look()
    t.spec(suspend=True)


@pytest.mark.parametrize(
    ("ended", "phase"),
    [
        (failed_by_a_guardrail, "Suspended"),
        (failed_while_it_was_suspended, "Suspended"),
        (failed_by_its_data, "Failed"),
        (failed_by_numbers, "Failed"),
        (succeeded, "Succeeded"),
    ],
)
def test_what_is_over_stays_over_but_for_a_guardrails_failure(
    trial: MakeTrial, ended: Callable[[Any], None], phase: str
) -> None:
    t = alone(trial)
    ended(t)
    t.look()
    assert t.job.status.phase == phase
    t.spec(suspend=False)
    t.look()
    assert t.started() == ([("ppo", 2)] if phase == "Suspended" else [])


def beside(trial: MakeTrial, **changes: Any) -> Any:
    """A job that a guardrail fails in one of two stages that run; the other has crashed once."""
    t = trial(stages={"sft": BASE, "ppo": PPO}, **changes)
    t.look()
    t.end("sft", 137)
    t.run("ppo", step=1)
    t.look()
    t.look(2)
    t.run("sft", step=1)
    t.look()
    fires(t, verdict(GuardrailAction.FAIL))
    t.look()
    assert t.stops() == [("sft", 2)]
    return t


@pytest.mark.parametrize("early", [False, True])
def test_stages_that_stopped_beside_a_failed_one_go_on_with_it(
    trial: MakeTrial, early: bool
) -> None:
    t = beside(trial, runPolicy={"maxRestarts": 1, "stageDeadlineSeconds": 1000})
    assert t.stage("sft").restarts == 1
    if early:
        # While the other one stops.
        t.spec(suspend=True)
        t.look(30)
    t.end("sft", 85, said={"last_checkpoint_step": 1})
    t.look(30)
    assert t.job.status.phase == ("Suspended" if early else "Failed")
    t.look(2000)
    for suspend in (True, False):
        t.spec(suspend=suspend)
        t.look()
    assert t.started() == [("sft", 3), ("ppo", 2)]
    assert [t.stage(name).restarts for name in ("sft", "ppo")] == [0, 0]
    # Its clock stood from its own end on.
    assert t.stage("ppo").idle_seconds >= 2030


def test_a_job_that_failed_for_another_reason_too_stays_failed(trial: MakeTrial) -> None:
    t = beside(trial)
    assert "set spec.suspend" in next(e.message for e in t.last.events if e.reason == "Guardrail")
    t.end("sft", 65)
    t.look()
    assert "set spec.suspend" not in t.condition("Failed").message
    for suspend in (True, False):
        t.spec(suspend=suspend)
        t.look()
    assert (t.job.status.phase, t.started()) == ("Failed", [])


def test_what_still_runs_of_the_gang_is_stopped_first(trial: MakeTrial) -> None:
    t = alone(trial)
    fires(t)
    (ended,) = t.attempts["ppo", 1].processes
    hung = t.process("ppo", index=1, phase=ProcessPhase.RUNNING, ready=True)
    t.put("ppo", processes=(ended, hung), failed=False)
    t.look(9)
    assert t.stage("ppo").state == "Running"
    t.look(1)
    assert (t.stage("ppo").state, t.stops()) == ("Stopping", [("ppo", 1)])
    assert [(each.type, each.reason) for each in t.last.events] == [("Normal", "Stopping")]
    assert NUMBERS in t.last.events[0].message
    assert t.condition("Suspended") is None
    del t.attempts["ppo", 1]
    t.look()
    assert [(each.type, each.reason) for each in t.last.events] == [("Warning", "Guardrail")]
    assert told(t, "Suspended") == ("True", "Guardrail")
    assert NUMBERS in t.condition("Suspended").message


def test_a_guardrail_that_fires_while_a_person_suspends_is_resumed_with_it(
    trial: MakeTrial,
) -> None:
    t = alone(trial)
    t.spec(suspend=True)
    t.look()
    fires(t)
    t.look()
    assert told(t, "Suspended") == ("True", "UserRequested")
    assert told(t, "Healthy") == ("False", "KLAboveLimit")
    # Nobody else tells of the rule.
    assert ("Warning", "KLAboveLimit") in [(each.type, each.reason) for each in t.last.events]
    t.spec(suspend=False)
    t.look()
    assert t.started() == [("ppo", 2)]


def test_other_stages_go_on_and_only_the_stopped_ones_clock_stands(trial: MakeTrial) -> None:
    policy = {"stageDeadlineSeconds": 1000, "activeDeadlineSeconds": 10_000}
    t = trial(stages={"sft": BASE, "ppo": PPO}, runPolicy=policy)
    t.look()
    for name in ("sft", "ppo"):
        t.run(name, step=1)
    t.look()
    fires(t)
    t.look()
    assert [event.reason for event in t.last.events] == ["Guardrail"]
    assert (t.stage("ppo").state, t.stage("sft").state) == ("Suspended", "Running")
    assert t.condition("Suspended") is None
    assert t.job.status.phase == "Running"
    held, since = t.stage("ppo"), t.now
    t.look(100)
    # A clock that stands is nothing to write.
    assert (t.stage("ppo"), held.idle_since) == (held, since)
    t.end("sft", 1)
    t.look(500)
    t.look(2)
    assert t.started() == [("sft", 2)]
    t.run("sft", step=2)
    t.look()
    t.finish("sft")
    t.look(98)
    assert told(t, "Suspended") == ("True", "Guardrail")
    assert [event.reason for event in t.last.events] == ["Finished"]
    assert t.stage("ppo").idle_seconds == 700
    assert t.job.status.idle_seconds == 2  # while sft waited to restart nothing ran
    assert t.wait() is None
    t.look(20_000)
    assert told(t, "Suspended") == ("True", "Guardrail")
    t.spec(suspend=True)
    t.look(100)
    t.spec(suspend=False)
    t.look(200)
    assert t.started() == [("ppo", 2)]
    assert (t.job.status.idle_seconds, t.stage("ppo").idle_seconds) == (20_302, 21_000)
    t.run("ppo", step=3)
    t.look(999)
    assert t.stage("ppo").state == "Running"
    t.look(2)
    assert t.stage("ppo").reason is Reason.DEADLINE_EXCEEDED


def test_resuming_before_the_others_are_done_starts_it_beside_them(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE, "ppo": PPO})
    t.look()
    for name in ("sft", "ppo"):
        t.run(name, step=1)
    t.look()
    fires(t)
    t.look()
    t.spec(suspend=True)
    t.look(50)
    assert (t.stage("ppo").reason, t.stage("ppo").idle_seconds) == (Reason.USER_REQUESTED, 50)
    t.spec(suspend=False)
    t.look()
    assert t.started() == [("ppo", 2)]


def test_a_failed_stage_fails_the_job_beside_a_suspended_one(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE, "ppo": PPO})
    t.look()
    for name in ("sft", "ppo"):
        t.run(name, step=1)
    t.look()
    fires(t)
    t.look()
    t.end("sft", 65)
    t.look()
    assert told(t, "Failed")[0] == "True"
    assert t.started() == []


def test_the_resumption_is_known_to_whoever_plans_next(trial: MakeTrial) -> None:
    """Nothing but status says it, so every turn of it is written at once."""
    t = alone(trial)
    before = t.job.status
    fires(t)
    t.look()
    held = t.job.status
    assert change(before, held) is Change.DECISION
    t.attempts.clear()
    t.look(60)
    assert t.last.actions == ()
    t.spec(suspend=True)
    t.look()
    assert change(held, t.job.status) is Change.DECISION
