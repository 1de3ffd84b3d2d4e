"""Token sequences of validated rows.

Called by `loading`.

Too long for the limit, a row is left out, or the prompt loses its beginning (a BOS stays) and the
response its end: each keeps at least half the limit if it needs it. A supervised response that was
cut has no EOS, since it would teach to stop in mid-sentence; a scored sequence always ends with
EOS, since that is where the score is read. Nothing that a chat template writes behind it follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import RowCounts
from rlhf_trainer.data.parse.formats import PreferenceRow, PromptRow, SFTRow
from rlhf_trainer.data.tokenize.encoding import Encoder, Question

OverLong = Literal["Drop", "Truncate"]
Tokens = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class SFTExample:
    """One sequence and the tokens whose loss counts."""

    tokens: Tokens
    """Int32[time]."""
    response_mask: NDArray[np.bool_]
    """Bool[time], true at response tokens and the EOS after them; false at the first token."""


@dataclass(frozen=True, eq=False)
class PreferencePair:
    """Prompt and response in one sequence, twice; each ends with EOS."""

    chosen: Tokens
    rejected: Tokens
    margin: float | None


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the policy continues."""

    tokens: Tokens
    text: str
    """What the tokens say, chat template included; for people to read."""


@dataclass(frozen=True)
class Counts:
    """What became of a dataset's rows."""

    kept: int
    """Examples, pairs or prompts that are used."""
    dropped_over_long: int = 0
    """Left out, since longer than the stage's limit."""
    truncated: int = 0
    """Used, but cut to the limit."""
    dropped_empty_list: int = 0
    """MIRACL rows left out, since without positive or without negative passages."""
    encoded_apart: int = 0
    """Used, with prompt and response encoded apart, since a token would straddle their boundary."""
    dropped_identical: int = 0
    """Pairs left out, since both sequences are the same tokens, be it by truncation."""
    not_learned: int = 0
    """Left out, since the row says so itself."""
    too_long: str = field(default="", compare=False)
    """How many tokens the rows have that are longer than the limit; nothing where none is."""

    @property
    def row_counts(self) -> RowCounts:
        """The same as status tells it."""
        return RowCounts(
            kept=self.kept,
            truncated=self.truncated,
            encoded_apart=self.encoded_apart,
            over_long=self.dropped_over_long,
            identical=self.dropped_identical,
            empty_list=self.dropped_empty_list,
            not_learned=self.not_learned,
        )


