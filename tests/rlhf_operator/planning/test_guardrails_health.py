"""Guardrails: what conditions and status tell of the rules, and the text of their numbers."""

import pytest
from guardrail_trials import (
    BASE,
    DIVERGING,
    KL,
    NUMBERS,
    PPO,
    MakeTrial,
    alone,
    fires,
    told,
    verdict,
)
from hypothesis import given
from hypothesis import strategies as st

from rlhf_api.names import GuardrailAction, GuardrailRule, Reason
from rlhf_api.v1alpha1 import Guardrail, HealthVerdict
from rlhf_operator.planning.guardrails import evidence, guardrails_digest, read_evidence
from rlhf_operator.planning.observed import ObservedVerdict
from rlhf_operator.planning.pace import Change, change


def rules(**values: tuple[bool, float | None]) -> dict[GuardrailRule, ObservedVerdict]:
    return {
        GuardrailRule[name]: ObservedVerdict(broken, value, 10.0)
        for name, (broken, value) in values.items()
    }


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


def test_numbers_that_end_a_stage_are_told_by_its_event_alone(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE}).running("sft")
    said = "the loss at step 3 is not finite; lower learningRate"
    broken = verdict(GuardrailAction.FAIL, rule=GuardrailRule.NON_FINITE)
    t.end("sft", 70, said={"verdicts": (broken,), "reason": Reason.NON_FINITE, "message": said})
    t.look()
    assert told(t, "Healthy") == ("False", "NonFinite")
    assert [(e.type, e.reason, e.message) for e in t.last.events] == [
        ("Warning", "NonFinite", f"stage sft: {said}")
    ]


def test_a_rule_that_was_told_before_it_ends_the_stage_is_not_told_again(trial: MakeTrial) -> None:
    """Its numbers may be read while the attempt saves a checkpoint."""
    t = alone(trial)
    t.run("ppo", step=40, verdicts=rules(KL_ABOVE_LIMIT=(True, 12.5)))
    t.look()
    assert [e.reason for e in t.last.events] == ["KLAboveLimit"]
    fires(t)
    t.look()
    assert [e.reason for e in t.last.events] == ["Guardrail"]


def test_a_rule_that_turns_beside_the_one_that_ends_the_stage_is_told(trial: MakeTrial) -> None:
    t = alone(trial)
    fires(t, verdict(), verdict(rule=DIVERGING, action=GuardrailAction.OBSERVE))
    t.look()
    assert {(e.type, e.reason) for e in t.last.events} == {
        ("Warning", "Guardrail"),
        ("Warning", "CriticLossDiverging"),
    }


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
