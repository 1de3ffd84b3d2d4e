"""Guardrails: what is told of the rules, and how one that fires stops a stage until resumed."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_api.names import GuardrailAction, GuardrailRule, Reason
from rlhf_api.v1alpha1 import Guardrail, HealthVerdict
from rlhf_operator.planning.guardrails import evidence, guardrails_digest, read_evidence
from rlhf_operator.planning.observed import ObservedVerdict, ProcessPhase
from rlhf_operator.planning.pace import Change, change

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
PPO = BASE | {"rewardModel": {"uri": "hf://a/c"}}
KL, DIVERGING = GuardrailRule.KL_ABOVE_LIMIT, GuardrailRule.CRITIC_LOSS_DIVERGING
NUMBERS = "12.5 against a threshold of 10 at update 40"


def verdict(action: GuardrailAction = GuardrailAction.SUSPEND, **changes: Any) -> HealthVerdict:
    given = {"rule": KL, "action": action, "step": 40, "value": 12.5, "threshold": 10.0}
    return HealthVerdict(**(given | changes))


def fires(trial: Any, *verdicts: HealthVerdict, name: str = "ppo", **said: Any) -> None:
    """The current attempt ends since a guardrail fired."""
    told = {"verdicts": verdicts or (verdict(),), "reason": Reason.GUARDRAIL}
    trial.end(name, 42, said=told | said)


def alone(trial: MakeTrial, **spec: Any) -> Any:
    """A job of PPO alone that runs."""
    return trial(stages={"ppo": PPO}, **spec).running("ppo")


def rules(**values: tuple[bool, float | None]) -> dict[GuardrailRule, ObservedVerdict]:
    return {
        GuardrailRule[name]: ObservedVerdict(broken, value, 10.0)
        for name, (broken, value) in values.items()
    }


def told(trial: Any, kind: str) -> tuple[str, str]:
    found = trial.condition(kind)
    return found.status, str(found.reason)


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
    events = [(event.type, event.reason) for event in t.last.events]
    assert events.count(("Warning", "Guardrail")) == 2
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


def test_fail_ends_the_job(trial: MakeTrial) -> None:
    t = alone(trial)
    fires(t, verdict(GuardrailAction.FAIL))
    t.look()
    assert t.stage("ppo").state == "Failed"
    assert told(t, "Failed") == ("True", "Guardrail")
    assert f"guardrail KLAboveLimit (Fail): {NUMBERS}" in t.condition("Failed").message
    assert told(t, "Healthy") == ("False", "KLAboveLimit")


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
    assert t.condition("Suspended") is None
    del t.attempts["ppo", 1]
    t.look()
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


def test_health_is_told_when_a_rule_turns_and_not_with_every_number(trial: MakeTrial) -> None:
    t = alone(trial)
    assert t.condition("Healthy") is None
    t.run("ppo", step=39, verdicts=rules(KL_ABOVE_LIMIT=(False, 3.0)))
    t.look()
    assert told(t, "Healthy") == ("True", "WithinLimits")
    assert t.last.events == ()
    well = t.job.status
    t.run("ppo", step=40, verdicts=rules(KL_ABOVE_LIMIT=(True, 12.5)))
    t.look()
    assert told(t, "Healthy") == ("False", "KLAboveLimit")
    assert t.condition("Healthy").message == (
        f"stage ppo: KLAboveLimit: {NUMBERS}; docs/guardrails.md says what to do"
    )
    assert [(e.type, e.reason) for e in t.last.events] == [("Warning", "KLAboveLimit")]
    assert change(well, t.job.status) is Change.DECISION
    broken = t.job.status
    t.run("ppo", step=41, verdicts=rules(KL_ABOVE_LIMIT=(True, 99.0)))
    t.look(10)
    assert t.condition("Healthy") == broken.conditions[-1]
    assert change(broken, t.job.status) is Change.PROGRESS
    assert t.last.events == ()
    t.run("ppo", step=41, verdicts=rules(KL_ABOVE_LIMIT=(True, 99.0), EOS_RATE_LOW=(True, 0.1)))
    t.look()
    assert told(t, "Healthy") == ("False", "KLAboveLimit")
    assert [(e.type, e.reason) for e in t.last.events] == [("Warning", "KLAboveLimit")]
    assert "EOSRateLow" in t.last.events[0].message
    t.run("ppo", step=42)
    t.look()
    assert told(t, "Healthy")[0] == "False"  # nothing was told of any rule
    both = rules(KL_ABOVE_LIMIT=(True, 99.0), CRITIC_LOSS_DIVERGING=(True, None))
    t.run("ppo", step=43, verdicts=both)
    t.look()
    assert told(t, "Healthy") == ("False", "CriticLossDiverging")
    assert t.condition("Healthy").message.startswith(
        "stage ppo: CriticLossDiverging: not finite against a threshold of 10 at update 43; "
        f"stage ppo: KLAboveLimit: {NUMBERS}; "
    )
    t.run("ppo", step=44, verdicts=rules(KL_ABOVE_LIMIT=(False, 1.0)))
    t.look()
    assert told(t, "Healthy") == ("True", "WithinLimits")
    assert [(e.type, e.reason) for e in t.last.events] == [("Normal", "WithinLimits")]


def test_health_is_kept_after_the_end_and_until_the_next_attempt_tells(trial: MakeTrial) -> None:
    t = alone(trial)
    fires(t, verdict(), verdict(rule=DIVERGING, value=None, action=GuardrailAction.OBSERVE))
    t.look()
    assert told(t, "Healthy") == ("False", "CriticLossDiverging")
    assert f"KLAboveLimit: {NUMBERS}" in t.condition("Healthy").message
    for suspend in (True, False):
        t.spec(suspend=suspend)
        t.look()
    t.run("ppo", step=40)
    t.look()
    assert told(t, "Healthy")[0] == "False"
    t.run("ppo", step=41, verdicts=rules(KL_ABOVE_LIMIT=(False, 1.0)))
    t.look()
    assert told(t, "Healthy") == ("True", "WithinLimits")


@pytest.mark.parametrize(
    ("verdicts", "health"),
    [((), ("True", "WithinLimits")), ((verdict(),), ("False", "KLAboveLimit"))],
)
def test_the_result_has_the_last_word(
    trial: MakeTrial, verdicts: tuple[HealthVerdict, ...], health: tuple[str, str]
) -> None:
    t = alone(trial)
    t.run("ppo", step=40, verdicts=rules(NON_FINITE=(True, 1.0)))
    t.look()
    t.finish("ppo", verdicts=verdicts)
    t.look()
    assert (t.stage("ppo").state, told(t, "Healthy")) == ("Succeeded", health)


def test_of_other_stages_no_health_is_told(trial: MakeTrial) -> None:
    t = trial().running("sft", "reward", "ppo")
    assert t.stage("sft").state == "Succeeded"
    assert t.condition("Healthy") is None


def test_a_change_of_guardrails_is_said_to_hold_from_the_next_attempt(trial: MakeTrial) -> None:
    t = alone(trial)
    old = guardrails_digest(t.job.spec.guardrails)
    t.put("ppo", guardrails=old)
    t.look()
    assert "guardrails" not in t.condition("Running").message
    new = (Guardrail(rule=KL), Guardrail(rule=DIVERGING, threshold=2.0))
    t.spec(guardrails=new)
    t.look()
    clause = "spec.guardrails has changed, which holds from the next attempt on"
    assert clause in t.condition("Running").message
    t.end("ppo", 1)
    t.look()
    t.look(2)
    assert t.last.actions[0].config.guardrails == new
    t.run("ppo", step=11)
    t.put("ppo", guardrails=guardrails_digest(new[::-1]))
    t.look(1)
    assert "guardrails" not in t.condition("Running").message


def test_an_attempt_that_says_nothing_of_its_guardrails_is_not_accused(trial: MakeTrial) -> None:
    t = alone(trial)
    t.spec(guardrails=(Guardrail(rule=KL),))
    t.look()
    assert "guardrails" not in t.condition("Running").message


# What is rounded up beyond the largest float is told as one that is not finite.
NUMBER = st.none() | st.floats(-1e300, 1e300)


@given(NUMBER, NUMBER, st.integers(0, 10**9))
def test_evidence_is_read_as_it_was_meant(
    value: float | None, threshold: float | None, step: int
) -> None:
    found = read_evidence(evidence(value, threshold, step))
    assert (found.broken, found.step) == (True, step)
    for wrote, read in ((value, found.value), (threshold, found.threshold)):
        assert read == (None if wrote is None else pytest.approx(wrote, rel=1e-3))
    if value is not None and threshold is not None:
        assert found.value is not None
        assert found.threshold is not None
        assert (found.value > found.threshold) == (value > threshold)
        assert (found.value < found.threshold) == (value < threshold)


@pytest.mark.parametrize(
    ("value", "threshold", "text"),
    [
        (12.5, 10.0, "12.5 against a threshold of 10 at update 7"),
        (12.34567, 10.0, "12.35 against a threshold of 10 at update 7"),
        (10.0001, 10.0, "10.0001 against a threshold of 10 at update 7"),
        (10.0, 10.0, "10 against a threshold of 10 at update 7"),
        (None, 0.0, "not finite against a threshold of 0 at update 7"),
    ],
)
def test_evidence_has_as_many_digits_as_it_takes(
    value: float | None, threshold: float, text: str
) -> None:
    assert evidence(value, threshold, 7) == text


@pytest.mark.parametrize("text", ["", "far too high", "1 against a threshold of 2 at update x"])
def test_what_another_release_wrote_is_a_verdict_without_numbers(text: str) -> None:
    assert read_evidence(text) == ObservedVerdict(broken=True)


def test_status_says_which_attempt_its_numbers_are_of(trial: MakeTrial) -> None:
    t = trial(stages={"ppo": PPO})
    t.look()
    assert t.stage("ppo").reported_attempt is None
    t.run("ppo", step=5, metrics={"kl": 0.5})
    t.look(1)
    assert t.stage("ppo").reported_attempt == 1
    t.end("ppo", 1)
    t.look()
    t.look(5)
    stage = t.stage("ppo")
    assert (stage.attempt, stage.reported_attempt, stage.metrics) == (2, 1, {"kl": 0.5})
    fires(t)
    t.look()
    stage = t.stage("ppo")
    assert (stage.reported_attempt, stage.metrics) == (2, None)
    assert stage.verdicts == {KL: NUMBERS}
