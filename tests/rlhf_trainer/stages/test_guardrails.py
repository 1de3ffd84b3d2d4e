"""What a broken rule does to a PPO stage: observed, suspended, failed, and gone on with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.request import urlopen

import pytest
import stage_runs
import tiny
import torch
import worlds

from rlhf_api.metrics import Metric
from rlhf_api.names import ExitCode, GuardrailAction, GuardrailRule, Reason
from rlhf_api.v1alpha1 import CheckpointPolicy, Guardrail, StageConfig
from rlhf_trainer.errors import GuardrailFired, StopRequested, failure_of
from rlhf_trainer.ppo import guardrails
from rlhf_trainer.ppo.health import Judgement
from rlhf_trainer.ppo.health_rules import HEALTH_RULES
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.loop import TrainingLoop
from rlhf_trainer.stages import ppo

NEVER = CheckpointPolicy(every_steps=1000)
STEPS = 4


def config_of(
    folder: Path, action: str, *, checkpoint: CheckpointPolicy = NEVER, **settings: Any
) -> StageConfig:
    """PPO whose KL is always above the limit: broken after each second update."""
    config = tiny.stage_config("ppo", folder, checkpoint=checkpoint, max_steps=STEPS, **settings)
    guardrail = Guardrail(
        rule=GuardrailRule.KL_ABOVE_LIMIT,
        action=GuardrailAction(action),
        threshold=-1000.0,
        consecutive_updates=2,
    )
    return config.model_copy(update={"guardrails": (guardrail,)})


def fired(config: StageConfig) -> GuardrailFired:
    with pytest.raises(GuardrailFired) as caught:
        stage_runs.run(config)
    return caught.value


def resumed(config: StageConfig, number: int) -> StageConfig:
    """The next attempt after a person has seen what a guardrail did to the one before."""
    known = {"guardrail_attempt": number - 1}
    return stage_runs.attempt(config, number).model_copy(update=known)


@contextmanager
def killed_after_saving(update: int) -> Iterator[None]:
    """The process ends between an update's checkpoint and what follows from its verdicts."""

    def obey(judgement: Judgement, loop: TrainingLoop) -> None:
        if loop.step == update:
            raise KeyboardInterrupt
        guardrails.obey(judgement, loop)

    with patch.object(ppo, "obey", obey), pytest.raises(KeyboardInterrupt):
        yield


@pytest.mark.parametrize("action", ["Suspend", "Fail"])
def test_a_guardrail_saves_and_ends_the_attempt_and_starts_anew(
    tmp_path: Path, action: str
) -> None:
    first = config_of(tmp_path, action)
    failure = failure_of(fired(first))

    assert (failure.exit_code, failure.reason) == (ExitCode.GUARDRAIL, Reason.GUARDRAIL)
    assert (failure.step, failure.last_checkpoint_step) == (2, 2)
    assert failure.message.startswith("spec.guardrails: KLAboveLimit: KL is ")
    assert f"action {action} ends the stage after update 2" in failure.message
    assert HEALTH_RULES[GuardrailRule.KL_ABOVE_LIMIT].remedy in failure.message
    (verdict,) = failure.verdicts
    assert (verdict.rule, verdict.action) == (GuardrailRule.KL_ABOVE_LIMIT, action)
    assert (verdict.step, verdict.threshold) == (2, -1000.0)
    assert verdict.value == stage_runs.steps(first)[-1]["kl"]
    assert stage_runs.checkpoints(first) == ["latest", "step-2"]
    # The update counts and is told before the process leaves.
    kinds = [event["type"] for event in stage_runs.events(first)]
    assert kinds == ["start", "step", "step", "verdict", "checkpoint"]

    second = resumed(first, 2)
    again = fired(second)
    assert (again.step, again.last_checkpoint_step) == (4, 4)
    assert len(stage_runs.steps(second)) == 2
    # Nothing is left to do: the third attempt evaluates and keeps.
    outcome = stage_runs.run(resumed(first, 3))
    assert (outcome.step, outcome.verdicts) == (STEPS, ())


