"""The series of one job: what its status and the last readings tell, with which labels."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from rlhf_api.names import ConditionType, GuardrailRule, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJobStatus, StageStatus, StageStatuses
from rlhf_operator.job_series import JOB_PREFIX, RULES_WITH_NUMBERS, is_told, job_series
from rlhf_operator.metrics import UNKNOWN
from rlhf_operator.planning.observed import ObservedProgress, ObservedVerdict, ProcessPhase
from rlhf_operator.scraper import Reading

MakeTrial = Callable[..., Any]
BASE = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
PPO = BASE | {"rewardModel": {"uri": "hf://a/c"}}
KL, DIVERGING = GuardrailRule.KL_ABOVE_LIMIT, GuardrailRule.CRITIC_LOSS_DIVERGING
SUSPENDS = {"action": "Suspend", "step": 40, "threshold": 10.0}
KEEP = timedelta(minutes=15)

Found = dict[tuple[str, ...], float]


def read(attempt: int = 1, stage: str = "ppo", **told: Any) -> dict[StageName, Reading]:
    """What was last read of a stage."""
    given = {"step": 10, "total_steps": 100} | told
    given["metrics"] = {"step": given["step"], "total_steps": given["total_steps"]} | (
        told.get("metrics") or {}
    )
    return {StageName(stage): Reading(attempt, ObservedProgress(**given))}


def judged(**broken: float) -> dict[GuardrailRule, ObservedVerdict]:
    """All rules against a threshold of 10; those that are given are broken by that value."""
    return {
        rule: ObservedVerdict(rule.name in broken, broken.get(rule.name, 1.0), 10.0)
        for rule in GuardrailRule
    }


def series(trial: Any, readings: Mapping[StageName, Reading] | None = None) -> Found:
    """By name without its prefix, and the labels but for the job's."""
    found: Found = {}
    for metric, labels, value in job_series("team", "demo", trial.job.status, readings or {}):
        assert labels[:2] == ("team", "demo")
        key = (metric.name.removeprefix(JOB_PREFIX), *labels[2:])
        assert key not in found, key
        found[key] = value
    return found


def of(found: Found, *start: str) -> Found:
    """The series whose name and first labels are these."""
    return {key: value for key, value in found.items() if key[: len(start)] == start}


def running(trial: MakeTrial, **progress: Any) -> Any:
    """A job of PPO alone whose first attempt runs and has told how far it is."""
    t = trial(stages={"ppo": PPO}).running("ppo")
    t.run("ppo", **({"step": 10} | progress))
    t.look(1)
    return t


def test_a_running_attempt_tells_what_was_read_last(trial: MakeTrial) -> None:
    t = running(trial, metrics={"kl": 0.5, "reward": 1.5})
    told = read(step=12, metrics={"kl": 0.75, "critic_loss_baseline": 2.0, "eta_seconds": 9.0})
    found = series(t, told)
    assert found["step", "ppo", "1"] == 12
    assert found["total_steps", "ppo", "1"] == 100
    assert found["kl", "ppo", "1"] == 0.75
    assert found["reward", "ppo", "1"] == 1.5
    assert found["critic_loss_baseline", "ppo", "1"] == 2
    assert found["eta_seconds", "ppo", "1"] == 9
    assert found["restarts_total", "ppo"] == found["disruptions_total", "ppo"] == 0
    assert (
        found["progress_timestamp_seconds", "ppo"] == t.stage("ppo").last_progress_time.timestamp()
    )
    assert not of(found, "pending_timestamp_seconds")
    assert not of(found, "health_verdict")
    assert found["condition", "", "Running", "PodsReady"] == 1
    assert found["condition", "", "Accepted", "Valid"] == 1


