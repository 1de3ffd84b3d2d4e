"""Fields that decide about no weight: what a stage tells and how it computes, as asked for."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import stage_runs
import tiny
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_api.v1alpha1 import CheckpointPolicy
from rlhf_trainer.models.engine import TrainedModel
from rlhf_trainer.ppo import collection
from rlhf_trainer.ppo.rollout import Rollout
from rlhf_trainer.run.loop import TrainingLoop

STAGES = ("sft", "reward", "ppo")


def settings_of(stage: str, **fields: Any) -> dict[str, Any]:
    """Rows that pack into batches of any size."""
    return ({"packing": False} if stage == "sft" else {}) | fields


LONGEST = pytest.mark.field("PPOStage.max_response_length", instead=6)


@pytest.mark.parametrize("longest", [pytest.param(3, marks=LONGEST), 6])
def test_answers_are_as_long_as_they_may_be(tmp_path: Path, longest: int) -> None:
    config = tiny.stage_config(
        "ppo", tmp_path, max_response_length=longest, max_steps=1, batch_size=8
    )
    stage_runs.run(config)
    lengths = [row["length"] for row in stage_runs.samples(config)]
    assert max(lengths) == longest


@pytest.mark.parametrize(
    "truncated",
    [
        pytest.param({"top_k": 1}, marks=pytest.mark.field("PPOStage.top_k")),
        pytest.param({"top_p": 1e-9}, marks=pytest.mark.field("PPOStage.top_p")),
    ],
)
def test_the_likeliest_tokens_alone_are_sampled(tmp_path: Path, truncated: dict[str, Any]) -> None:
    answers = []
    for seed in (1, 2):
        config = tiny.stage_config(
            "ppo", tmp_path / str(seed), seed=seed, max_steps=1, batch_size=8, **truncated
        )
        stage_runs.run(config)
        answers.append({row["prompt"]: row["response"] for row in stage_runs.samples(config)})
    first, second = answers
    both = first.keys() & second.keys()
    assert both
    assert {prompt: first[prompt] for prompt in both} == {prompt: second[prompt] for prompt in both}


SAMPLES = pytest.mark.field("PPOStage.samples_every_steps")


@pytest.mark.parametrize(
    ("every", "at"), [pytest.param(1, {1, 2, 3}, marks=SAMPLES), (2, {2, 3}), (5, {3})]
)
def test_samples_are_written_as_often_as_asked(tmp_path: Path, every: int, at: set[int]) -> None:
    config = tiny.stage_config("ppo", tmp_path, samples_every_steps=every, max_steps=3)
    stage_runs.run_with_fixed_answers(config)
    assert {row["step"] for row in stage_runs.samples(config)} == at


HELD_OUT = pytest.mark.field("StageSpec.eval_dataset")
EVERY = pytest.mark.field("StageSpec.eval_every_steps")


@pytest.mark.parametrize(
    ("every", "at"),
    [
        pytest.param(None, [3], marks=HELD_OUT),
        pytest.param(1, [1, 2, 3], marks=EVERY),
        (2, [2, 3]),
    ],
)
@pytest.mark.parametrize("stage", STAGES)
def test_evaluations_come_as_often_as_asked(
    tmp_path: Path, stage: str, every: int | None, at: list[int]
) -> None:
    fields = settings_of(stage, eval_every_steps=every, eval_dataset=True, max_steps=3)
    config = tiny.stage_config(stage, tmp_path, **fields)
    stage_runs.run(config)
    assert [event["step"] for event in stage_runs.events(config, "evaluation")] == at


PRECISION = pytest.mark.field("StageSpec.precision")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [pytest.param("FP32", "float32", marks=PRECISION), ("BF16", "bfloat16")],
)
@pytest.mark.parametrize("stage", STAGES)
def test_weights_have_the_precision_that_was_asked_for(
    tmp_path: Path, stage: str, precision: str, dtype: str
) -> None:
    fields = settings_of(stage, precision=precision, max_steps=1)
    config = tiny.stage_config(stage, tmp_path, **fields)
    folder = stage_runs.artifact(config, stage_runs.run(config))
    weights = safetensors.torch.load_file(folder / "model.safetensors").values()
    assert {each.dtype for each in weights} == {getattr(torch, dtype)}


ATTENTION = pytest.mark.field("StageSpec.attention_implementation")


@pytest.mark.parametrize(
    ("asked", "name"), [("SDPA", "sdpa"), pytest.param("Eager", "eager", marks=ATTENTION)]
)
@pytest.mark.parametrize("stage", STAGES)
def test_attention_is_computed_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, asked: str, name: str
) -> None:
    """The implementation of every model that learns, when training begins."""
    found: list[str] = []
    resume = TrainingLoop.resume

    def look(loop: TrainingLoop) -> Any:
        for model in loop.models.values():
            assert isinstance(model, TrainedModel)
            inner = model.module.model
            assert isinstance(inner, PreTrainedModel)
            found.append(str(inner.config._attn_implementation))
        return resume(loop)

    monkeypatch.setattr(TrainingLoop, "resume", look)
    fields = settings_of(stage, attention_implementation=asked, max_steps=1)
    stage_runs.run(tiny.stage_config(stage, tmp_path, **fields))
    assert set(found) == {name}


@pytest.mark.field("StageSpec.gradient_checkpointing")
@pytest.mark.parametrize("stage", STAGES)
def test_layers_are_computed_anew_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """In every model that learns, when training begins."""
    found: list[bool] = []
    resume = TrainingLoop.resume

    def look(loop: TrainingLoop) -> Any:
        found.extend(
            each.is_activation_checkpointing
            for model in loop.models.values()
            for each in model.module.modules()
            if isinstance(each, PreTrainedModel)
        )
        return resume(loop)

    monkeypatch.setattr(TrainingLoop, "resume", look)
    fields = settings_of(stage, gradient_checkpointing=True, max_steps=1)
    stage_runs.run(tiny.stage_config(stage, tmp_path, **fields))
    assert set(found) == {True}


def passes_of_eight_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, **changed: int
) -> int:
    """How many passes the model makes that makes fewest, in a step of eight rows."""
    parts: Counter[int] = Counter()
    accumulate = TrainedModel.accumulate

    def count(model: TrainedModel, *arguments: Any, **settings: Any) -> None:
        parts[id(model)] += 1
        accumulate(model, *arguments, **settings)

    monkeypatch.setattr(TrainedModel, "accumulate", count)
    fields = settings_of(stage, batch_size=8, max_steps=1, **changed)
    fields |= {"ppo": {"update_epochs": 1}, "sft": {"packing": False}}.get(stage, {})
    stage_runs.run(tiny.stage_config(stage, tmp_path, **fields))
    return min(parts.values())


@pytest.mark.field("StageSpec.micro_batch_size")
@pytest.mark.parametrize("stage", STAGES)
def test_a_pass_has_room_for_as_many_rows_of_the_greatest_length_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    assert passes_of_eight_rows(tmp_path, monkeypatch, stage, micro_batch_size=1) > 2


@pytest.mark.field("StageSpec.micro_batch_tokens")
@pytest.mark.parametrize("stage", STAGES)
def test_a_pass_has_room_for_as_many_tokens_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    tokens = {"sft": 32, "reward": 64, "ppo": 16}[stage]
    changed = {"micro_batch_size": 64, "micro_batch_tokens": tokens}
    assert passes_of_eight_rows(tmp_path, monkeypatch, stage, **changed) > 2


@pytest.mark.field("PPOStage.rollout_micro_batch_size")
def test_a_pass_that_scores_has_room_for_as_many_answers_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[torch.Size] = []
    collect = collection.collect

    def watch(rollout: Rollout, *, reference: Any, **settings: Any) -> Any:
        def watched(ids: Tensor, *arguments: Any) -> Any:
            passes.append(ids.shape)
            return reference(ids, *arguments)

        return collect(rollout, reference=watched, **settings)

    monkeypatch.setattr(collection, "collect", watch)
    fields = {"rollout_micro_batch_size": 2, "batch_size": 8, "max_steps": 1}
    config = tiny.stage_config("ppo", tmp_path, **fields)
    stage_runs.run(config)
    assert max(rows * columns for rows, columns in passes) <= 2 * config.ppo.most_row_tokens
    assert max(rows for rows, _ in passes) >= 2


KEPT = (
    pytest.mark.field("CheckpointPolicy.keep"),
    pytest.mark.field("StageSpec.checkpoint"),
)


@pytest.mark.parametrize(("keep", "left"), [pytest.param(1, [4], marks=KEPT), (3, [2, 3, 4])])
def test_as_many_checkpoints_stay_as_asked(tmp_path: Path, keep: int, left: list[int]) -> None:
    policy = CheckpointPolicy(every_steps=1, keep=keep, keep_finished=True)
    config = tiny.stage_config("sft", tmp_path, packing=False, checkpoint=policy)
    stage_runs.run(config)
    names = [name for name in stage_runs.checkpoints(config) if name.startswith("step")]
    assert sorted(names) == [f"step-{step}" for step in left]
