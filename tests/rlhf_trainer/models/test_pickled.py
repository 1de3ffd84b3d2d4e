"""Weights as pickles: looked into without running what they call."""

import os
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import torch

from rlhf_api.errors import InputError
from rlhf_trainer.models.pickled import check_pickled_weights

FIELD = "spec.stages.sft.model"
NAME = "pytorch_model.bin"


class Calling:
    """What runs code when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_pickled_weights(folder, FIELD)
    message = str(caught.value)
    assert message.startswith(f"{FIELD}: {folder / NAME} ")
    for word in ("\x1b", "\n", "weights_only", "torch.load"):
        assert word not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_not_run_and_nobody_is_advised_to(tmp_path: Path, zipped: bool) -> None:
    weights = {"a": Calling(tmp_path / "ran")}
    torch.save(weights, tmp_path / NAME, _use_new_zipfile_serialization=zipped)
    message = refusal(tmp_path)
    assert "it calls posix.mkdir; " in message
    assert message.endswith(
        "nothing of it was run; fetch it anew, or name a folder that "
        "transformers' save_pretrained has written, as safetensors"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html>", b"of an older library", b"PK\x03\x04"]
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert "cannot be read: " in refusal(tmp_path)


def test_a_torn_file_is_named(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(64)}, tmp_path / NAME)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-40])
    assert "cannot be read: " in refusal(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_of_eight_bits_are_quantised(tmp_path: Path, zipped: bool) -> None:
    def save(weights: Any) -> None:
        torch.save(weights, tmp_path / NAME, _use_new_zipfile_serialization=zipped)

    mask = {"h.0.attn.bias": torch.ones(4, dtype=torch.uint8)}
    right = {"w": torch.zeros(4, dtype=torch.bfloat16), "b": torch.zeros(4)}
    save(mask | right)
    check_pickled_weights(tmp_path, FIELD)
    # The older format has no numbers of eight bits.
    for kind in (torch.int8, torch.float8_e4m3fn) if zipped else (torch.int8,):
        save(mask | right | {"c": torch.zeros(4).to(kind)})
        name = str(kind).removeprefix("torch.")
        assert f"(1 of them, among them c of type {name})" in refusal(tmp_path)
    save([torch.zeros(4)])
    assert "holds list and no weights by name" in refusal(tmp_path)


def test_a_stage_looks_before_it_loads(tmp_path: Path) -> None:
    words = tiny.tokenizer_folder(tmp_path / "tokenizer")
    model = tiny.causal_model(words)
    folder = tiny.saved(model, tmp_path / "model", words)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / NAME)
    source = tiny.file_source(folder)
    config = tiny.stage_config("sft", tmp_path / "right", model=source, max_steps=1)
    assert stage_runs.run(config).artifact is not None
    torch.save({"a": Calling(tmp_path / "ran")}, folder / NAME)
    with pytest.raises(InputError, match=rf"^{FIELD}: .*{NAME} cannot be read: it calls"):
        stage_runs.run(tiny.stage_config("sft", tmp_path / "wrong", model=source))
