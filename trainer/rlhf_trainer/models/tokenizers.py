"""Tokenizers that training can rely on: with EOS, with a pad token that is not EOS.

Called by the stages before any weights are loaded. A vocabulary never grows here, so that the
model's embeddings fit.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rlhf_api.errors import ConfigError, InputError
from rlhf_trainer.data.read.uris import Hub
from rlhf_trainer.data.tokenize.offsets import adds_prefix_space, has_offsets
from rlhf_trainer.models.configs import read_config
from rlhf_trainer.models.opening import opening
from rlhf_trainer.models.templates import settle_end, settle_template
from rlhf_trainer.run.model_files import refuse_pointers, require_tokenizer

PAD_TOKENS = (
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<PAD>",
    "<|padding|>",
    "<｜▁pad▁｜>",
    "<|finetune_right_pad_id|>",
    "<|fim_pad|>",
    "<|vision_pad|>",
    "<|image_pad|>",
)
"""Tokens that some family made for padding, in the order in which they are tried."""

RESERVED = re.compile(r"[<\[]\|?_?(reserved|unused|extra|dummy|placeholder)[\w ]*?\d+\|?[>\]]")
"""Added tokens without a meaning, such as <|reserved_special_token_0|>, <unused0>, <|extra_0|>."""

BYTE_255, BYTE_LEVEL_255 = "<0xFF>", "ÿ"
"""The byte 0xFF, which no UTF-8 has: as byte fallback and as byte-level tokenizers spell it."""


def load_tokenizer(
    place: Path | Hub,
    *,
    field: str,
    pad_token: str | None = None,
    chat_template: str | None = None,
    use_chat_template: bool = True,
    end_of_turn: str | None = None,
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder or repository, ready for training.

    Its own pad token is kept if it ends no answer. Otherwise a token made for padding serves, a
    reserved one, the unknown token where byte fallback keeps it out of every text, or the token of
    the byte 0xFF, which no UTF-8 has.

    Args:
        place: from `data.uris.locate`.
        field: the model's path in the spec, such as `spec.stages.sft.model`, for messages.
        pad_token: `padToken` of the spec; wins over the tokenizer's own.
        chat_template: `chatTemplate` of the spec; replaces the tokenizer's own.
        use_chat_template: `useChatTemplate` of the spec.
        end_of_turn: `endOfTurn` of the spec; wins over what the template and EOS say.

    Raises:
        InputError: there is no tokenizer that can be loaded, or one that tells no offsets and puts
            a space before each text, so that a response would begin by one that it does not have.
        ConfigError: no EOS token, no token to pad with, or a template that cannot be rendered or
            does not say where an answer begins and ends.
    """
    tokenizer = _loaded(place, field)
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"{field}.uri: the tokenizer of {place} has no EOS token, so that no response could "
            "end; set eos_token in its tokenizer_config.json"
        )
    with opening(
        f"{field}.uri: {place}: its tokenizer cannot encode every text",
        "give its tokenizer.json an unknown token, or name another model",
    ):
        is_cut = has_offsets(tokenizer) or not adds_prefix_space(tokenizer)
    if not is_cut:
        raise InputError(
            f"{field}.uri: {place}: {type(tokenizer).__name__} puts a space before each text and "
            "tells no offsets, so that no response could be cut out of a conversation; convert it "
            "to tokenizer.json, or name another model"
        )
    with opening(
        f"{field}.uri: {place}: its tokenizer cannot be used",
        "correct its files, or name another model",
    ):
        settle_template(tokenizer, chat_template, used=use_chat_template, field=field)
        end = settle_end(tokenizer, end_of_turn, place=place, field=field).token_id
        tokenizer.pad_token = (
            _reserved_token(tokenizer, place, field, end)
            if pad_token is None
            else _chosen_token(tokenizer, place, field, pad_token, end)
        )
    return tokenizer


def stop_token_ids(
    tokenizer: PreTrainedTokenizerBase, stop_tokens: Sequence[str], field: str
) -> tuple[int, ...]:
    """The id of each stop token, without repetition; EOS is not added.

    Args:
        tokenizer: the policy's.
        stop_tokens: `stopTokens` of the spec.
        field: path of that field, such as `spec.stages.ppo.stopTokens`, for messages.

    Raises:
        ConfigError: one of them is not exactly one token of the vocabulary.
    """
    vocabulary = tokenizer.get_vocab()
    stop_ids: list[int] = []
    for index, token in enumerate(stop_tokens):
        with opening(f"{field}[{index}]: {token!r} cannot be encoded", "name a single token"):
            ids = [vocabulary[token]] if token in vocabulary else _ids_of(tokenizer, token)
        if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and token != tokenizer.unk_token):
            pieces = tokenizer.convert_ids_to_tokens(ids)
            raise ConfigError(
                f"{field}[{index}]: {token!r} is not one token of the vocabulary but {pieces}; "
                "name a single token"
            )
        stop_ids += ids
    return tuple(dict.fromkeys(stop_ids))