@pytest.mark.parametrize("action", ["Suspend", "Fail"])
@pytest.mark.parametrize("killed_at", [2, STEPS])
def test_a_guardrail_whose_process_is_killed_ends_the_next_attempt(
    tmp_path: Path, killed_at: int, action: str
) -> None:
    """Also after the last update, when nothing is left by which the rule could be broken again."""
    every = CheckpointPolicy(every_steps=1)
    first = config_of(tmp_path, action, checkpoint=every)
    config = first
    if killed_at == STEPS:
        fired(first)
        config = resumed(first, 2)
    with killed_after_saving(killed_at):
        stage_runs.run(config)

    # Who starts it knows of no verdict of the killed attempt.
    second = stage_runs.attempt(config, config.attempt + 1)
    failure = failure_of(fired(second))
    assert (failure.exit_code, failure.reason) == (ExitCode.GUARDRAIL, Reason.GUARDRAIL)
    assert (failure.step, failure.last_checkpoint_step) == (killed_at, killed_at)
    assert failure.message.startswith("spec.guardrails: KLAboveLimit: KL is ")
    assert f"action {action} ends the stage after update {killed_at}" in failure.message
    (verdict,) = failure.verdicts
    assert (verdict.rule, verdict.action) == (GuardrailRule.KL_ABOVE_LIMIT, action)
    assert verdict.value == stage_runs.steps(config)[-1]["kl"]
    assert stage_runs.steps(second) == []

    last = resumed(first, second.attempt + 1)
    if killed_at == STEPS:
        assert stage_runs.run(last).verdicts == ()
    else:
        assert fired(last).step == STEPS
    assert len(stage_runs.steps(last)) == STEPS - killed_at


def test_a_guardrail_that_only_observes_by_now_lets_a_killed_attempt_go_on(tmp_path: Path) -> None:
    every = CheckpointPolicy(every_steps=1)
    first = config_of(tmp_path, "Suspend", checkpoint=every)
    with killed_after_saving(2):
        stage_runs.run(first)
    observed = config_of(tmp_path, "Observe", checkpoint=every).guardrails
    second = stage_runs.attempt(first, 2).model_copy(update={"guardrails": observed})
    assert stage_runs.run(second).step == STEPS


def test_an_attempt_that_goes_on_tells_the_verdicts_of_its_checkpoint(tmp_path: Path) -> None:
    """One that was killed may have told others, and nothing else takes those back."""
    config = config_of(tmp_path, "Observe", checkpoint=CheckpointPolicy(every_steps=3))
    with killed_after_saving(STEPS):
        stage_runs.run(config)
    second = stage_runs.attempt(config, 2)
    outcome = stage_runs.run(second)
    kinds = [event["type"] for event in stage_runs.events(second)]
    assert kinds[:3] == ["start", "verdicts", "step"]
    (event,) = stage_runs.events(second, "verdicts")
    assert event["step"] == 3
    (verdict,) = event["verdicts"]
    assert {key: verdict[key] for key in ("rule", "action", "step", "threshold")} == {
        "rule": "KLAboveLimit",
        "action": "Observe",
        "step": 2,
        "threshold": -1000.0,
    }
    assert verdict["value"] == stage_runs.steps(config)[1]["kl"]
    # A result that was lost is told again by whoever finds the work done.
    third = stage_runs.run(stage_runs.attempt(config, 3))
    assert third.verdicts == outcome.verdicts
    assert [each.step for each in third.verdicts] == [2]


def test_an_attempt_that_goes_on_learns_as_if_nothing_had_fired(tmp_path: Path) -> None:
    config = config_of(tmp_path / "fired", "Suspend")
    for number in (1, 2):
        fired(resumed(config, number))
    straight = config_of(tmp_path / "straight", "Observe")
    stage_runs.run(straight)

    def told(*configs: StageConfig) -> list[dict[str, float]]:
        return [stage_runs.learned(each) for config in configs for each in stage_runs.steps(config)]

    assert told(config, stage_runs.attempt(config, 2)) == told(straight)


