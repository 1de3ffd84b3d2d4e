"""What a model's folder tells before any library opens it: that it can be trained, or why not.

Called by the launcher and by `check_inputs`, without torch, and on every rank when a stage opens a
model, so that the same mistake is told in the same words, only earlier.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf_api.errors import InputError
from rlhf_api.v1alpha1 import ModelSource, StageConfig
from rlhf_trainer.data.read.pointers import REMEDY, is_pointer
from rlhf_trainer.data.read.unreadable import input_errors
from rlhf_trainer.data.read.uris import Hub, locate

QUANTISATION = ("quantization_config", "compression_config")
DECODER_REMEDY = (
    "name a decoder-only language model, for example of the family Llama, Qwen or GPT-2"
)

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.*"
BUFFERS = re.compile(r"(^|\.)(masked_bias|attn\.bias|attention\.bias|inv_freq|position_ids)$")
"""What older files hold beside weights: masks and tables that a model computes by itself."""
_FLOATS = ("F64", "F32", "F16", "BF16")
"""Types of weights that are numbers by themselves (huggingface.co/docs/safetensors, "Format"); what
those of other types mean, only a quantisation says."""
_SAVED = "name a folder that transformers' save_pretrained has written"
_TOKENIZER_FILES = ("tokenizer*", "*vocab*", "*.model", "*.tiktoken")
"""What files of tokenizers are called, whatever library wrote them."""
_HEADER_SIZE, _HEADER_LIMIT = 8, 100_000_000
"""Bytes before a safetensors file's header, which say how long it is; how long it may be."""


def check_models(config: StageConfig) -> None:
    """Look into every model of the stage that lies in a folder.

    Raises:
        InputError: it cannot be trained; names field, value and remedy.
    """
    for field, source in models_of(config):
        check_model(source, config, field)


def models_of(config: StageConfig) -> Iterator[tuple[str, ModelSource]]:
    """Each model that a URI names, with its field in the spec; a stage's is not there yet."""
    for name, source in config.spec.sources().items():
        if source.uri is not None:
            yield f"spec.stages.{config.stage}.{name}", source


def check_model(source: ModelSource, config: StageConfig, field: str) -> None:
    """Look into the folder of a model, or of the tokenizer of one from random weights.

    What lies on a hub is left to the ranks, which fetch it.

    Raises: as `check_models`.
    """
    if source.scratch is not None:
        field = f"{field}.scratch.tokenizer"
        place = locate(source.scratch.tokenizer, config.claims, field)
        if not isinstance(place, Hub):
            tokenizer_in(place, field)
        return
    place = locate(str(source.uri), config.claims, f"{field}.uri")
    if not isinstance(place, Hub):
        model_in(place, f"{field}.uri")
        with input_errors(field):
            check_folder(place, field)
            require_tokenizer(place, field)


def check_folder(folder: Path, field: str) -> None:
    """See that a folder with a config.json holds the weights of a decoder.

    Raises: as `check_models`.
    """
    refuse_pointers(folder, field)
    settings = model_settings(folder, field)
    require_unquantised(settings, folder, field)
    require_decoder(settings, folder, field)
    require_weights(folder, field)


def model_in(folder: Path, field: str) -> Path:
    """`folder`, if a model's configuration is in it, and no adapter."""
    _folder_at(folder, field)
    refuse_adapter(folder, folder, field)
    if not (folder / "config.json").is_file():
        raise InputError(f"{field}: {folder} has no config.json; {_SAVED}")
    return folder


def tokenizer_in(folder: Path, field: str) -> Path:
    """`folder`, if a tokenizer is in it."""
    _folder_at(folder, field)
    if not _holds_tokenizer(folder):
        raise InputError(
            f"{field}: {folder} has none of {', '.join(_TOKENIZER_FILES)}; name a folder that a "
            "tokenizer's save_pretrained has written"
        )
    return folder


def require_tokenizer(folder: Path, field: str) -> None:
    """Raise InputError if a model's folder holds no file of a tokenizer."""
    if not _holds_tokenizer(folder):
        raise InputError(
            f"{field}.uri: {folder} holds no tokenizer.json and no other file of a tokenizer; "
            "copy the tokenizer of the model there that it was made from (a tokenizer's "
            "save_pretrained writes its files), or name a folder that holds both"
        )


def _holds_tokenizer(folder: Path) -> bool:
    return any(path.is_file() for pattern in _TOKENIZER_FILES for path in folder.glob(pattern))


def refuse_adapter(folder: Path, place: str | Path, field: str) -> None:
    """Raise InputError if an adapter lies in `folder`, alone or beside weights, since it would not
    be applied.

    Args:
        folder: where the files are.
        place: the same as messages name it.
        field: path of the field, for messages.
    """
    for path in sorted([*folder.glob(_ADAPTER), *folder.glob(_ADAPTER_WEIGHTS)]):
        raise InputError(
            f"{field}: {place} holds {path.name}, an adapter{_base_of(path)}, which would not be "
            "applied; merge the adapter into its base (PEFT's merge_and_unload, then "
            "save_pretrained) and name the folder that this writes"
        )