def test_a_new_leader_tells_what_status_knows_with_the_same_labels(trial: MakeTrial) -> None:
    metrics = {"kl": 0.5, "entropy": 2.0}
    t = running(
        trial,
        metrics=metrics,
        eta_seconds=50,
        last_checkpoint_step=8,
        verdicts=judged(KL_ABOVE_LIMIT=12.5),
    )
    found = series(t)
    # Only a reading knows the numbers of rules that hold.
    told = read(
        metrics=metrics | {"eta_seconds": 50.0, "progress_ratio": 0.1},
        verdicts={
            rule: v if v.broken else ObservedVerdict(False)
            for rule, v in judged(KL_ABOVE_LIMIT=12.5).items()
        },
    )
    assert found == series(t, told)
    assert found["last_checkpoint_step", "ppo", "1"] == 8
    assert found["progress_ratio", "ppo", "1"] == 0.1
    assert of(found, "health_value") == {("health_value", "ppo", "1", KL): 12.5}
    assert of(found, "health_threshold") == {("health_threshold", "ppo", "1", KL): 10}
    verdicts = of(found, "health_verdict")
    assert len(verdicts) == len(GuardrailRule)
    assert [key[-1] for key, value in verdicts.items() if value] == [KL]


def test_numbers_are_told_of_the_rules_that_alerts_compare(trial: MakeTrial) -> None:
    found = series(running(trial), read(verdicts=judged(ENTROPY_COLLAPSE=0.1)))
    assert found["health_verdict", "ppo", "1", "EntropyCollapse"] == 1
    for name in ("health_value", "health_threshold"):
        assert {key[-1] for key in of(found, name)} == set(RULES_WITH_NUMBERS)


def test_a_rule_in_its_warm_up_has_no_verdict(trial: MakeTrial) -> None:
    told = {KL: judged()[KL]}
    t = running(trial, verdicts=told)
    readings = read(verdicts=told)
    assert {key[-1] for key in of(series(t, readings), "health_verdict")} == {KL}
    said = {"rule": DIVERGING, "value": 3.5, **SUSPENDS}
    t.end("ppo", 42, said={"verdicts": (said,), "reason": Reason.GUARDRAIL})
    t.look()
    found = of(series(t, readings), "health_verdict", "ppo", "1")
    assert {key[-1]: value for key, value in found.items()} == {KL: 0, DIVERGING: 1}


def test_an_attempt_waits_for_its_pods(trial: MakeTrial) -> None:
    t = trial(stages={"ppo": PPO})
    t.look()
    since = t.now.timestamp()
    t.put("ppo", processes=(t.process("ppo", reason=Reason.UNSCHEDULABLE, message="no GPU"),))
    t.look(30)
    found = series(t)
    assert found["pending_timestamp_seconds", "ppo"] == since
    assert not of(found, "progress_timestamp_seconds")
    assert found["condition", "", "Running", "Unschedulable"] == 0
    assert not of(found, "step")


def test_in_a_queue_nothing_waits_for_pods(trial: MakeTrial) -> None:
    t = trial(stages={"ppo": PPO}, queueName="q")
    t.look()
    t.put("ppo", processes=(t.process("ppo", reason=Reason.QUEUED, message="waits in queue q"),))
    t.look(30)
    found = series(t)
    assert not of(found, "pending_timestamp_seconds")
    assert found["condition", "", "Admitted", "Queued"] == 0


def test_a_restart_keeps_the_last_numbers_until_the_new_attempt_tells_any(
    trial: MakeTrial,
) -> None:
    t = running(trial, metrics={"kl": 0.5}, eta_seconds=50)
    last = read(metrics={"kl": 0.5, "eta_seconds": 50.0})
    t.end("ppo", 1)
    t.look()
    for _ in range(2):
        found = series(t, last)
        assert found["kl", "ppo", "1"] == 0.5
        assert found["restarts_total", "ppo"] == 1
        # Nobody can say when what does not run will be done.
        assert not of(found, "eta_seconds")
        assert found == series(t)
        t.look(5)
    assert t.stage("ppo").attempt == 2
    t.run("ppo", step=20, metrics={"kl": 0.25})
    t.look()
    for known in (series(t), series(t, last), series(t, read(2, step=20, metrics={"kl": 0.25}))):
        assert known["kl", "ppo", "2"] == 0.25
        assert known["step", "ppo", "2"] == 20
        assert not [key for key in known if key[1:3] == ("ppo", "1")]


