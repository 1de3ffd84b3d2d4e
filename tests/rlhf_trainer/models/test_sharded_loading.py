"""Weights that are cut over the ranks stay in their files until then, and become the same."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
import zoo
from torch import nn
from transformers import PreTrainedModel

from rlhf_api.v1alpha1 import LoRA
from rlhf_trainer.models.adapters import add_adapters
from rlhf_trainer.models.load import ModelSettings, load_causal_model
from rlhf_trainer.run.artifact import ModelLocation
from rlhf_trainer.run.distributed import Ranks

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "loading_cases.py"
cases: Any = worlds.load(PROGRAM)

PRECISIONS = {"FP32": torch.float32, "BF16": torch.bfloat16}
SAVED = [torch.float32, torch.float16, torch.bfloat16]
KINDS = {"actor": tiny.causal_model, "critic": tiny.causal_model, "reward model": tiny.scalar_model}
WEIGHTS = "model.safetensors"


def saved(folder: Path, kind: str, dtype: torch.dtype) -> Path:
    words = tiny.tokenizer_folder(folder / "tokenizer")
    return tiny.saved(KINDS[kind](words, "qwen2").to(dtype), folder / "model", words)


def settings(precision: str, *, as_saved: bool) -> ModelSettings:
    return ModelSettings(PRECISIONS[precision], "sdpa", seed=1, as_saved=as_saved)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", SAVED, ids=str)
def test_weights_stay_in_their_files_until_each_is_cut(
    tmp_path: Path, kind: str, precision: str, dtype: torch.dtype
) -> None:
    folder = saved(tmp_path, kind, dtype)
    spec = tiny.stage_spec("sft", tmp_path, zero_stage=3, precision=precision, seed=1)
    plain = cases.of_files(folder, kind, settings(precision, as_saved=False))
    expected = dict(plain.named_parameters())
    for files, weights in worlds.pair()(PROGRAM, "cut", folder=folder, kind=kind, spec=spec):
        assert files == {WEIGHTS}
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert weight.dtype == PRECISIONS[precision], name
            assert torch.equal(weight, expected[name]), name


def test_adapters_are_those_of_a_model_that_is_not_cut(tmp_path: Path) -> None:
    """Drawn in the precision of the stage, beside weights that are still those of the files."""
    folder = saved(tmp_path, "actor", torch.bfloat16)
    lora = LoRA(rank=2, alpha=4)
    spec = tiny.stage_spec("sft", tmp_path, zero_stage=3, precision="FP32", seed=1, lora=lora)
    plain = cases.of_files(folder, "actor", settings("FP32", as_saved=False))
    add_adapters(plain.model, lora, 1, "lora", torch.float32)
    expected = dict(plain.named_parameters())
    assert any("lora_A" in name for name in expected)
    for files, weights in worlds.pair()(PROGRAM, "cut", folder=folder, kind="actor", spec=spec):
        assert files == {WEIGHTS}
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            assert torch.equal(weight, expected[name]), name


def loaded(folder: Path, precision: str, *, as_saved: bool) -> PreTrainedModel:
    given = settings(precision, as_saved=as_saved)
    return load_causal_model(ModelLocation(str(folder)), tiny.tokenizer_of(folder), given, "model")


def memory_of(module: nn.Module) -> set[str]:
    return {Path(cases.file_of(each)).name for each in module.parameters()}


def test_a_whole_model_of_another_data_type_is_in_memory(tmp_path: Path) -> None:
    """So that the test above can fail."""
    folder = saved(tmp_path, "actor", torch.float16)
    assert WEIGHTS not in memory_of(loaded(folder, "BF16", as_saved=False))


@pytest.mark.parametrize("form", ["two data types", "pickled"])
def test_weights_that_have_no_one_data_type_are_loaded_as_they_learn(
    tmp_path: Path, form: str
) -> None:
    folder = saved(tmp_path, "actor", torch.bfloat16)
    model: Any = loaded(folder, "BF16", as_saved=False)
    if form == "pickled":
        (folder / WEIGHTS).unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.model.norm.float()
        model.save_pretrained(folder)
    again = loaded(folder, "FP32", as_saved=True)
    assert {each.dtype for each in again.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_all_of_a_model_becomes_the_same(tmp_path: Path, name: str) -> None:
    """Mixtral's experts are put together, and Gemma multiplies embeddings by the root of 32, which
    BF16 rounds."""
    folder = zoo.saved(name, tmp_path / "model")
    plain, kept = (loaded(folder, "BF16", as_saved=as_saved) for as_saved in (False, True))
    converted = name in {"Mixtral", "Gemma 2", "Gemma 3"}
    assert {each.dtype for each in kept.parameters()} == (
        {torch.bfloat16} if converted else {torch.float32}
    )
    expected = dict(plain.named_parameters())
    for weight_name, weight in kept.named_parameters():
        assert torch.equal(weight.bfloat16(), expected.pop(weight_name)), weight_name
    assert not expected
    buffers = dict(plain.named_buffers())
    for buffer_name, buffer in kept.named_buffers():
        assert buffer.dtype == buffers[buffer_name].dtype, buffer_name
        assert torch.equal(buffer, buffers.pop(buffer_name)), buffer_name
    assert not buffers


@pytest.mark.parametrize(
    ("world_size", "changed", "expected"),
    [
        (2, {"zero_stage": 3}, True),
        (2, {"zero_stage": 2}, False),
        (1, {"zero_stage": 3}, False),
    ],
)
def test_only_weights_that_are_cut_stay_as_they_were_saved(
    tmp_path: Path, world_size: int, changed: dict[str, Any], expected: bool
) -> None:
    spec = tiny.stage_spec("sft", tmp_path, **changed)
    ranks = Ranks(0, 0, world_size, world_size, torch.device("cpu"))
    assert ModelSettings.of(spec, ranks).as_saved is expected
