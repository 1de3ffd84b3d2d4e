"""Files that hold more than the model takes: another model, or a head that is not needed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny
import torch
import zoo
from transformers import AutoModelForCausalLM

from rlhf_api.errors import InputError
from rlhf_trainer.models.load import load_causal_model, load_reward_base, load_reward_model
from rlhf_trainer.run.artifact import ModelLocation

FIELD = "spec.stages.ppo.model"
Load = Callable[..., Any]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return tiny.tokenizer_folder(tmp_path / "tokenizer")


def loaded(load: Load, folder: Path, words: Path) -> Any:
    return load(ModelLocation(str(folder)), tiny.tokenizer_of(words), tiny.FP32, FIELD)


def described_otherwise(folder: Path, **changed: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def with_weights(folder: Path, **added: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    held = safetensors.torch.load_file(path)
    safetensors.torch.save_file(held | added, path, metadata={"format": "pt"})


def refused(load: Load, folder: Path, words: Path, count: int, name: str) -> None:
    with pytest.raises(InputError) as caught:
        loaded(load, folder, words)
    text = str(caught.value)
    assert text.startswith(f"{FIELD}: cannot load {folder}: its files hold {count} weights that ")
    assert f"among them {name}, " in text
    assert text.endswith("; use files that were saved together")


def zoo_model(name: str, folder: Path, words: Path, **changed: Any) -> Path:
    config = zoo.ARCHITECTURES[name]
    config = type(config)(**config.to_dict() | changed)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return tiny.saved(tiny.shake(model), folder, words)


@pytest.mark.parametrize("load", [load_causal_model, load_reward_base])
def test_layers_that_the_configuration_does_not_have_are_no_surplus(
    tmp_path: Path, words: Path, load: Load
) -> None:
    folder = tiny.saved(tiny.causal_model(words, layers=4), tmp_path / "model", words)
    loaded(load, folder, words)
    described_otherwise(folder, num_hidden_layers=1, layer_types=None)
    first = "model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight"
    refused(load, folder, words, 27, f"{first}, model.layers.1.mlp.gate_proj.weight")


def test_biases_that_the_configuration_switches_off_are_missed(tmp_path: Path, words: Path) -> None:
    folder = zoo_model("Llama", tmp_path / "model", words, attention_bias=True)
    described_otherwise(folder, attention_bias=False)
    first = "model.layers.0.self_attn.k_proj.bias, model.layers.0.self_attn.o_proj.bias"
    refused(load_causal_model, folder, words, 8, f"{first}, model.layers.0.self_attn.q_proj.bias")


def test_weights_of_another_architecture_are_found_out(tmp_path: Path, words: Path) -> None:
    """Qwen3 is Llama but for norms of queries and keys."""
    folder = zoo_model("Qwen3", tmp_path / "model", words)
    described_otherwise(folder, model_type="llama", architectures=["LlamaForCausalLM"])
    first = "model.layers.0.self_attn.k_norm.weight, model.layers.0.self_attn.q_norm.weight"
    refused(load_causal_model, folder, words, 4, f"{first}, model.layers.1.self_attn.k_norm.weight")


V_HEAD = {"v_head.summary.weight": torch.ones(1, 16), "v_head.summary.bias": torch.ones(1)}
"""As TRL leaves a model with a value head."""


@pytest.mark.parametrize("load", [load_causal_model, load_reward_base])
def test_a_value_head_beside_the_model_is_refused(tmp_path: Path, words: Path, load: Load) -> None:
    folder = tiny.saved(tiny.causal_model(words), tmp_path / "model", words)
    with_weights(folder, **V_HEAD)
    refused(load, folder, words, 2, "v_head.summary.bias, v_head.summary.weight")


@pytest.mark.parametrize("load", [load_reward_model, load_reward_base])
def test_a_value_head_beside_a_score_is_refused(tmp_path: Path, words: Path, load: Load) -> None:
    folder = tiny.saved(tiny.scalar_model(words), tmp_path / "model", words)
    loaded(load, folder, words)
    with_weights(folder, **V_HEAD)
    refused(load, folder, words, 2, "v_head.summary.bias, v_head.summary.weight")


# What is not missed


@pytest.mark.parametrize("name", ["Llama", "Phi-3", "GPT-J", "GPT-NeoX"])
def test_a_score_takes_the_place_of_logits_of_any_name(
    tmp_path: Path, words: Path, name: str
) -> None:
    folder = zoo_model(name, tmp_path / "model", words, tie_word_embeddings=False)
    held = safetensors.torch.load_file(folder / "model.safetensors")
    assert {"lm_head.weight", "embed_out.weight"} & held.keys()
    model = loaded(load_reward_base, folder, words)
    for key, weight in model.base_model.state_dict().items():
        assert torch.equal(weight, held[f"{model.base_model_prefix}.{key}"]), key


def test_a_reward_model_may_keep_the_logits_of_its_base(tmp_path: Path, words: Path) -> None:
    folder = tiny.saved(tiny.scalar_model(words), tmp_path / "model", words)
    with_weights(folder, **{"lm_head.weight": torch.ones(22, 16)})
    loaded(load_reward_model, folder, words)


def test_logits_that_are_tied_may_be_written_twice(tmp_path: Path, words: Path) -> None:
    folder = tiny.saved(tiny.causal_model(words), tmp_path / "model", words)
    held = safetensors.torch.load_file(folder / "model.safetensors")
    with_weights(folder, **{"lm_head.weight": held["model.embed_tokens.weight"].clone()})
    loaded(load_causal_model, folder, words)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("Llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("GPT-J", "transformer.h.0.attn.masked_bias"),
        ("GPT-J", "transformer.h.0.attn.bias"),
        ("GPT-NeoX", "gpt_neox.layers.0.attention.bias"),
        ("GPT-2", "transformer.h.1.attn.masked_bias"),
    ],
)
@pytest.mark.parametrize("load", [load_causal_model, load_reward_base])
def test_tables_of_older_files_are_no_weights(
    tmp_path: Path, words: Path, load: Load, name: str, key: str
) -> None:
    folder = zoo_model(name, tmp_path / "model", words)
    with_weights(folder, **{key: torch.ones(1, 1, 64, 64)})
    loaded(load, folder, words)
