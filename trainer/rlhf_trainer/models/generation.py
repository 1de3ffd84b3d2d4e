"""How a model is sampled: where its answers end, and what its generation configuration says.

Read when a model is opened, before any weights; `load.save_model` writes it beside an artifact.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from rlhf_api.errors import InputError
from rlhf_trainer.data.tokenize.turns import EndOfTurn, end_of_turn
from rlhf_trainer.run.artifact import ModelLocation

GENERATION_FILE = "generation_config.json"
_NOT_SAMPLING = (
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "transformers_version",
    "_from_model_config",
)
"""What the file holds beside values of sampling; an artifact has its own."""


@dataclass(frozen=True)
class Generation:
    """How a model's answers end and are sampled.

    Attributes:
        end: the end of a turn, which training teaches.
        stop_ids: every token at which sampling stops, the end of a turn first.
        sampling: values of its generation configuration, without token ids.
        unknown_ids: listed ones that are no tokens: they can never be sampled, and stop nothing.
    """

    end: EndOfTurn
    stop_ids: tuple[int, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    unknown_ids: tuple[int, ...] = ()

    def described(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """Where answers end, in words."""
        text = f"answers end with {self.end.token!r}, by {self.end.origin}"
        others = [str(tokenizer.convert_ids_to_tokens(i)) for i in self.stop_ids[1:]]
        if others:
            text += f"; sampling stops at {', '.join(map(repr, others))} as well"
        if self.unknown_ids:
            listed = ", ".join(map(str, self.unknown_ids))
            text += f"; eos_token_id {listed} is no token of the vocabulary, and left out"
        return text


def read_generation(
    location: ModelLocation,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    field: str,
) -> Generation:
    """Where answers of a model end: by template or `endOfTurn`, EOS and the list of its
    generation configuration (of config.json in older repositories), all of them stop tokens.

    Raises:
        InputError: generation_config.json cannot be used.
    """
    end = end_of_turn(tokenizer)
    path = None if location.scratch is not None else location.file(GENERATION_FILE)
    if path is None:
        # A single id may be the architecture's default and no word about this model.
        listed = config.eos_token_id if isinstance(config.eos_token_id, list) else []
        return _generation(end, listed, tokenizer, {})
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        listed = _ids(document.get("eos_token_id"))
        sampling = _sampling({k: v for k, v in document.items() if k not in _NOT_SAMPLING})
    except (ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{field}.uri: {path}: is no usable generation configuration: {reason}; correct it, or "
            "remove the file"
        ) from error
    return _generation(end, listed, tokenizer, sampling)


def generation_config(
    stop_ids: Sequence[int], sampling: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> GenerationConfig:
    """What an artifact is sampled by; greedily where `sampling` does not say `do_sample`, as
    transformers reads the base."""
    return GenerationConfig(
        **sampling,
        eos_token_id=list(stop_ids),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def _generation(
    end: EndOfTurn,
    listed: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    sampling: Mapping[str, Any],
) -> Generation:
    known = set(tokenizer.get_vocab().values())
    ids = (end.token_id, int(tokenizer.eos_token_id), *(i for i in listed if i in known))
    unknown = tuple(i for i in listed if i not in known)
    return Generation(end, tuple(dict.fromkeys(ids)), sampling, unknown)


def _ids(value: Any) -> list[int]:
    """`eos_token_id` of a file as a list."""
    if value is None:
        return []
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise TypeError(f"eos_token_id is {value!r}, and no token id or list of them")
    return ids


def _sampling(values: dict[str, Any]) -> dict[str, Any]:
    """The values as they can be written again.

    Raises:
        ValueError, TypeError: one is none of its kind, or they contradict each other.
    """
    if values.get("do_sample") is False:
        # Who takes the likeliest token reads none of these, and transformers refuses to write them.
        values = {name: value for name, value in values.items() if name not in _OF_SAMPLING}
    for name in values:
        if callable(getattr(GenerationConfig, name, None)):
            raise ValueError(f"{name} is no value that it can have")
    for name, (fits, wanted) in _RANGES.items():
        if (value := values.get(name)) is not None and not fits(value):
            raise ValueError(f"{name} is {value!r}, and not {wanted}")
    try:
        GenerationConfig(**values).validate(strict=True)
    except ValueError:
        if values.get("do_sample") is not None:
            raise
        # Values of sampling in a file that does not ask for it, which transformers reads with a
        # warning and refuses to write.
        values = {**values, "do_sample": True}
        GenerationConfig(**values).validate(strict=True)
    return values


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, float) or _whole(value)


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and all(map(_whole, value))


_POSITIVE = (lambda value: _number(value) and 0 < value < math.inf, "a number above 0")
_SHARE = (lambda value: _number(value) and 0 <= value <= 1, "a number from 0 to 1")
_COUNT = (lambda value: _whole(value) and value >= 0, "a whole number from 0 on")
_SOME = (lambda value: _whole(value) and value >= 1, "a whole number from 1 on")
_TOKENS = (_is_ids, "a list of token ids")
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "do_sample": (lambda value: isinstance(value, bool), "true or false"),
    **dict.fromkeys(("temperature", "repetition_penalty", "encoder_repetition_penalty"), _POSITIVE),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), _SHARE),
    **dict.fromkeys(("top_k", "min_length", "min_new_tokens", "no_repeat_ngram_size"), _COUNT),
    **dict.fromkeys(("max_length", "max_new_tokens", "num_beams", "num_return_sequences"), _SOME),
    "length_penalty": (_number, "a number"),
    "bad_words_ids": (
        lambda value: isinstance(value, list) and all(map(_is_ids, value)),
        "a list of lists of token ids",
    ),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), _TOKENS),
}
"""What each value may be; `GenerationConfig` looks at few of them before it generates."""
_OF_SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff"),
)
"""What greedy decoding does not read."""