@pytest.mark.parametrize("action", ["Suspend", "Fail"])
@pytest.mark.parametrize("was_read", [True, False])
def test_an_end_by_a_guardrail_leaves_its_verdict(
    trial: MakeTrial, action: str, was_read: bool
) -> None:
    t = running(trial, verdicts=judged())
    told = {"rule": DIVERGING, "value": 3.5, **SUSPENDS, "action": action, "threshold": 3.0}
    t.end("ppo", 42, said={"verdicts": (told,), "reason": Reason.GUARDRAIL})
    t.look()
    found = series(t, read(verdicts=judged()) if was_read else None)
    assert found["health_verdict", "ppo", "1", DIVERGING] == 1
    assert found["health_value", "ppo", "1", DIVERGING] == 3.5
    assert found["health_threshold", "ppo", "1", DIVERGING] == 3
    assert found["health_verdict", "ppo", "1", KL] == 0
    assert ("health_value", "ppo", "1", KL) in found or not was_read
    kind = "Suspended" if action == "Suspend" else "Failed"
    stage = "ppo" if action == "Fail" else ""
    assert found["condition", stage, kind, "Guardrail"] == 1
    assert found["condition", "", "Healthy", DIVERGING] == 0


def test_the_numbers_of_an_end_are_later_than_those_that_were_read(trial: MakeTrial) -> None:
    read_at_10 = judged(KL_ABOVE_LIMIT=12.5)
    t = running(trial, verdicts=read_at_10)
    told = {"rule": KL, "value": 20.0, **SUSPENDS}
    t.end("ppo", 42, said={"verdicts": (told,), "reason": Reason.GUARDRAIL})
    t.look()
    assert series(t, read(step=10, verdicts=read_at_10))["health_value", "ppo", "1", KL] == 20


def test_an_end_by_numbers_that_are_not_finite_leaves_its_verdict(trial: MakeTrial) -> None:
    t = running(trial)
    told = {"rule": GuardrailRule.NON_FINITE, **SUSPENDS, "value": None, "threshold": 0.0}
    t.end("ppo", 42, said={"verdicts": (told,), "reason": Reason.GUARDRAIL})
    t.look()
    found = series(t, read(verdicts=judged(), metrics={"nonfinite_total": 0.0}))
    assert found["health_verdict", "ppo", "1", "NonFinite"] == 1
    assert found["nonfinite_total", "ppo", "1"] == 0


def test_an_attempt_that_was_never_read_tells_its_verdict_and_no_old_numbers(
    trial: MakeTrial,
) -> None:
    t = running(trial, metrics={"kl": 0.5})
    t.end("ppo", 1)
    t.look()
    t.look(5)
    told = {"rule": KL, "value": 12.5, **SUSPENDS}
    t.end("ppo", 42, said={"verdicts": (told,), "reason": Reason.GUARDRAIL})
    t.look()
    found = series(t, read(1, metrics={"kl": 0.5}))
    assert found["health_verdict", "ppo", "2", KL] == 1
    assert not of(found, "kl")


def test_a_killed_attempt_keeps_the_newest_numbers_of_what_it_broke(trial: MakeTrial) -> None:
    t = running(trial, verdicts=judged(KL_ABOVE_LIMIT=12.5))
    t.run("ppo", step=20, verdicts=judged(KL_ABOVE_LIMIT=20.0))
    t.look(10)
    t.end("ppo", 137, result=None)
    t.look()
    assert "12.5" in t.stage("ppo").verdicts[KL]
    found = series(t, read(step=20, verdicts=judged(KL_ABOVE_LIMIT=20.0)))
    assert found["health_value", "ppo", "1", KL] == 20
    assert series(t)["health_value", "ppo", "1", KL] == 12.5


