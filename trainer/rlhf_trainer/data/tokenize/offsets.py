"""Token ids of whole texts, cut at given characters.

Called by `encoding`. A text is encoded in one, as the model reads it elsewhere, and the offsets of
its tokens say what stands left and right of a place. Where a token straddles a place, as " b" does
when the left side ends by the space, both sides are encoded apart, the right one without the space
that some tokenizers put before a text. A tokenizer without offsets encodes the sides always apart.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from rlhf_trainer.data.tokenize.alphabet import Alphabet

PROBE = "probe 7 of\nthis"
SPACE_MARKS = ("▁", "Ġ")
"""What a space is in the tokens of Metaspace (SentencePiece) and of byte-level tokenizers."""


@dataclass(frozen=True)
class TokenizedText:
    """A text's tokens."""

    ids: list[int]
    starts: list[int]
    """The character at which each token starts; empty for a text without places."""
    last: str
    """The end of the text from which on it can be encoded by itself: from the last special token
    or straddled place, or all of it."""
    last_ids: list[int]
    """The tokens of `last`."""
    last_is_bare: bool = False
    """Whether `last` was encoded without a space before it."""
    is_apart: bool = False
    """Whether a token straddled a place."""


class Piece(NamedTuple):
    """A part of a text, encoded in one."""

    text: str
    encoding: Encoding
    is_bare: bool
    """Whether it got no space before it."""


class Continuation(NamedTuple):
    """The tokens of a text behind another one."""

    ids: list[int]
    is_apart: bool
    """Whether a token of both texts straddled their boundary."""


class UnencodableError(ValueError):
    """A tokenizer has no tokens for a part of a text; the message says of which."""


class Cutter(Protocol):
    """A tokenizer, many texts at a time; both raise UnencodableError."""

    def texts(self, texts: Sequence[tuple[str, Sequence[int]]]) -> list[TokenizedText]:
        """Tokens of texts, each with places, ascending and inside it, that no token straddles."""
        ...

    def continued(self, texts: Sequence[tuple[TokenizedText, str]]) -> list[Continuation]:
        """Tokens of each second text behind the first, whose own stay what they are."""
        ...


def cutter(tokenizer: PreTrainedTokenizerBase) -> Cutter:
    """How this tokenizer's texts are cut."""
    return ByOffsets(tokenizer) if has_offsets(tokenizer) else Apart(tokenizer)


