"""Weights in the format of `torch.save`, looked into before a model is built of them.

Called when a stage opens a model. Such a file is a pickle, which may hold calls of any function:
none is ever run.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from rlhf_api.errors import InputError
from rlhf_trainer.models.opening import opening
from rlhf_trainer.run.model_files import require_numbers, weight_files

_REMEDY = (
    "fetch it anew, or name a folder that transformers' save_pretrained has written, as safetensors"
)


def check_pickled_weights(folder: Path, field: str) -> None:
    """Look into the weights of `folder` that are no safetensors.

    Raises:
        InputError: a file is damaged, calls code, or holds something else than numbers.
    """
    for path in weight_files(folder, field):
        if path.suffix != ".safetensors":
            others = {name: kind for name, kind in _types(path, field).items() if not _wide(kind)}
            named = {name: str(kind).removeprefix("torch.") for name, kind in others.items()}
            require_numbers(named, path, field)


def _types(path: Path, field: str) -> dict[str, torch.dtype]:
    with opening(f"{field}: {path} cannot be read", _REMEDY):
        # Names, shapes and types alone: numbers stay where they are.
        mapped = zipfile.is_zipfile(path)
        weights = torch.load(path, map_location="meta", weights_only=True, mmap=mapped)
    if not isinstance(weights, Mapping):
        raise InputError(
            f"{field}: {path} holds {type(weights).__name__} and no weights by name; {_REMEDY}"
        )
    return {name: one.dtype for name, one in weights.items() if isinstance(one, Tensor)}


def _wide(kind: torch.dtype) -> bool:
    """Whether weights of a type are numbers by themselves; eight bits need a scale beside them."""
    return kind.is_floating_point and kind.itemsize > 1