def test_what_is_observed_goes_on_and_stands_in_the_result(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Observe")
    outcome = stage_runs.run(config)
    assert outcome.step == STEPS
    assert outcome.artifact is not None
    (verdict,) = outcome.verdicts
    assert (verdict.rule, verdict.action) == (GuardrailRule.KL_ABOVE_LIMIT, "Observe")
    (event,) = stage_runs.events(config, "verdict")
    step = stage_runs.steps(config)[1]
    assert event["evidence"].startswith(f"KL is {step['kl']:.4g} nats an answer")
    assert {key: event[key] for key in ("step", "rule", "broken", "action", "value")} == {
        "step": 2,
        "rule": "KLAboveLimit",
        "broken": True,
        "action": "Observe",
        "value": step["kl"],
    }


def test_a_stop_tells_what_is_broken_and_the_verdict_stays(tmp_path: Path) -> None:
    """Looks at the flag are one a token, so that this one comes in the last update."""
    config = config_of(tmp_path, "Observe")
    flag = stage_runs.StopAt(1_000_000)
    stage_runs.run(config, flag)
    looks = 1_000_000 - flag.left
    other = config_of(tmp_path / "stopped", "Observe")
    stop = stage_runs.StopAt(looks - 1)
    with pytest.raises(StopRequested) as caught:
        stage_runs.run(other, stop)
    assert [verdict.rule for verdict in caught.value.verdicts] == ["KLAboveLimit"]
    # It was told of in the first attempt, and has not changed since.
    second = stage_runs.attempt(other, 2)
    outcome = stage_runs.run(second)
    assert [verdict.step for verdict in outcome.verdicts] == [2]
    assert stage_runs.events(second, "verdict") == []


TOLD_OF_SCORES = {"reward", "returns_mean"}


def spoilt_config(folder: Path, *guardrails: Guardrail, **settings: Any) -> StageConfig:
    every = CheckpointPolicy(every_steps=1, keep=STEPS, keep_finished=True)
    config = tiny.stage_config("ppo", folder, checkpoint=every, max_steps=STEPS, **settings)
    return config.model_copy(update={"guardrails": guardrails})


def not_finite(step: dict[str, float]) -> set[str]:
    return {name for name, value in step.items() if value is None}


def test_scores_that_are_not_finite_are_not_learned_from(tmp_path: Path) -> None:
    config = spoilt_config(tmp_path, reward_scaling="RunningStdTotal")
    with stage_runs.spoilt_rollout("scores", update=2):
        failure = failure_of(fired(config))
    assert (failure.exit_code, failure.step) == (ExitCode.GUARDRAIL, 2)
    assert failure.last_checkpoint_step == 1
    assert "NonFinite: " in failure.message
    (verdict,) = failure.verdicts
    assert (verdict.rule, verdict.action, verdict.step) == (GuardrailRule.NON_FINITE, "Fail", 2)
    assert stage_runs.checkpoints(config) == ["latest", "step-1"]
    first, second = stage_runs.steps(config)
    assert not_finite(first) == set()
    assert not_finite(second) == TOLD_OF_SCORES
    assert "policy_loss" not in second


def test_what_is_not_finite_and_only_observed_changes_nothing(tmp_path: Path) -> None:
    """The next update starts from the weights and moments before."""
    observed = Guardrail(rule=GuardrailRule.NON_FINITE, action=GuardrailAction.OBSERVE)
    config = spoilt_config(
        tmp_path, observed, reward_scaling="RunningStd", value_normalization="PopArt"
    )
    with stage_runs.spoilt_rollout("scores", update=2):
        outcome = stage_runs.run(config)
    assert outcome.step == STEPS
    assert [not_finite(step) for step in stage_runs.steps(config)] == [
        set(),
        TOLD_OF_SCORES,
        set(),
        set(),
    ]
    before, after = (stage_runs.kept_state(config, step) for step in (1, 2))
    assert before.pop("health") != after.pop("health")
    assert before == after
    weights = [stage_runs.kept_weights(config, step) for step in (1, 2, 3)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[1][name], weights[2][name]) for name in weights[0])