def sft_examples(
    rows: Sequence[SFTRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong,
    limit_field: str = "maxLength",
) -> tuple[list[SFTExample], Counts]:
    """Prompt + response + EOS of each row.

    Raises:
        DataError: a text without tokens, or no row within `max_length`.
    """
    encoder = Encoder(tokenizer)
    limit = _Limit(max_length, over_long, limit_field)
    examples: list[SFTExample] = []
    questions = (Question(row.prompt, (row.response,), row.tools, row.source) for row in rows)
    for row, (prompt, (response,), is_apart) in zip(rows, encoder.rows(questions), strict=True):
        if limit.skips(len(prompt.ids) + len(response)):
            continue
        kept_prompt, kept_response = limit.shares(len(prompt.ids), len(response))
        prompt = prompt.tail(kept_prompt, encoder.bos)
        response = response[:kept_response]
        mask = np.array(prompt.learned + [row.is_learned] * len(response), dtype=np.bool_)
        mask[0] = False
        if not mask.any():
            limit.leaves_nothing()
            continue
        examples.append(SFTExample(_tokens(prompt.ids + response), mask))
        limit.keeps(is_apart=is_apart)
    return examples, limit.counts(len(examples), rows)


def preference_pairs(
    rows: Sequence[PreferenceRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong,
    limit_field: str = "maxLength",
) -> tuple[list[PreferencePair], Counts]:
    """Prompt + chosen + EOS and prompt + rejected + EOS of each row; the prompt is cut alike.

    A pair of equal sequences, which nothing can be learned from, is left out.

    Raises:
        DataError: a text without tokens, or no row within `max_length`.
    """
    encoder = Encoder(tokenizer)
    limit = _Limit(max_length, over_long, limit_field)
    pairs: list[PreferencePair] = []
    questions = (
        Question(row.prompt, (row.chosen, row.rejected), row.tools, row.source) for row in rows
    )
    for row, (prompt, (chosen, rejected), is_apart) in zip(
        rows, encoder.rows(questions), strict=True
    ):
        longest = max(len(chosen), len(rejected))
        if chosen == rejected:
            limit.identical += 1
            continue
        if limit.skips(len(prompt.ids) + longest):
            continue
        kept_prompt, kept_response = limit.shares(len(prompt.ids), longest)
        start = prompt.tail(kept_prompt, encoder.bos).ids
        good, bad = (
            _tokens(start + _ended(response, kept_response, encoder.end))
            for response in (chosen, rejected)
        )
        if np.array_equal(good, bad):
            limit.cut_to_identical()
            continue
        pairs.append(PreferencePair(good, bad, row.margin))
        limit.keeps(is_apart=is_apart)
    return pairs, limit.counts(len(pairs), rows)


def prompts(
    rows: Sequence[PromptRow],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    over_long: OverLong,
    limit_field: str = "maxLength",
) -> tuple[list[Prompt], Counts]:
    """The prompt of each row, with the chat template's generation prompt where there is one.

    Raises:
        DataError: a text without tokens, or no row within `max_length`.
    """
    encoder = Encoder(tokenizer)
    limit = _Limit(max_length, over_long, limit_field)
    encoded: list[Prompt] = []
    questions = (Question(row.prompt, (), row.tools, row.source) for row in rows)
    for prompt, _, is_apart in encoder.rows(questions):
        if limit.skips(len(prompt.ids)):
            continue
        kept = prompt.tail(max_length, encoder.bos)
        text = prompt.text if kept is prompt else str(tokenizer.decode(kept.ids))
        encoded.append(Prompt(_tokens(kept.ids), text))
        limit.keeps(is_apart=is_apart)
    return encoded, limit.counts(len(encoded), rows)


class _Limit:
    """What is done to rows that are too long, and how often it was."""

    def __init__(self, max_length: int, over_long: OverLong, field: str) -> None:
        self._max_length = max_length
        self._field = field
        self._drops = over_long == "Drop"
        self._over_long = 0
        self._lengths: tuple[int, int] | None = None
        self._apart = 0
        self._emptied = 0
        self.identical = 0

    def skips(self, length: int) -> bool:
        """Whether a row of this length is left out; counts it if it is too long."""
        too_long = length > self._max_length
        if too_long:
            self._over_long += 1
            shortest, longest = self._lengths or (length, length)
            self._lengths = min(shortest, length), max(longest, length)
        return too_long and self._drops

    def leaves_nothing(self) -> None:
        """Counts a row of which truncation leaves nothing to learn."""
        self._emptied += 1

    def keeps(self, *, is_apart: bool) -> None:
        """Counts a row that is used."""
        self._apart += is_apart

    def cut_to_identical(self) -> None:
        """The pair that was found too long last differs only in what is cut off."""
        self._over_long -= 1
        self.identical += 1

    def shares(self, prompt: int, response: int) -> tuple[int, int]:
        """How many tokens of each are kept; all of them where they fit."""
        kept = min(prompt, max(self._max_length // 2, self._max_length - response))
        return kept, min(response, self._max_length - kept)

    def counts(
        self, kept: int, rows: Sequence[SFTRow] | Sequence[PreferenceRow] | Sequence[PromptRow]
    ) -> Counts:
        """What became of the rows; DataError if nothing is left of them."""
        if not kept:
            where = rows[0].source.file if rows else "dataset"
            raise DataError(f"{where}: {self._nothing_left(len(rows))}")
        cut = 0 if self._drops else self._over_long - self._emptied
        return Counts(
            kept,
            dropped_over_long=self._over_long - cut,
            truncated=cut,
            dropped_identical=self.identical,
            encoded_apart=self._apart,
            too_long=self._spans(),
        )

    def _spans(self) -> str:
        """Tokens of the rows that are too long."""
        if self._lengths is None:
            return ""
        shortest, longest = self._lengths
        return f"{longest}" if shortest == longest else f"{shortest} to {longest}"

    def _nothing_left(self, rows: int) -> str:
        if not self.identical:
            return (
                f"none of {rows} rows fits in {self._max_length} tokens: they have "
                f"{self._spans()}; raise {self._field} or set overLong to Truncate"
            )
        long, remedy = "", ""
        if self._over_long:
            long = (
                f", {self._over_long} do not fit in {self._max_length} tokens: they have "
                f"{self._spans()}"
            )
            remedy = "set overLong to Truncate, "
        return (
            f"none of {rows} pairs can be used: {self.identical} have the same tokens as chosen "
            f"and rejected{long}; correct the pairs, {remedy}or raise {self._field}"
        )


def _ended(response: list[int], count: int, end: int) -> list[int]:
    """A response of at most `count` tokens that ends with EOS."""
    return response if len(response) <= count else [*response[: count - 1], end]


def _tokens(ids: list[int]) -> Tokens:
    return np.array(ids, dtype=np.int32)
