"""What a peer is given: the settings of our job, with models and tokens as our stages read them."""

from pathlib import Path
from typing import Any

from rlhf_api.v1alpha1 import PPOStage, RewardStage, RLHFJob, SFTStage, StageSpec
from rlhf_trainer.data.loading import load_preferences, load_prompts, load_sft
from rlhf_trainer.models.tokenizers import load_tokenizer
from rlhf_trainer.rl.schedule import warmup_steps
from speed.jobs import Raw

Task = dict[str, Any]


def ppo_task(document: Raw) -> Task:
    """PPO on the same prompts, from the same models."""
    stage = RLHFJob.from_document(document).spec.stages.ppo
    assert isinstance(stage, PPOStage)
    assert stage.reward_model is not None
    model = _path(stage.model.uri)
    prompts, _ = load_prompts(
        stage.dataset,
        load_tokenizer(model, field="model"),
        max_length=stage.max_prompt_length,
        claims={},
        field="dataset",
    )
    return _settings(stage) | {
        "sft": str(model),
        "reward": str(_path(stage.reward_model.uri)),
        "updates": stage.max_steps,
        "prompts": [prompt.tokens.tolist() for prompt in prompts],
    }


def sft_task(document: Raw) -> Task:
    """SFT on the same rows, one a sequence, with the loss on the same tokens."""
    stage = RLHFJob.from_document(document).spec.stages.sft
    assert isinstance(stage, SFTStage)
    model = _path(stage.model.uri)
    examples, _ = load_sft(
        stage.dataset,
        load_tokenizer(model, field="model"),
        max_length=stage.max_length,
        claims={},
        field="dataset",
    )
    rows = [
        {
            "input_ids": example.tokens.tolist(),
            "completion_mask": example.response_mask.astype(int).tolist(),
        }
        for example in examples
    ]
    return _settings(stage) | _supervised("sft", model, stage, rows)


def reward_task(document: Raw) -> Task:
    """A reward model on the same pairs."""
    stage = RLHFJob.from_document(document).spec.stages.reward
    assert isinstance(stage, RewardStage)
    model = _path(stage.model.uri)
    pairs, _ = load_preferences(
        stage.dataset,
        load_tokenizer(model, field="model"),
        max_length=stage.max_length,
        claims={},
        field="dataset",
        seed=stage.seed,
    )
    rows = [
        {"chosen_ids": pair.chosen.tolist(), "rejected_ids": pair.rejected.tolist()}
        for pair in pairs
    ]
    return _settings(stage) | _supervised("reward", model, stage, rows)


def _supervised(name: str, model: Path, stage: StageSpec, rows: list[dict[str, Any]]) -> Task:
    return {"stage": name, "model": str(model), "steps": stage.max_steps, "rows": rows}


def _settings(stage: StageSpec) -> Task:
    """Every field of the stage, defaults written out."""
    assert stage.max_steps is not None
    found: Task = stage.to_resolved_document()
    return found | {"warmupSteps": warmup_steps(stage.max_steps, stage.warmup_ratio)}


def _path(uri: str | None) -> Path:
    assert uri is not None
    return Path(uri.removeprefix("file://"))
