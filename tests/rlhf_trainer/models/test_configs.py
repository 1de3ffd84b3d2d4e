"""Checkpoints that cannot be trained, told by their configuration before any weights are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import transformers
from transformers import AutoConfig

from rlhf_api.errors import InputError
from rlhf_api.v1alpha1 import ModelSource, StageConfig
from rlhf_trainer.data.read.pointers import POINTER
from rlhf_trainer.models.configs import checked_config
from rlhf_trainer.models.source import open_base
from rlhf_trainer.run.artifact import ModelLocation

FIELD = "spec.stages.sft.model"

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}


def described(folder: Path, **config: Any) -> ModelLocation:
    """A checkpoint of which there is nothing but its config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return ModelLocation(str(folder))


def refusal(place: ModelLocation) -> str:
    with pytest.raises(InputError) as caught:
        checked_config(place, FIELD)
    message = str(caught.value)
    assert message.startswith(f"{FIELD}: ")
    assert place.path in message
    assert "\n" not in message
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "awq", "bits": 4, "zero_point": True},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "fp8", "weight_block_size": [128, 128]},
        {"quant_method": "mxfp4"},
        # transformers only warns of a method that it does not know, and reads the weights as if
        # they were numbers.
        {"quant_method": "of-tomorrow"},
    ],
)
def test_a_quantised_checkpoint_is_called_so(tmp_path: Path, settings: dict[str, Any]) -> None:
    told = refusal(described(tmp_path, **LLAMA, quantization_config=settings))
    for word in ("quantised", settings["quant_method"], "quantization_config", "BF16 or FP32"):
        assert word in told
    assert "attention" not in told


def test_the_text_model_of_several_may_be_the_quantised_one(tmp_path: Path) -> None:
    text = AutoConfig.for_model("gemma3_text", num_hidden_layers=1).to_dict()
    place = described(
        tmp_path,
        model_type="gemma3",
        text_config=text | {"quantization_config": {"quant_method": "awq"}},
    )
    assert "quantised" in refusal(place)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("t5", "T5ForConditionalGeneration"),
        ("mt5", "MT5ForConditionalGeneration"),
        # transformers has a causal model of its decoder alone, with other names of weights.
        ("bart", "BartForConditionalGeneration"),
        ("pegasus", "PegasusForConditionalGeneration"),
        ("whisper", "WhisperForConditionalGeneration"),
    ],
)
def test_an_encoder_with_a_decoder_is_called_so(tmp_path: Path, kind: str, name: str) -> None:
    config = AutoConfig.for_model(kind, architectures=[name]).to_dict()
    told = refusal(described(tmp_path, **config))
    for word in (name, kind, "an encoder with a decoder", "decoder-only"):
        assert word in told


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm"])
def test_an_encoder_is_no_language_model_unless_it_says_so(tmp_path: Path, kind: str) -> None:
    config = AutoConfig.for_model(kind).to_dict()
    told = refusal(described(tmp_path, **config))
    for word in (kind, "an encoder", "is_decoder"):
        assert word in told
    directed = {"is_decoder": True} if kind != "xlm" else {"causal": True}
    assert checked_config(described(tmp_path, **config | directed), FIELD).model_type == kind


@pytest.mark.parametrize("kind", ["vit", "clip"])
def test_what_speaks_no_language_is_refused(tmp_path: Path, kind: str) -> None:
    told = refusal(described(tmp_path, **AutoConfig.for_model(kind).to_dict()))
    assert f"({kind}), of which transformers has no causal language model" in told


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path, capfd: Any) -> None:
    """Nor is anybody asked whether it may be, as transformers would do."""
    code = "raise SystemExit('this code was run')\n"
    auto = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XModel"}
    place = described(tmp_path, model_type="of-a-stranger", auto_map=auto)
    for name in ("configuration_x.py", "modeling_x.py"):
        (tmp_path / name).write_text(code)
    told = refusal(place)
    for word in ("of-a-stranger", "configuration_x.XConfig", "modeling_x.XModel", "never run"):
        assert word in told
    assert "trust_remote_code" not in told
    assert capfd.readouterr().out == ""
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto}))
    assert "never run" in refusal(place)
    # Many checkpoints bring code along that nobody needs any more.
    assert checked_config(described(tmp_path, **LLAMA, auto_map=auto), FIELD).model_type == "llama"


