"""Loading models: what cannot be used, and what a checkpoint brings along."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
)

from rlhf_api.errors import ConfigError, InputError
from rlhf_trainer.models.configs import model_config
from rlhf_trainer.models.load import (
    ModelSettings,
    load_causal_model,
    load_reward_base,
    load_reward_model,
)
from rlhf_trainer.run.artifact import ModelLocation

FIELD = "spec.stages.ppo.rewardModel"
EOS = 1


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return tiny.tokenizer_folder(tmp_path / "tokenizer")


# What cannot be used


def causal_folder(tmp_path: Path, words: Path) -> ModelLocation:
    return ModelLocation(str(tiny.saved(tiny.causal_model(words), tmp_path / "causal", words)))


def test_a_causal_model_is_no_reward_model(tmp_path: Path, words: Path) -> None:
    place = causal_folder(tmp_path, words)
    with pytest.raises(InputError) as caught:
        load_reward_model(place, tiny.tokenizer_of(words), tiny.FP32, FIELD)
    assert str(caught.value) == (
        f"{FIELD}: the model is LlamaForCausalLM, but a reward model with a score head is needed "
        "here; train one with stages.reward"
    )


def test_a_reward_model_is_no_policy(tmp_path: Path, words: Path) -> None:
    folder = tiny.saved(tiny.scalar_model(words), tmp_path / "reward", words)
    with pytest.raises(InputError) as caught:
        load_causal_model(
            ModelLocation(str(folder)), tiny.tokenizer_of(words), tiny.FP32, "spec.stages.ppo.model"
        )
    assert str(caught.value) == (
        "spec.stages.ppo.model: the model is LlamaForSequenceClassification, but a causal language "
        "model is needed here; name the model it was trained from"
    )


@pytest.mark.parametrize("load", [load_reward_model, load_reward_base])
def test_a_classifier_of_three_labels_is_no_reward_model(
    tmp_path: Path, words: Path, load: Any
) -> None:
    config = LlamaConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_labels=3
    )
    folder = tmp_path / "classifier"
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    with pytest.raises(InputError, match=r"rewardModel: .*classifier has 3 labels; .*one score"):
        load(ModelLocation(str(folder)), tiny.tokenizer_of(words), tiny.FP32, FIELD)


def test_an_architecture_without_a_linear_score_head_is_refused(
    tmp_path: Path, words: Path
) -> None:
    """BERT's family calls it `classifier` and reads the first token."""
    from transformers import RobertaConfig, RobertaForCausalLM

    config = RobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
    )
    folder = tmp_path / "roberta"
    RobertaForCausalLM(config).save_pretrained(folder)
    with pytest.raises(
        InputError, match=r"rewardModel: Roberta\w+ has no linear score head.*Llama"
    ):
        load_reward_base(ModelLocation(str(folder)), tiny.tokenizer_of(words), tiny.FP32, FIELD)


def test_an_architecture_without_a_classifier_is_refused(tmp_path: Path, words: Path) -> None:
    from transformers import GPTNeoXJapaneseConfig, GPTNeoXJapaneseForCausalLM

    config = GPTNeoXJapaneseConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_multiple_size=1,
    )
    folder = tmp_path / "japanese"
    GPTNeoXJapaneseForCausalLM(config).save_pretrained(folder)
    with pytest.raises(InputError) as caught:
        load_reward_base(ModelLocation(str(folder)), tiny.tokenizer_of(words), tiny.FP32, FIELD)
    assert str(caught.value) == (
        f"{FIELD}: transformers has no classifier of gpt_neox_japanese; use a model whose "
        "AutoModelForSequenceClassification has a score head, for example Llama"
    )


@pytest.mark.parametrize("kind", ["causal", "reward"])
def test_a_tokenizer_that_is_larger_than_the_model_is_refused(tmp_path: Path, kind: str) -> None:
    small = tiny.tokenizer_folder(tmp_path / "small", "abc")
    model = tiny.causal_model(small) if kind == "causal" else tiny.scalar_model(small)
    place = ModelLocation(str(tiny.saved(model, tmp_path / "model", small)))
    load = load_causal_model if kind == "causal" else load_reward_model
    with pytest.raises(InputError) as caught:
        load(place, tiny.tokenizer(), tiny.FP32, "spec.stages.sft.model")
    assert str(caught.value) == (
        "spec.stages.sft.model: the tokenizer has 22 tokens but the model only 6 embeddings; use "
        "the tokenizer that the model was trained with"
    )
    # More embeddings than tokens are common: vocabularies are padded to multiples.
    assert load(place, tiny.tokenizer("a"), tiny.FP32, "model").config.vocab_size == 6


