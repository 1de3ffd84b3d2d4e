"""Characters that a tokenizer would leave out of a text without a word.

Called by `offsets`. BPE begins with the characters of a text, or their bytes, and what its
vocabulary lacks of them it drops, if there is neither an unknown token nor bytes to fall back on.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import groupby
from typing import Any, Self

from tokenizers import Encoding, Tokenizer, pre_tokenizers

_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


class Alphabet:
    """What a tokenizer that drops characters can spell."""

    def __init__(self, tokenizer: Tokenizer, definition: Mapping[str, Any]) -> None:
        """Args: as `of`."""
        model = definition["model"]
        before, behind = (
            model.get(name) or "" for name in ("continuing_subword_prefix", "end_of_word_suffix")
        )
        self._normalizer = tokenizer.normalizer
        self._added = {token["id"] for token in definition["added_tokens"]}
        self._letters = {each.removeprefix(before).removesuffix(behind) for each in model["vocab"]}
        self._of_bytes = "ByteLevel" in _types(definition["pre_tokenizer"])
        self._falls_back = bool(model.get("byte_fallback"))

    @classmethod
    def of(cls, tokenizer: Tokenizer, definition: Mapping[str, Any]) -> Self | None:
        """None where nothing is dropped.

        Args:
            tokenizer: as `definition` says.
            definition: its tokenizer.json.
        """
        model = definition["model"]
        if model.get("type") != "BPE" or model.get("unk_token") is not None:
            return None
        fallback = {f"<0x{byte:02X}>" for byte in range(256)}
        if model.get("byte_fallback") and fallback <= model["vocab"].keys():
            return None
        alphabet = cls(tokenizer, definition)
        parts = (definition["pre_tokenizer"], definition["normalizer"])
        of_bytes = any("ByteLevel" in _types(part) for part in parts)
        is_whole = of_bytes and {*pre_tokenizers.ByteLevel.alphabet()} <= alphabet._letters
        return None if is_whole else alphabet

    def dropped(self, text: str, encoding: Encoding) -> str | None:
        """The first character of `text` that `encoding` lacks; None if all is there.

        White space, which many tokenizers take for a boundary and no more, is not looked for.
        """
        return next(
            (
                character
                for part in self._parts(text, encoding)
                for character in self._normalized(part)
                if not (character.isspace() or self._spells(character))
            ),
            None,
        )

    def _parts(self, text: str, encoding: Encoding) -> Iterator[str]:
        """What stands between added tokens, which are found before anything is dropped."""
        added: set[int] = set()
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token in self._added:
                added.update(range(start, end))
        for is_added, places in groupby(range(len(text)), added.__contains__):
            if not is_added:
                yield "".join(text[at] for at in places)

    def _normalized(self, text: str) -> str:
        """Without what the normalizer takes away, since that is meant to go."""
        return text if self._normalizer is None else self._normalizer.normalize_str(text)

    def _spells(self, character: str) -> bool:
        letters = _bytes_of(character) if self._of_bytes else {character}
        if letters <= self._letters:
            return True
        fallback = {f"<0x{byte:02X}>" for byte in character.encode()}
        return self._falls_back and fallback <= self._letters


@lru_cache(maxsize=65536)
def _bytes_of(character: str) -> frozenset[str]:
    """As byte-level tokenizers spell them."""
    return frozenset(_BYTES.pre_tokenize_str(character)[0][0])


def _types(part: Any) -> set[str]:
    """Types of a component and of those that it is made of."""
    if isinstance(part, list):
        return set().union(*map(_types, part))
    if not isinstance(part, dict):
        return set()
    inner = (each for each in part.values() if isinstance(each, list))
    return {str(part.get("type"))}.union(*map(_types, inner))