AUTO_MAP = {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}


@pytest.mark.parametrize("name", ["XForCausalLM", "LlamaBiModel", "LlamaForRewardModel"])
def test_code_that_builds_on_a_known_type_is_needed_all_the_same(tmp_path: Path, name: str) -> None:
    described_so = LLAMA | {"architectures": [name]}
    told = refusal(described(tmp_path, **described_so, auto_map=AUTO_MAP))
    for word in (f"{name} (llama)", "does not have", "modeling_x.XForCausalLM", "never run"):
        assert word in told
    # Somebody may have removed the entry, and left the weights.
    told = refusal(described(tmp_path, **described_so))
    assert f"is {name} (llama), which transformers does not have; name a" in told


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "LlamaForTokenClassification"),
        ("qwen2", "Qwen2ForTokenClassification"),
        ("gpt2", "GPT2ForQuestionAnswering"),
        # Weights of one family under the type of another.
        ("llama", "Qwen3ForCausalLM"),
    ],
)
@pytest.mark.parametrize("code", [{}, {"auto_map": AUTO_MAP}])
def test_another_head_than_logits_or_a_score_is_called_so(
    tmp_path: Path, kind: str, name: str, code: dict[str, Any]
) -> None:
    config = AutoConfig.for_model(kind, architectures=[name]).to_dict()
    told = refusal(described(tmp_path, **config | code))
    assert f"is {name} ({kind}), and neither " in told


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("llama", "LlamaForCausalLM"),
        ("llama", "LlamaForSequenceClassification"),
        ("gpt2", "GPT2LMHeadModel"),
        ("gpt2", "GPT2Model"),
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("mpt", "MPTForCausalLM"),
        ("bert", "BertForMaskedLM"),
    ],
)
def test_names_that_publishers_use_are_taken(tmp_path: Path, kind: str, name: str) -> None:
    config = AutoConfig.for_model(kind, architectures=[name]).to_dict()
    if kind == "bert":
        config["is_decoder"] = True
    place = described(tmp_path, **config | {"auto_map": AUTO_MAP})
    assert checked_config(place, FIELD).architectures == [name]


def test_attention_to_random_blocks_is_refused(tmp_path: Path) -> None:
    """They may follow; short rows are read as a whole, as the other kind reads all."""
    settings = AutoConfig.for_model("big_bird", is_decoder=True).to_dict()
    told = refusal(described(tmp_path, **settings))
    assert "with attention_type block_sparse, by which tokens see blocks behind them" in told
    assert "in long rows; set attention_type: original_full" in told
    whole = described(tmp_path, **settings | {"attention_type": "original_full"})
    assert checked_config(whole, FIELD).model_type == "big_bird"


def test_a_type_of_tomorrow_asks_for_a_newer_library(tmp_path: Path) -> None:
    told = refusal(described(tmp_path, model_type="of-tomorrow"))
    for word in ("of-tomorrow", f"transformers {transformers.__version__}", "newer"):
        assert word in told


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama", "num_hidden_layers": "x"}'])
def test_a_damaged_configuration_is_no_crash(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    assert "no usable model configuration" in refusal(ModelLocation(str(tmp_path)))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path: Path, name: str) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    folder = tiny.saved(tiny.causal_model(words), tmp_path / "model", words)
    (folder / name).write_bytes(POINTER + b"v1\noid sha256:4cac19622fc3ada9\nsize 132735492\n")
    told = refusal(ModelLocation(str(folder)))
    for word in (str(folder / name), "pointer of Git LFS", "git lfs pull"):
        assert word in told


def test_the_model_is_refused_before_its_tokenizer(tmp_path: Path) -> None:
    """Whoever must name another model has no use for advice on this one's tokenizer."""
    place = described(tmp_path / "t5", model_type="t5")
    config: StageConfig = tiny.stage_config("sft", tmp_path)
    with pytest.raises(InputError, match="an encoder with a decoder"):
        open_base(ModelSource(uri=f"file://{place.path}"), config, tiny.ALONE, FIELD)
