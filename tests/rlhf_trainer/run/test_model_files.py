"""What a model's folder tells by itself, in the words that the ranks would say later."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import stage_runs
import tiny
import torch
from safetensors.torch import load_file, save_file

from rlhf_api.errors import InputError
from rlhf_trainer.data.read.pointers import POINTER
from rlhf_trainer.launch import look_at_inputs
from rlhf_trainer.run.model_files import check_folder

Spoil = Callable[[Path], object]


def settings(folder: Path, **changed: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def weights(folder: Path, content: bytes | None) -> None:
    path = folder / "model.safetensors"
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def shards(folder: Path, *names: str) -> None:
    """An index of shards in place of one file, of which only the first is there."""
    (folder / "model.safetensors").rename(folder / names[0])
    placed = {f"w{number}": name for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))


def tear(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def typed(folder: Path, name: str, kind: torch.dtype) -> None:
    """One more tensor."""
    path = folder / "model.safetensors"
    save_file(load_file(path) | {name: torch.zeros(4).to(kind)}, path)


def adapter(folder: Path, *gone: str) -> None:
    base = {"base_model_name_or_path": "org/base"}
    (folder / "adapter_config.json").write_text(json.dumps(base))
    for name in gone:
        (folder / name).unlink()


MERGE = "an adapter of org/base, .* merge the adapter into its base"

SPOILT: dict[str, tuple[Spoil, str]] = {
    "a pointer": (lambda at: weights(at, POINTER + b"v1\n"), "is a pointer of Git LFS"),
    "no weights": (lambda at: weights(at, None), "holds no weights"),
    "another file": (lambda at: weights(at, b"<!DOCTYPE html>"), "is no safetensors file"),
    "an empty file": (lambda at: weights(at, b""), "is no safetensors file"),
    "a torn file": (tear, "is torn: it has"),
    "a missing shard": (lambda at: shards(at, "1.safetensors", "2.safetensors"), "lacks 1 of 2"),
    "an empty index": (
        lambda at: (weights(at, None), (at / "model.safetensors.index.json").write_text("{}")),
        "names no shards",
    ),
    "no config": (lambda at: (at / "config.json").unlink(), "has no config.json"),
    "no JSON": (lambda at: (at / "config.json").write_text("{"), "config.json: it is no JSON"),
    "a list": (lambda at: (at / "config.json").write_text("[]"), "it is no JSON object"),
    "T5": (
        lambda at: settings(at, model_type="t5", is_encoder_decoder=True),
        r"\(t5\), an encoder with a decoder",
    ),
    "quantised": (
        lambda at: settings(at, quantization_config={"quant_method": "gptq"}),
        "is quantised.*gptq",
    ),
    "quantised text": (
        lambda at: settings(at, text_config={"compression_config": {"quant_method": "x"}}),
        "is quantised.*compression_config.*: x",
    ),
    "fp8 weights": (
        lambda at: typed(at, "model.w.weight", torch.float8_e4m3fn),
        r"holds quantised weights \(1 of them, among them model.w.weight of type F8_E4M3\)",
    ),
    "int8 weights": (lambda at: typed(at, "w", torch.int8), "among them w of type I8"),
    "packed weights": (lambda at: typed(at, "w.qweight", torch.int32), "w.qweight of type I32"),
    "an adapter beside weights": (adapter, MERGE),
    "an adapter": (lambda at: adapter(at, "config.json", "model.safetensors"), MERGE),
    "an adapter's weights": (
        lambda at: (at / "adapter_model.bin").write_bytes(b""),
        "holds adapter_model.bin, an adapter, .* merge the adapter",
    ),
    "no tokenizer": (
        lambda at: [path.unlink() for path in at.glob("tokenizer*")],
        "holds no tokenizer.json",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_model_is_told_before_any_rank_in_the_words_of_the_ranks(
    tmp_path: Path, how: str
) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    folder = tiny.saved(tiny.causal_model(words), tmp_path / "model", words)
    config = tiny.stage_config("sft", tmp_path, model=tiny.file_source(folder))
    look_at_inputs(config)
    spoil, words = SPOILT[how]
    spoil(folder)
    with pytest.raises(InputError, match=rf"^spec\.stages\.sft\.model.*{words}") as early:
        look_at_inputs(config)
    with pytest.raises(InputError) as late:
        stage_runs.run(config)
    assert str(early.value) == str(late.value)


def test_what_libraries_write_passes(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    model = tiny.causal_model(words)
    folder = tiny.saved(model, tmp_path / "model", words)
    check_folder(folder, "spec.x")
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="10KB")
    assert (folder / "model.safetensors.index.json").exists()
    check_folder(folder, "spec.x")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"of an older library")
    check_folder(folder, "spec.x")


def test_masks_and_tables_of_older_files_are_no_weights(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    folder = tiny.saved(tiny.causal_model(words), tmp_path / "model", words)
    typed(folder, "transformer.h.0.attn.bias", torch.uint8)
    typed(folder, "embeddings.position_ids", torch.int64)
    check_folder(folder, "spec.x")


def test_what_another_stage_makes_is_not_there_yet(tmp_path: Path) -> None:
    hub = tiny.stage_config("sft", tmp_path, model=tiny.file_source(tmp_path))
    source = hub.spec.model.model_copy(update={"uri": "hf://no/such"})
    look_at_inputs(tiny.stage_config("sft", tmp_path, model=source))


def test_the_tokenizer_of_random_weights_is_looked_for(tmp_path: Path) -> None:
    config = tiny.stage_config("sft", tmp_path, model=tiny.scratch_source(tmp_path))
    with pytest.raises(InputError, match=r"model\.scratch\.tokenizer: .* has none of"):
        look_at_inputs(config)
