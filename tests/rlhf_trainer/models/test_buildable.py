"""Configurations that only the real model meets: one of tiny widths would have another."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny

from rlhf_api.errors import InputError
from rlhf_trainer.models.source import open_base

FIELD = "spec.stages.sft.model"
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal and a reward model."""
    folder = tmp_path_factory.mktemp("models")
    words = tiny.tokenizer_folder(folder / "tokenizer")
    tiny.saved(tiny.causal_model(words), folder / "causal", words)
    tiny.saved(tiny.scalar_model(words), folder / "scalar", words)
    return folder


def changed(model: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """A copy whose config.json says something else; None takes a field out."""
    shutil.copytree(model, folder)
    path = folder / "config.json"
    told = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not None}))
    return folder


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"pad_token_id": 99}, "Padding_idx must be within"),
        ({"rope_parameters": {"rope_type": "of-tomorrow", "rope_theta": 1e4}}, "of-tomorrow"),
        (
            {"rope_parameters": None, "rope_scaling": {"type": "of-tomorrow", "factor": 2.0}},
            "of-tomorrow",
        ),
        (
            {"rope_parameters": {**LONGROPE, "short_factor": [1.0], "long_factor": [1.0] * 3}},
            "size of tensor",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": "4"}},
            "instances of 'str'",
        ),
        ({"head_dim": 0}, "negative power"),
        ({"vocab_size": -5}, "negative dimension -5"),
        ({"num_hidden_layers": -1}, "__len__"),
        ({"hidden_act": "swiglu9"}, "KeyError: 'swiglu9'"),
    ],
)
def test_what_transformers_refuses_to_build_is_an_input_that_cannot_be_used(
    tmp_path: Path, models: Path, settings: dict[str, Any], reason: str
) -> None:
    folder = changed(models / "causal", tmp_path / "model", settings)
    config = tiny.stage_config("sft", tmp_path)
    with pytest.raises(InputError) as caught:
        open_base(tiny.file_source(folder), config, tiny.ALONE, FIELD)
    message = str(caught.value)
    assert message.startswith(f"{FIELD}: transformers ")
    for word in (str(folder), "(llama)", reason, "; correct config.json, use a trainer with"):
        assert word in message


OF_THE_STAGE: list[dict[str, Any]] = [
    {"attn_implementation": "flash_attention_2", "dtype": "auto"},
    {"_attn_implementation": "of-tomorrow", "dtype": None, "torch_dtype": "torch.bfloat16"},
    {"output_attentions": True, "output_hidden_states": True, "return_dict": False},
]


@pytest.mark.parametrize("settings", OF_THE_STAGE)
@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_what_the_stage_decides_is_not_asked_of_a_config(
    tmp_path: Path, models: Path, stage: str, settings: dict[str, Any]
) -> None:
    kind, field = ("causal", "model") if stage == "sft" else ("scalar", "reward_model")
    source = tiny.file_source(changed(models / kind, tmp_path / "model", settings))
    told = stage_runs.run(tiny.stage_config(stage, tmp_path, max_steps=1, **{field: source}))
    assert told.artifact is not None


def test_nor_of_the_config_beside_a_tokenizer(tmp_path: Path, models: Path) -> None:
    folder = changed(models / "causal", tmp_path / "model", {"dtype": "auto"})
    base = open_base(
        tiny.scratch_source(folder), tiny.stage_config("sft", tmp_path), tiny.ALONE, FIELD
    )
    assert len(base.tokenizer) == len(tiny.tokenizer())
