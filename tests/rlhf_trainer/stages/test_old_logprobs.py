"""Log-probabilities of sampling stand for those of training where they are the same."""

from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny

from rlhf_api.names import GuardrailAction, GuardrailRule
from rlhf_api.v1alpha1 import CheckpointPolicy, Guardrail, StageConfig
from rlhf_trainer.errors import StopRequested
from rlhf_trainer.ppo import collection, sampler_check
from rlhf_trainer.ppo import state as ppo_state
from rlhf_trainer.ppo.experience import Experience

DRIFT = 1e-5


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each rollout whether the actor was asked for it once more."""
    found: list[bool] = []
    collect = collection.collect

    def watch(*arguments: Any, actor: Any, **settings: Any) -> Experience:
        found.append(actor is not None)
        return collect(*arguments, actor=actor, **settings)

    monkeypatch.setattr(collection, "collect", watch)
    return found


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        pytest.param({}, [True, False, False, False], id="FP32"),
        pytest.param({"critic_warmup_steps": 2}, [True, True, True, False], id="warm-up"),
        pytest.param(
            {"old_logprobs": "Recompute"},
            [True] * 4,
            marks=pytest.mark.field("PPOStage.old_logprobs"),
            id="Recompute",
        ),
        pytest.param({"precision": "BF16"}, [True] * 4, id="BF16"),
        pytest.param({"top_k": 5}, [True] * 4, id="topK"),
        pytest.param({"top_p": 0.9}, [True] * 4, id="topP"),
    ],
)
def test_the_actor_evaluates_a_rollout_anew_where_that_says_something(
    tmp_path: Path, evaluated: list[bool], settings: dict[str, Any], expected: list[bool]
) -> None:
    config = tiny.stage_config("ppo", tmp_path, minibatch_size=2, update_epochs=2, **settings)
    stage_runs.run(config)
    assert evaluated == expected
    assert all("sampler_drift" in step for step in stage_runs.steps(config))


def test_an_evaluation_asks_the_model_that_answered(tmp_path: Path, evaluated: list[bool]) -> None:
    """Before and after all updates, and after the second, of a stage that has held-out prompts."""
    config = tiny.stage_config("ppo", tmp_path, eval_dataset=True, eval_every_steps=2)
    stage_runs.run(config)
    assert evaluated == [True, False, True, False, False, True, True]


def test_what_is_learned_differs_by_rounding(tmp_path: Path) -> None:
    found = []
    for old in ("Auto", "Recompute"):
        config = tiny.stage_config("ppo", tmp_path / old, old_logprobs=old)
        stage_runs.run(config)
        found.append([stage_runs.learned(step) for step in stage_runs.steps(config)])
    auto, recomputed = found
    assert auto != recomputed
    for ours, theirs in zip(auto, recomputed, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_two_ranks_decide_alike(tmp_path: Path) -> None:
    """One rank that evaluated a rollout alone would wait for the other one for ever."""
    policy = CheckpointPolicy(every_steps=2, keep_finished=True)
    config = tiny.stage_config("ppo", tmp_path, world_size=2, zero_stage=3, checkpoint=policy)
    first, second = stage_runs.run_on_pair(config)
    assert first["outcome"].artifact == second["outcome"].artifact
    assert stage_runs.kept_state(config, 4)["sampledLogprobs"] is True
    assert all(0 < step["sampler_drift"] < DRIFT for step in stage_runs.steps(config))


def stopped_at_2(config: StageConfig) -> None:
    with pytest.raises(StopRequested):
        stage_runs.run(config, stage_runs.StopAfter(config, 2))


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_goes_on_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: list[bool], begun: bool
) -> None:
    """Whatever is measured at the next start; the ratio is checked again there."""
    config = tiny.stage_config("ppo", tmp_path, checkpoint=CheckpointPolicy(every_steps=1))
    monkeypatch.setattr(sampler_check, "may_serve_as_old", lambda *measured: begun)
    stopped_at_2(config)
    evaluated.clear()
    monkeypatch.setattr(sampler_check, "may_serve_as_old", lambda *measured: not begun)
    stage_runs.run(stage_runs.attempt(config, 2))
    assert evaluated == [True, not begun]


@pytest.mark.parametrize(("off", "stays"), [(0.5 * DRIFT, True), (2 * DRIFT, False)])
def test_where_sampling_has_drifted_in_an_answer_all_are_evaluated_from_then_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    evaluated: list[bool],
    caplog: pytest.LogCaptureFixture,
    off: float,
    stays: bool,
) -> None:
    """One of the first rollout: those at the start were short."""
    collect, made = collection.collect, []

    def drifting(*arguments: Any, **settings: Any) -> Experience:
        experience = collect(*arguments, **settings)
        if not made:
            # Old ones may be the same numbers in the same place.
            experience.rollout.sampled_logprobs[0] += off
        made.append(experience)
        return experience

    monkeypatch.setattr(collection, "collect", drifting)
    policy = CheckpointPolicy(every_steps=2, keep_finished=True)
    config = tiny.stage_config("ppo", tmp_path, checkpoint=policy)
    stage_runs.run(config)
    assert evaluated == [True, *[not stays] * 3]
    assert stage_runs.kept_state(config, 4)["sampledLogprobs"] is stays
    assert ("from now on old ones are computed anew" in caplog.text) is not stays


def test_a_run_that_kept_no_decision_computes_them_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: list[bool]
) -> None:
    config = tiny.stage_config("ppo", tmp_path, checkpoint=CheckpointPolicy(every_steps=1))
    plain = ppo_state.State.to_document

    def without(state: ppo_state.State) -> dict[str, Any]:
        return {name: each for name, each in plain(state).items() if name != "sampledLogprobs"}

    with monkeypatch.context() as older:
        older.setattr(ppo_state.State, "to_document", without)
        stopped_at_2(config)
    evaluated.clear()
    stage_runs.run(stage_runs.attempt(config, 2))
    assert evaluated == [True, True]


@pytest.mark.parametrize(("warm_up", "spoilt"), [(0, 1), (1, 2)])
def test_an_update_that_is_refused_leaves_the_check_to_the_next(
    tmp_path: Path, evaluated: list[bool], warm_up: int, spoilt: int
) -> None:
    """Nothing was learned in it, so that no ratio has been seen."""
    observed = Guardrail(rule=GuardrailRule.NON_FINITE, action=GuardrailAction.OBSERVE)
    config = tiny.stage_config("ppo", tmp_path, critic_warmup_steps=warm_up)
    with stage_runs.spoilt_rollout("scores", update=spoilt):
        stage_runs.run(config.model_copy(update={"guardrails": (observed,)}))
    assert evaluated == [step <= spoilt + 1 for step in range(1, 5)]