def _base_of(adapter: Path) -> str:
    """The model that an adapter was trained on, where its file tells."""
    try:
        base = json.loads(adapter.read_bytes())["base_model_name_or_path"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    return f" of {base}" if isinstance(base, str) and base else ""


def refuse_pointers(folder: Path, field: str) -> None:
    """Raise InputError if Git LFS has left pointers in place of files in `folder`."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and is_pointer(path)]
    if files:
        others = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
        raise InputError(
            f"{field}: {files[0]}{others} is a pointer of Git LFS and not the file itself; {REMEDY}"
        )


def require_unquantised(settings: Mapping[str, Any], place: str | Path, field: str) -> None:
    """Raise InputError if a config.json, or its part on the text model, is of quantised weights."""
    text = settings.get("text_config")
    for part in (settings, text if isinstance(text, Mapping) else {}):
        for name in QUANTISATION:
            if part.get(name):
                raise quantised(part[name], name, place, field)


def quantised(settings: Any, name: str, place: str | Path, field: str) -> InputError:
    """The error for quantised weights, whose settings stand under `name`."""
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    return InputError(
        f"{field}: the model at {place} is quantised ({name} of its config.json: "
        f"{method or 'no quant_method'}), and such weights cannot be trained; name the model in "
        "BF16 or FP32 that it was made from"
    )


def require_decoder(settings: Mapping[str, Any], place: str | Path, field: str) -> None:
    """Raise InputError if a config.json is of an encoder with a decoder."""
    if settings.get("is_encoder_decoder") is True:
        kind = settings.get("model_type")
        names = ", ".join(map(str, settings.get("architectures") or [kind]))
        raise InputError(
            f"{field}: the model at {place} is {names} ({kind}), an encoder with a decoder; "
            f"{DECODER_REMEDY}"
        )


def model_settings(folder: Path, field: str) -> dict[str, Any]:
    """What a folder's config.json says; InputError if that is no JSON object."""
    try:
        settings = json.loads((folder / "config.json").read_bytes())
        reason = "" if isinstance(settings, dict) else "it is no JSON object"
    # Of other encodings, and of brackets nested too deeply, besides what is no JSON.
    except (ValueError, RecursionError) as error:
        settings, reason = {}, f"it is no JSON ({error})"
    if reason:
        raise InputError(
            f"{field}: no usable model configuration at {folder}: config.json: {reason}; {_SAVED}"
        )
    return dict(settings)


def require_weights(folder: Path, field: str) -> None:
    """Raise InputError if weights, or shards that an index names, are missing, torn or quantised.

    Of files that are no safetensors nothing is read.
    """
    for path in weight_files(folder, field):
        if path.suffix == ".safetensors":
            weight_types(path, field)


def weight_files(folder: Path, field: str) -> list[Path]:
    """The files of the weights in `folder`: safetensors where there are any.

    Raises:
        InputError: there are none, or shards that their index names are missing.
    """
    for name in _WEIGHTS:
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _shards(index, field)
    raise InputError(
        f"{field}: {folder} holds no weights ({' or '.join(_WEIGHTS)}, or the index of their "
        f"shards); copy them there, or {_SAVED}"
    )


def _shards(index: Path, field: str) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        shards = [index.parent / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{field}: {index} names no shards of weights ({error!r}); fetch it anew"
        ) from error
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise InputError(
            f"{field}: {index.parent} lacks {len(missing)} of {len(shards)} shards of its weights, "
            f"among them {missing[0]}; copy them there"
        )
    return shards


def weight_types(path: Path, field: str) -> dict[str, str]:
    """Names and types of the weights in a safetensors file, as it calls them.

    The file begins by the length of a JSON header, which tells where each weight lies behind it
    (huggingface.co/docs/safetensors, "Format").

    Raises:
        InputError: the file ends before its last weight does, or holds weights that are no
            floating-point numbers.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_HEADER_SIZE), "little")
            if size < _HEADER_SIZE or length > _HEADER_LIMIT:
                raise ValueError("no header")
            header = {} if _HEADER_SIZE + length > size else json.loads(file.read(length))
        weights = {name: each for name, each in header.items() if name != "__metadata__"}
        ends = [each["data_offsets"][1] for each in weights.values()]
        end = _HEADER_SIZE + length + max(ends, default=0)
        types = {name: str(each["dtype"]) for name, each in weights.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{field}: {path} is no safetensors file; fetch it anew, or {_SAVED}"
        ) from error
    if size < end:
        raise InputError(
            f"{field}: {path} is torn: it has {size} bytes of {end}; fetch it anew, or {_SAVED}"
        )
    others = {name: kind for name, kind in types.items() if kind not in _FLOATS}
    require_numbers(others, path, field)
    return types


def require_numbers(others: Mapping[str, str], path: str | Path, field: str) -> None:
    """Raise InputError if a file holds weights of a type that no weight is trained in.

    Args:
        others: name and type of what is no floating-point number of 16 bits or more.
        path: the file.
        field: path of the field, for messages.
    """
    codes = {name: kind for name, kind in others.items() if not BUFFERS.search(name)}
    if codes:
        name = min(codes)
        raise InputError(
            f"{field}: {path} holds quantised weights ({len(codes)} of them, among them {name} of "
            f"type {codes[name]}), which cannot be trained; name the model in BF16 or FP32 that it "
            "was made from"
        )


def _folder_at(folder: Path, field: str) -> None:
    if not folder.is_dir():
        state = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{field}: {folder} {state}; check the path, or copy the model there")
