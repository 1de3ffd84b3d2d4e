"""Stages whose layers are computed anew in the backward pass learn what they learn without."""

from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
from stage_runs import require_same, weights
from transformers import JetMoeConfig, JetMoeForCausalLM

from rlhf_api.errors import ConfigError
from rlhf_api.names import ExitCode
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import StopRequested, failure_of
from rlhf_trainer.stages import sft

STAGES = ("sft", "reward", "ppo")
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"packing": False},
    "reward": {},
    "ppo": {"update_epochs": 2, "ptx_dataset": True, "ema_decay": 0.7},
}


def config_of(stage: str, folder: Path, **changed: Any) -> StageConfig:
    settings = {"max_steps": 2, "eval_dataset": True}
    return tiny.stage_config(stage, folder, **settings | SETTINGS[stage] | changed)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_learns_the_same(tmp_path: Path, stage: str) -> None:
    """Sampling and evaluation included, which need a cache that no checkpointed layer has."""
    straight = config_of(stage, tmp_path / "straight")
    expected = stage_runs.run(straight)
    config = config_of(stage, tmp_path / "checkpointed", gradient_checkpointing=True)
    found = stage_runs.run(config)
    assert stage_runs.told(config) == stage_runs.told(straight)
    require_same(weights(config, found), weights(straight, expected))


def test_two_ranks_learn_the_same(tmp_path: Path) -> None:
    settings = {"world_size": 2, "zero_stage": 3}
    straight = config_of("ppo", tmp_path / "straight", **settings)
    stage_runs.run_on_pair(straight)
    config = config_of("ppo", tmp_path / "checkpointed", gradient_checkpointing=True, **settings)
    (found, _) = stage_runs.run_on_pair(config)
    assert "error" not in found
    assert stage_runs.told(config) == stage_runs.told(straight)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_goes_on_with_it(tmp_path: Path, stage: str) -> None:
    """It decides about no result: a stage that ran out of memory keeps its checkpoints."""
    straight = config_of(stage, tmp_path / "straight")
    expected = stage_runs.run(straight)
    first = config_of(stage, tmp_path / "cut")
    with pytest.raises(StopRequested) as caught:
        stage_runs.run(first, stage_runs.StopAfter(first, 1))
    assert caught.value.step == 1
    second = config_of(stage, tmp_path / "cut", gradient_checkpointing=True, attempt=2)
    assert second.config_digest == first.config_digest
    outcome = stage_runs.run(second)
    assert stage_runs.events(second)[0]["step"] == 1
    assert stage_runs.told(first, second) == stage_runs.told(straight)
    require_same(weights(second, outcome), weights(straight, expected))


def test_a_model_that_cannot_is_refused_before_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sft, "load_causal_model")
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    model = JetMoeForCausalLM(
        JetMoeConfig(
            vocab_size=22,
            hidden_size=32,
            num_hidden_layers=2,
            num_key_value_heads=2,
            kv_channels=8,
            intermediate_size=32,
            num_local_experts=2,
            num_experts_per_tok=2,
        )
    )
    folder = tiny.saved(model, tmp_path / "jetmoe", words)
    config = config_of("sft", tmp_path, model=tiny.file_source(folder), gradient_checkpointing=True)
    with pytest.raises(ConfigError) as caught:
        stage_runs.run(config)
    failure = failure_of(caught.value)
    assert failure.exit_code == ExitCode.CONFIG
    assert failure.message == (
        "spec.stages.sft.gradientCheckpointing: JetMoeForCausalLM of spec.stages.sft.model has no "
        "gradient checkpointing in transformers; leave it out, or name another model"
    )
    assert not stage_runs.events(config)
