"""PPO with each way to scale rewards and values: what it tells, keeps, and refuses."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import ppo_runs
import pytest
import safetensors.torch
import stage_runs
import tiny
import torch
import worlds

from rlhf_api.errors import InputError
from rlhf_api.names import GuardrailRule
from rlhf_api.v1alpha1 import CheckpointPolicy, ModelSource, StageConfig
from rlhf_trainer.errors import StopRequested, failure_of
from rlhf_trainer.models.score_statistics import ScoreStatistics
from rlhf_trainer.ppo.popart import SMALLEST_SCALE

POPART = {"value_normalization": "PopArt", "reward_scaling": "RunningStdTotal"}
UPDATES, ROWS = 4, 8


def config_of(folder: Path, **changed: Any) -> StageConfig:
    settings: dict[str, Any] = {
        "max_steps": UPDATES,
        "batch_size": ROWS,
        "micro_batch_size": 4,
        "samples_every_steps": 1,
        "kl_coef": 0.5,
        "learning_rate": 0.02,
    }
    return tiny.stage_config("ppo", folder, **settings | changed)


def scored_model(folder: Path, statistics: ScoreStatistics | None) -> ModelSource:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    found = tiny.saved(tiny.scalar_model(words), folder / "scored", words)
    if statistics is not None:
        statistics.write(found)
    return tiny.file_source(found)


def test_the_scale_is_that_of_score_and_kl_together(tmp_path: Path) -> None:
    config = config_of(tmp_path, reward_scaling="RunningStdTotal", score_clip=1.0)
    stage_runs.run(config)
    rows = stage_runs.samples(config)
    totals = [np.clip(row["score"], -1, 1) - 0.5 * row["kl"] for row in rows]
    steps = stage_runs.steps(config)
    assert len(steps) == UPDATES
    for at, step in enumerate(steps, 1):
        expected = np.std(totals[: ROWS * at], ddof=1)
        assert step["reward_scale"] == pytest.approx(expected, rel=1e-5)
    scores = [np.clip(row["score"], -1, 1) for row in rows]
    assert abs(np.std(scores, ddof=1) / steps[-1]["reward_scale"] - 1) > 0.01
    # What is told of KL and its weight is in nats and as the specification has it.
    assert {step["kl_coef"] for step in steps} == {0.5}


def test_a_models_own_statistics_scale_its_scores(tmp_path: Path) -> None:
    source = scored_model(tmp_path, ScoreStatistics(0.5, 0.2, 20))
    config = config_of(
        tmp_path,
        reward_model=source,
        reward_scaling="ModelStats",
        kl_coef=0.0,
        gae_lambda=1.0,
        max_steps=1,
    )
    stage_runs.run(config)
    (step,) = stage_runs.steps(config)
    assert step["reward_scale"] == 0.2
    # Without KL and discount the return of every token of a response is its reward.
    rows = stage_runs.samples(config)
    rewards = [np.clip((row["score"] - 0.5) / 0.2, -10, 10) for row in rows]
    mean = np.average(rewards, weights=[row["length"] for row in rows])
    assert step["returns_mean"] == pytest.approx(mean, rel=1e-4)
    assert step["reward"] == pytest.approx(np.mean([row["score"] for row in rows]), rel=1e-5)


def test_a_model_without_statistics_is_refused_before_any_weights(tmp_path: Path) -> None:
    source = scored_model(tmp_path, None)
    # Weights that are missing would be told first if they were read first.
    safetensors.torch.save_file({}, tmp_path / "scored" / "model.safetensors")
    config = config_of(tmp_path, reward_model=source, reward_scaling="ModelStats")
    with pytest.raises(InputError, match=r"rewardModel.*ModelStats.*evalDataset") as caught:
        stage_runs.run(config)
    assert failure_of(caught.value).exit_code == 66


def require_running_averages(steps: list[dict[str, Any]], rows: int) -> None:
    """Units of the values are mean and deviation of the returns of all tokens, each update's tenth
    beside nine tenths of those before."""
    weight = mean = square = 0.0
    for step in steps:
        tokens = step["response_tokens"] * rows
        variance = step["returns_std"] ** 2 * (tokens - 1) / tokens
        weight += 0.1 * (1 - weight)
        mean += 0.1 * (step["returns_mean"] - mean)
        square += 0.1 * (variance + step["returns_mean"] ** 2 - square)
        assert step["value_mean"] == pytest.approx(mean / weight, rel=1e-4)
        scale = (square / weight - (mean / weight) ** 2) ** 0.5
        assert step["value_scale"] == pytest.approx(max(scale, SMALLEST_SCALE), rel=1e-3)


@pytest.mark.field("PPOStage.value_normalization")
def test_value_units_follow_the_returns_and_the_loss_is_in_them(tmp_path: Path) -> None:
    config = config_of(tmp_path, value_normalization="PopArt", value_head_init="Zero")
    stage_runs.run(config)
    steps = stage_runs.steps(config)
    assert len(steps) == UPDATES
    require_running_averages(steps, ROWS)
    first = steps[0]
    # All values are 0 then: the mean of R²/σ², halved.
    assert first["critic_loss"] == pytest.approx(
        0.5 * (first["value_mean"] ** 2 + first["value_scale"] ** 2) / first["value_scale"] ** 2,
        rel=1e-4,
    )


def test_the_unit_of_the_score_does_not_matter_to_popart(tmp_path: Path) -> None:
    """A hundredfold score without KL: the critic sees the same targets, clip range included."""
    losses = {}
    for unit in (1.0, 100.0):
        folder = tmp_path / str(unit)
        words = tiny.tokenizer_folder(folder / "tokenizer")
        model = tiny.scalar_model(words)
        with torch.no_grad():
            model.score.weight.mul_(unit)
        config = config_of(
            folder,
            reward_model=tiny.file_source(tiny.saved(model, folder / "scored", words)),
            value_normalization="PopArt",
            value_head_init="Zero",
            score_clip=1e6,
            kl_coef=0.0,
            value_clip_range=0.05,
            update_epochs=3,
            critic_learning_rate=0.05,
        )
        stage_runs.run_with_fixed_answers(config)
        losses[unit] = [step["critic_loss"] for step in stage_runs.steps(config)]
    assert losses[100.0] == pytest.approx(losses[1.0], rel=1e-2)


def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    settings: dict[str, Any] = POPART | {"batch_size": ROWS, "update_epochs": 2}
    alone = config_of(tmp_path / "one", **settings)
    stage_runs.run_with_fixed_answers(alone)
    both = config_of(tmp_path / "two", world_size=2, zero_stage=2, **settings)
    worlds.pair()(stage_runs.ON_RANK, "run_with_fixed_answers", config=both)
    names = ("reward_scale", "value_mean", "value_scale", "critic_loss", "explained_variance")
    for one, two in zip(stage_runs.steps(alone), stage_runs.steps(both), strict=True):
        for name in names:
            assert two[name] == pytest.approx(one[name], rel=2e-3, abs=1e-4), name


def test_popart_learns_from_one_answer_at_a_time(tmp_path: Path) -> None:
    config = config_of(
        tmp_path, **POPART, batch_size=1, micro_batch_size=1, update_epochs=2, max_steps=6
    )
    outcome = stage_runs.run(config)
    steps = stage_runs.steps(config)
    assert len(steps) == 6
    for at, step in enumerate(steps, 1):
        strange = {
            name: number
            for name, number in step.items()
            if number is None or not math.isfinite(number)
        }
        assert not strange, at
    require_running_averages(steps, rows=1)
    assert steps[-1]["value_scale"] > 10 * SMALLEST_SCALE
    broken = {event["rule"] for event in stage_runs.events(config) if event["type"] == "verdict"}
    assert GuardrailRule.NON_FINITE not in broken
    assert GuardrailRule.NON_FINITE not in {verdict.rule for verdict in outcome.verdicts}
    # What it learned is finite too.
    actor = ppo_runs.causal(stage_runs.artifact(config, outcome))
    assert all(bool(weight.isfinite().all()) for weight in actor.state_dict().values())


@pytest.mark.parametrize("precision", ["FP32", "BF16"])
@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_stopped_between_updates_it_ends_as_if_it_never_was(
    tmp_path: Path, precision: str, zero_stage: int
) -> None:
    settings = POPART | {
        "precision": precision,
        "zero_stage": zero_stage,
        "checkpoint": CheckpointPolicy(every_steps=100),
    }
    straight = config_of(tmp_path / "straight", **settings)
    stage_runs.run(straight)
    config = config_of(tmp_path / "cut", **settings)
    with pytest.raises(StopRequested) as caught:
        stage_runs.run(config, stage_runs.StopAt(25))
    assert 0 < caught.value.step < UPDATES
    again = stage_runs.attempt(config, 2)
    stage_runs.run(again)
    told = [*stage_runs.steps(config), *stage_runs.steps(again)]
    expected = stage_runs.steps(straight)
    assert [stage_runs.learned(step) for step in told] == [
        stage_runs.learned(step) for step in expected
    ]