def test_missing_and_broken_weights_are_told_with_their_field(tmp_path: Path, words: Path) -> None:
    place = causal_folder(tmp_path, words)
    (Path(place.path) / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"spec\.x: cannot load .*causal"):
        load_causal_model(place, tiny.tokenizer_of(words), tiny.FP32, "spec.x")
    (Path(place.path) / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"spec\.x: cannot load .*causal"):
        load_causal_model(place, tiny.tokenizer_of(words), tiny.FP32, "spec.x")
    (Path(place.path) / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"spec\.x: no usable model configuration at .*causal"):
        model_config(place, tiny.tokenizer_of(words), "spec.x")


def test_weights_of_another_shape_are_told_with_their_field(tmp_path: Path, words: Path) -> None:
    place = causal_folder(tmp_path, words)
    path = Path(place.path) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(InputError, match=r"spec\.x: cannot load .*causal"):
        load_causal_model(place, tiny.tokenizer_of(words), tiny.FP32, "spec.x")


def test_weights_that_lack_a_layer_are_refused(tmp_path: Path, words: Path) -> None:
    place = causal_folder(tmp_path, words)
    path = Path(place.path) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"num_hidden_layers": 2, "layer_types": None}))
    with pytest.raises(InputError, match=r"spec\.x: .*causal"):
        load_causal_model(place, tiny.tokenizer_of(words), tiny.FP32, "spec.x")


def test_flash_attention_without_its_package_names_the_remedy(tmp_path: Path, words: Path) -> None:
    place = causal_folder(tmp_path, words)
    settings = ModelSettings(torch.bfloat16, "flash_attention_2", seed=1)
    with pytest.raises(ConfigError, match=r"spec\.attentionImplementation: .*choose SDPA"):
        load_causal_model(place, tiny.tokenizer_of(words), settings, "spec.x")
    with pytest.raises(ConfigError, match=r"spec\.attentionImplementation: .*choose SDPA"):
        load_causal_model(tiny.location(words), tiny.tokenizer_of(words), settings, "spec.x")


NO_SDPA = {
    "bloom": {"n_layer": 1, "n_head": 2, "hidden_size": 16},
    "gemma2": {"num_hidden_layers": 2, "head_dim": 8, "num_key_value_heads": 1},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"n_layer": 1, "n_head": 2, "n_embd": 16, "rotary_dim": 4},
    "mpt": {"n_layers": 1, "n_heads": 2, "d_model": 16},
    "xglm": {"num_layers": 1, "attention_heads": 2, "d_model": 16, "ffn_dim": 32},
    # Nobody has complained of this one yet.
    "codegen": {"n_layer": 1, "n_head": 4, "n_embd": 16, "rotary_dim": 4},
}
"""Models for which transformers offers no SDPA, in little."""


def without_sdpa(folder: Path, words: Path, kind: str) -> ModelLocation:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_heads": 2, "intermediate_size": 32}
    tokens = {"vocab_size": len(tiny.tokenizer()), "bos_token_id": EOS, "eos_token_id": EOS}
    config = AutoConfig.for_model(kind, **sizes | tokens | NO_SDPA[kind])
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return ModelLocation(str(tiny.saved(model, folder, words)))