def test_a_stage_that_is_done_keeps_its_result_beside_one_that_runs(trial: MakeTrial) -> None:
    t = trial(stages={"sft": BASE, "reward": BASE}).running("sft")
    t.run("reward", step=5, metrics={"loss": 0.3})
    t.finish("sft", step=100, total_steps=100, metrics={"loss": 0.125})
    t.look(1)
    readings = read(1, "sft", step=90, metrics={"loss": 0.25, "nonfinite_total": 1.0}) | read(
        1, "reward", step=5, metrics={"loss": 0.3}
    )
    found = series(t, readings)
    assert (found["step", "sft", "1"], found["loss", "sft", "1"]) == (100, 0.125)
    assert found["progress_ratio", "sft", "1"] == 1
    assert found["nonfinite_total", "sft", "1"] == 1
    assert (found["step", "reward", "1"], found["loss", "reward", "1"]) == (5, 0.3)
    assert not of(found, "eta_seconds", "sft")
    assert not of(found, "progress_timestamp_seconds", "sft")


def test_a_good_end_takes_a_verdict_back(trial: MakeTrial) -> None:
    t = running(trial, verdicts=judged(KL_ABOVE_LIMIT=12.5))
    t.finish("ppo", step=100, total_steps=100)
    t.look()
    found = series(t, read(verdicts=judged(KL_ABOVE_LIMIT=12.5)))
    assert found["health_verdict", "ppo", "1", KL] == 0
    assert ("health_value", "ppo", "1", KL) not in found
    assert found["health_value", "ppo", "1", DIVERGING] == 1


def test_what_another_release_wrote_is_told_in_words_of_this_one(trial: MakeTrial) -> None:
    t = running(trial, verdicts=judged(KL_ABOVE_LIMIT=12.5))
    condition = t.job.status.conditions[0]
    foreign = [
        condition.model_copy(update={"type": "Melting"}),
        condition.model_copy(update={"type": ConditionType.ADMITTED, "reason": "Heat"}),
        condition.model_copy(update={"type": ConditionType.SUSPENDED, "status": "Unknown"}),
    ]
    verdicts = {"KLAboveLimit": "far too high", "NewerRule": "1"}
    stage = t.stage("ppo").model_copy(update={"verdicts": verdicts})
    status = t.job.status.model_copy(
        update={"conditions": tuple(foreign), "stages": StageStatuses(ppo=stage)}
    )
    t.job = t.job.model_copy(update={"status": status})
    found = series(t)
    assert of(found, "condition") == {("condition", "", "Admitted", UNKNOWN): 1}
    assert found["health_verdict", "ppo", "1", KL] == 1
    assert not of(found, "health_value")
    assert len(of(found, "health_verdict")) == len(GuardrailRule)


@pytest.mark.parametrize(("minutes", "told"), [(0, True), (14, True), (16, False)])
@pytest.mark.parametrize("how", ["well", "badly"])
def test_a_job_is_told_until_a_quarter_of_an_hour_after_its_end(
    trial: MakeTrial, minutes: int, told: bool, how: str
) -> None:
    t = running(trial)
    assert is_told(t.job.status, t.now + timedelta(days=9), KEEP)
    if how == "well":
        t.finish("ppo")
    else:
        t.end("ppo", 64)
    t.look()
    assert is_told(t.job.status, t.now + timedelta(minutes=minutes), KEEP) is told
    assert series(t)


def test_one_that_waits_after_a_guardrail_is_told_as_long_as_it_waits(trial: MakeTrial) -> None:
    t = running(trial)
    t.end("ppo", 42, phase=ProcessPhase.FAILED)
    t.look()
    assert t.job.status.phase == "Suspended"
    assert is_told(t.job.status, t.now + timedelta(days=9), KEEP)


def test_a_status_without_the_attempt_that_told_it_gives_no_numbers() -> None:
    stage = StageStatus(state=StageState.RUNNING, attempt=2, metrics={"kl": 0.5})
    status = RLHFJobStatus(stages=StageStatuses(ppo=stage))
    names = {metric.name for metric, _, _ in job_series("team", "demo", status, {})}
    assert names == {"rlhf_job_restarts_total", "rlhf_job_disruptions_total"}