def test_all_ranks_refuse_what_one_of_them_found(tmp_path: Path) -> None:
    config = spoilt_config(tmp_path, world_size=2, reward_scaling="RunningStdTotal")
    both = worlds.pair()(stage_runs.ON_RANK, "run_spoilt", config=config, name="scores", update=2)
    first, second = (found["error"] for found in both)
    assert first == second
    assert (first.exit_code, first.step) == (ExitCode.GUARDRAIL, 2)
    assert first.last_checkpoint_step == 1
    assert not_finite(stage_runs.steps(config)[1]) == TOLD_OF_SCORES


def test_spoilt_weights_are_not_kept_while_the_rule_waits(tmp_path: Path) -> None:
    """NonFinite needs two updates in a row; a request to stop comes between them."""
    patient = Guardrail(rule=GuardrailRule.NON_FINITE, consecutive_updates=2)
    config = spoilt_config(tmp_path, patient)

    class AfterTwo(StopFlag):
        @property
        def is_set(self) -> bool:
            return len(stage_runs.steps(config)) >= 2

    with (
        stage_runs.spoilt_rollout("scores", update=2),
        pytest.raises(StopRequested) as caught,
    ):
        stage_runs.run(config, AfterTwo())
    assert (caught.value.step, caught.value.last_checkpoint_step) == (2, 1)
    assert stage_runs.checkpoints(config) == ["latest", "step-1"]


def test_all_ranks_end_alike(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Suspend", world_size=2)
    first, second = stage_runs.run_on_pair(config)
    assert first["error"] == second["error"]
    assert first["error"].exit_code == ExitCode.GUARDRAIL
    assert first["error"].last_checkpoint_step == 2


def test_the_launcher_hands_verdicts_through(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Fail")
    with stage_runs.launched(config, tmp_path / "launch") as launched:
        assert launched.wait() == ExitCode.GUARDRAIL, launched.log
    result = launched.result
    assert (result.exit_code, result.reason) == (ExitCode.GUARDRAIL, Reason.GUARDRAIL)
    assert [(verdict.rule, verdict.action) for verdict in result.verdicts] == [
        (GuardrailRule.KL_ABOVE_LIMIT, GuardrailAction.FAIL)
    ]
    assert (result.step, result.total_steps, result.last_checkpoint_step) == (2, STEPS, 2)
    assert "KLAboveLimit is broken at step 2: KL is " in launched.log


def test_every_update_serves_the_health(tmp_path: Path) -> None:
    config = config_of(tmp_path, "Observe", samples_every_steps=1)
    served: list[str] = []

    class Reading(stage_runs.StopAt):
        """Reads the endpoint whenever the stage looks at its flag."""

        @property
        def is_set(self) -> bool:
            port = stage_runs.events(config)[0]["metricsPort"]
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
                served.append(response.read().decode())
            return False

    stage_runs.run(config, Reading(1))
    labels = 'attempt="1",rlhfjob="tiny",rule="KLAboveLimit",stage="ppo"'
    assert f"rlhf_train_health_threshold{{{labels}}} -1000.0" in served[-1]
    assert f"rlhf_train_health_verdict{{{labels}}} 1.0" in served[-1]
    kl = stage_runs.steps(config)[-1][Metric.KL]
    assert f"rlhf_train_health_value{{{labels}}} {kl}" in served[-1]
    assert served[-1].count("rlhf_train_health_threshold{") == len(GuardrailRule)
    # The others are in their warm-up.
    judged = [rule for rule in HEALTH_RULES.values() if rule.warmup == 0]
    assert served[-1].count("rlhf_train_health_verdict{") == len(judged)