def has_offsets(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer says where in the text a token stands."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return False
    # A few classes change the text before their backend sees it.
    own = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    return bool(backend.encode(PROBE, add_special_tokens=False).ids == own)


def adds_prefix_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text gets a space in front of it."""
    return any(token.startswith(SPACE_MARKS) for token in tokenizer.tokenize("a")[:1])


class ByOffsets:
    """A tokenizer with offsets; implements `Cutter`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        definition = json.loads(_backend(tokenizer).to_str())
        self._whole: Tokenizer = _copied(tokenizer, definition)
        self._alphabet = Alphabet.of(self._whole, definition)
        self._tokenizer = tokenizer
        # Special tokens are cut out of a text before it is tokenized and may take the white space
        # beside them along, which is no reason to cut them; the unknown one stands for any text.
        special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
        self._never_straddle = special - {tokenizer.unk_token_id}
        # What stands before one of these has no influence on what follows it.
        self._parting = {
            token for token, added in tokenizer.added_tokens_decoder.items() if not added.normalized
        }

    def texts(self, texts: Sequence[tuple[str, Sequence[int]]]) -> list[TokenizedText]:
        """See `Cutter`."""
        encodings = self._encoded(self._whole, [text for text, _ in texts])
        return [
            self._tokenized(Piece(text, encoding, is_bare=False), places)
            for (text, places), encoding in zip(texts, encodings, strict=True)
        ]

    def continued(self, texts: Sequence[tuple[TokenizedText, str]]) -> list[Continuation]:
        """See `Cutter`."""
        whole = iter(
            self._encoded(self._whole, [a.last + b for a, b in texts if not a.last_is_bare])
        )
        return [
            self._continuation(
                before,
                text,
                self._encoded(self._bare, [before.last + text])[0]
                if before.last_is_bare
                else next(whole),
            )
            for before, text in texts
        ]

    @cached_property
    def _bare(self) -> Tokenizer:
        """The tokenizer without a space before a text."""
        return _copied(
            self._tokenizer, without_prefix_space(json.loads(_backend(self._tokenizer).to_str()))
        )

    def _tokenized(self, whole: Piece, places: Sequence[int]) -> TokenizedText:
        pieces = self._pieces(whole, places)
        encoding = pieces[-1].encoding
        last_ids = encoding.ids
        at = next((at for at in reversed(range(len(last_ids))) if last_ids[at] in self._parting), 0)
        characters = encoding.token_to_chars(at) if at else None
        return TokenizedText(
            [token for piece in pieces for token in piece.encoding.ids],
            _starts(pieces) if places else [],
            pieces[-1].text[characters[0] if characters else 0 :],
            last_ids[at:],
            pieces[-1].is_bare,
            is_apart=len(pieces) > 1,
        )

    def _pieces(self, piece: Piece, places: Sequence[int]) -> list[Piece]:
        """A piece, split at those of its places that a token straddles."""
        place = self._straddled(piece.encoding, places)
        if place is None:
            return [piece]
        # Where a special token follows, the text goes on as it would behind any.
        end = self._next_parting(piece, place)
        pieces = []
        for start, stop, is_bare in (
            (0, place, piece.is_bare),
            (place, end, True),
            (end, len(piece.text), False),
        ):
            text = piece.text[start:stop]
            if text:
                (encoding,) = self._encoded(self._bare if is_bare else self._whole, [text])
                inside = [at - start for at in places if start < at < stop]
                pieces += self._pieces(Piece(text, encoding, is_bare), inside)
        return pieces

    def _next_parting(self, piece: Piece, place: int) -> int:
        """Where the next special token starts, or the text's end."""
        return next(
            (
                start
                for token, (start, _) in zip(
                    piece.encoding.ids, piece.encoding.offsets, strict=True
                )
                if start >= place and token in self._parting
            ),
            len(piece.text),
        )

    def _straddled(self, encoding: Encoding, places: Sequence[int]) -> int | None:
        """The first of `places`, ascending, that a token straddles."""
        if not places:
            return None
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            index = bisect_right(places, start)
            if index < len(places) and places[index] < end and token not in self._never_straddle:
                return places[index]
        return None

    def _continuation(self, before: TokenizedText, text: str, encoding: Encoding) -> Continuation:
        ids = encoding.ids
        count = len(before.last_ids)
        # Equal ids are not enough: one unknown token may stand for both sides.
        if ids[:count] == before.last_ids and not any(
            token not in self._never_straddle and _covers(encoding, index, len(before.last))
            for index, token in enumerate(ids[max(0, count - 1) : count + 1], max(0, count - 1))
        ):
            return Continuation(ids[count:], is_apart=False)
        (encoding,) = self._encoded(self._bare, [text])
        return Continuation(encoding.ids, is_apart=True)

    def _encoded(self, tokenizer: Tokenizer, texts: list[str]) -> list[Encoding]:
        with _encoding():
            encodings: list[Encoding] = tokenizer.encode_batch(texts, add_special_tokens=False)
        if self._alphabet is not None:
            for text, encoding in zip(texts, encodings, strict=True):
                dropped = self._alphabet.dropped(text, encoding)
                if dropped is not None:
                    raise UnencodableError(f"the tokenizer would leave out {dropped!r}")
        return encodings


class Apart:
    """A tokenizer without offsets; implements `Cutter`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def texts(self, texts: Sequence[tuple[str, Sequence[int]]]) -> list[TokenizedText]:
        """See `Cutter`."""
        tokenized = []
        for text, places in texts:
            bounds = [0, *places, len(text)]
            ids: list[int] = []
            starts: list[int] = []
            for start, end in pairwise(bounds):
                piece = self._encode(text[start:end])
                ids += piece
                starts += [start] * len(piece)
            tokenized.append(TokenizedText(ids, starts, text, ids))
        return tokenized

    def continued(self, texts: Sequence[tuple[TokenizedText, str]]) -> list[Continuation]:
        """See `Cutter`; nobody can say what straddles, so that no boundary counts as one."""
        return [Continuation(self._encode(text), is_apart=False) for _, text in texts]

    def _encode(self, text: str) -> list[int]:
        with _encoding():
            ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return list(ids)


@contextmanager
def _encoding() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # What the library raises of a text has no class of its own.
        if type(error) is not Exception:
            raise
        raise UnencodableError(f"the tokenizer cannot encode its text ({error})") from error


def without_prefix_space(definition: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json that puts no space before a text; otherwise the same."""
    normalizers = _components(definition["normalizer"], "normalizers")
    kept = [one for one in normalizers if one["type"] != "Prepend"]
    if len(kept) < len(normalizers):
        definition = definition | {"normalizer": {"type": "Sequence", "normalizers": kept}}
    for one in _components(definition["pre_tokenizer"], "pretokenizers"):
        if one["type"] == "Metaspace":
            one["prepend_scheme"] = "never"
        elif one["type"] == "ByteLevel":
            one["add_prefix_space"] = False
    return definition


def _components(component: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """A component, or those of a sequence of them."""
    if component is None:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [leaf for one in component[members] for leaf in _components(one, members)]


def _backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    backend: Tokenizer = tokenizer.backend_tokenizer
    return backend


def _copied(tokenizer: PreTrainedTokenizerBase, definition: dict[str, Any]) -> Tokenizer:
    """A tokenizer whose offsets tell of every character.

    A post-processor adds special tokens, which is not asked for here, and takes the spaces out of
    the offsets of byte-level tokens, so that a straddling one would not be seen.
    """
    definition = definition | {"post_processor": None, "truncation": None, "padding": None}
    copied = Tokenizer.from_str(json.dumps(definition))
    copied.encode_special_tokens = tokenizer.split_special_tokens
    return copied


def _covers(encoding: Encoding, index: int, place: int) -> bool:
    """Whether a token stands for characters on both sides of a place."""
    characters = encoding.token_to_chars(index)
    return characters is not None and characters[0] < place < characters[1]


def _starts(pieces: Sequence[Piece]) -> list[int]:
    """The character of the whole text at which each token starts."""
    starts: list[int] = []
    at = 0
    for piece in pieces:
        starts += [at + start for start, _ in piece.encoding.offsets]
        at += len(piece.text)
    return starts