@pytest.mark.parametrize("kind", NO_SDPA)
def test_eager_attention_stands_in_where_there_is_no_sdpa(
    tmp_path: Path, words: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = without_sdpa(tmp_path / kind, words, kind)
    model = load_causal_model(place, tiny.tokenizer_of(words), tiny.FP32, "spec.stages.sft.model")
    assert model.config._attn_implementation == "eager"
    field = "spec.stages.sft.attentionImplementation: "
    told = [message for message in caplog.messages if message.startswith(field)]
    assert len(told) == 1
    assert told[0].endswith(f"offers no SDPA for the model type {kind}: Eager is used")


def test_another_reason_why_eager_attention_stands_in_is_told(
    tmp_path: Path,
    words: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def check(*_: object, **__: object) -> None:
        raise ImportError("SDPA needs a newer torch\nthan this one")

    place = causal_folder(tmp_path, words)
    monkeypatch.setattr(PreTrainedModel, "_sdpa_can_dispatch", check)
    model = load_causal_model(place, tiny.tokenizer_of(words), tiny.FP32, "spec.stages.sft.model")
    assert model.config._attn_implementation == "eager"
    (told,) = [message for message in caplog.messages if "Eager" in message]
    assert told.startswith("spec.stages.sft.attentionImplementation: transformers ")
    assert told.endswith("llama with SDPA (SDPA needs a newer torch than this one): Eager is used")


def test_where_there_is_sdpa_nothing_stands_in(
    tmp_path: Path, words: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = load_causal_model(
        causal_folder(tmp_path, words), tiny.tokenizer_of(words), tiny.FP32, FIELD
    )
    assert model.config._attn_implementation == "sdpa"
    assert not [message for message in caplog.messages if "Eager" in message]


def test_a_reward_model_without_sdpa_has_eager_attention_too(tmp_path: Path, words: Path) -> None:
    place = without_sdpa(tmp_path / "gptj", words, "gptj")
    model = load_reward_base(place, tiny.tokenizer_of(words), tiny.FP32, FIELD)
    assert model.config._attn_implementation == "eager"


def test_flash_attention_that_a_model_does_not_have_is_a_matter_of_its_field(
    tmp_path: Path, words: Path
) -> None:
    place = without_sdpa(tmp_path / "bloom", words, "bloom")
    settings = ModelSettings(torch.float32, "flash_attention_2", seed=1)
    with pytest.raises(ConfigError, match=r"spec\.attentionImplementation: .*choose SDPA"):
        load_causal_model(place, tiny.tokenizer_of(words), settings, "spec.x")


def test_old_weights_that_hold_no_tensors_are_no_crash(tmp_path: Path, words: Path) -> None:
    place = causal_folder(tmp_path, words)
    (Path(place.path) / "model.safetensors").unlink()
    (Path(place.path) / "pytorch_model.bin").write_bytes(b"version of something\n")
    with pytest.raises(InputError, match=r"spec\.x: cannot load .*causal") as caught:
        load_causal_model(place, tiny.tokenizer_of(words), tiny.FP32, "spec.x")
    assert "\n" not in str(caught.value)


# What a checkpoint brings along


def test_precision_is_that_of_the_specification(tmp_path: Path, words: Path) -> None:
    place = causal_folder(tmp_path, words)
    for settings in (tiny.BF16, tiny.FP32):
        model = load_causal_model(place, tiny.tokenizer_of(words), settings, "model")
        assert {p.dtype for p in model.parameters()} == {settings.dtype}
        reward = load_reward_base(place, tiny.tokenizer_of(words), settings, "model")
        assert {p.dtype for p in reward.parameters()} == {settings.dtype}


def test_the_pad_token_of_training_goes_with_the_model(tmp_path: Path, words: Path) -> None:
    """Without it in the configuration other tools find no last token."""
    place = causal_folder(tmp_path, words)
    path = Path(place.path) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"pad_token_id": None, "eos_token_id": 5}))
    for load in (load_causal_model, load_reward_base):
        model = load(place, tiny.tokenizer_of(words), tiny.FP32, "model")
        assert (model.config.pad_token_id, model.config.eos_token_id) == (0, EOS)


def test_sampling_defaults_of_a_checkpoint_are_forgotten(tmp_path: Path, words: Path) -> None:
    place = causal_folder(tmp_path, words)
    GenerationConfig(
        repetition_penalty=1.3, top_k=5, top_p=0.5, no_repeat_ngram_size=2, do_sample=True
    ).save_pretrained(place.path)
    model: Any = load_causal_model(place, tiny.tokenizer_of(words), tiny.FP32, "model")
    assert model.generation_config.to_diff_dict().keys() <= {"transformers_version"}