def _loaded(place: Path | Hub, field: str) -> PreTrainedTokenizerBase:
    if isinstance(place, Path):
        if not place.is_dir():
            raise InputError(f"{field}.uri: there is no folder {place}; correct the path")
        refuse_pointers(place, f"{field}.uri")
        require_tokenizer(place, field)
    name, revision = (place.name, place.revision) if isinstance(place, Hub) else (place, None)
    with opening(
        f"{field}.uri: {place}: no tokenizer can be loaded",
        "put a tokenizer.json and tokenizer_config.json there that transformers "
        f"{transformers.__version__} can read (a newer "
        "library may have written these), or name another model",
    ):
        tokenizer = _without_code(name, revision or "main", place, field)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"{field}.uri: {place}: {type(tokenizer).__name__} is no tokenizer; "
            "name a folder that a tokenizer's save_pretrained has written"
        )
    return tokenizer


def _without_code(name: str | Path, revision: str, place: Path | Hub, field: str) -> Any:
    """What AutoTokenizer finds; code that comes along with a tokenizer is never run."""
    try:
        config = read_config(name, revision)
    except (ValueError, OSError):
        # There may be none: AutoTokenizer then goes by the tokenizer's own files.
        config = None
    try:
        return AutoTokenizer.from_pretrained(
            name, config=config, revision=revision, trust_remote_code=False
        )
    except ValueError as error:
        if "custom code" not in str(error):
            raise
        raise InputError(
            f"{field}.uri: {place}: the tokenizer needs code of its own (auto_map of its "
            "tokenizer_config.json), which is never run here; save it as a tokenizer.json without "
            "auto_map, or name another model"
        ) from error


def _chosen_token(
    tokenizer: PreTrainedTokenizerBase, place: Path | Hub, field: str, pad_token: str, end: int
) -> str:
    vocabulary = tokenizer.get_vocab()
    if pad_token not in vocabulary:
        raise ConfigError(
            f"{field}.padToken: {pad_token!r} is not in the vocabulary of {place}; name one of its "
            "tokens"
        )
    if vocabulary[pad_token] in (tokenizer.eos_token_id, end):
        name = "EOS" if vocabulary[pad_token] == tokenizer.eos_token_id else "the end of a turn"
        raise ConfigError(
            f"{field}.padToken: {pad_token!r} is {name}, so the end of a response would look like "
            "padding; name another token"
        )
    return pad_token


def _reserved_token(
    tokenizer: PreTrainedTokenizerBase, place: Path | Hub, field: str, end: int
) -> str:
    vocabulary = tokenizer.get_vocab()
    own = tokenizer.pad_token
    if own is not None and tokenizer.pad_token_id not in (tokenizer.eos_token_id, end):
        return str(own)
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
    candidates = [token for token in PAD_TOKENS if token in vocabulary]
    candidates += [token for token, _ in added if RESERVED.fullmatch(token)]
    candidates += _absent_from_texts(tokenizer)
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id, end}
    for token in candidates:
        if vocabulary[token] not in taken:
            return token
    ending = "EOS" if tokenizer.pad_token_id == tokenizer.eos_token_id else "the end of a turn"
    state = "no pad token" if own is None else f"{ending} ({own}) as its pad token"
    raise ConfigError(
        f"{field}.padToken: the tokenizer of {place} has {state} and no reserved one; set padToken "
        "to a token of its vocabulary that no text contains and that is not EOS"
    )


def _absent_from_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Tokens that no text has, where every byte has one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return []
    parts = json.loads(backend.to_str())
    vocabulary = tokenizer.get_vocab()
    if parts["model"].get("byte_fallback"):
        # Every text has tokens, so that the unknown one never occurs.
        candidates = [tokenizer.unk_token, BYTE_255]
    else:
        splits = json.dumps([parts["pre_tokenizer"], parts["normalizer"]])
        candidates = [BYTE_LEVEL_255] if '"ByteLevel"' in splits else []
    return [str(token) for token in candidates if token in vocabulary]


def _ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
