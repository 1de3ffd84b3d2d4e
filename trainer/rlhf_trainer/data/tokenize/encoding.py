"""Texts to token ids: what a tokenizer is asked, many texts at a time.

Called by `tokenized`. A response is tokenized apart from its prompt, as the policy samples it, so
the boundary is exact. A text that spells a special token becomes that token, as the tokenizer does
it by default: data sets write their turns with them. A response that spells EOS at its end gets no
second one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Self, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import Text
from rlhf_trainer.data.read.rows import Source, clipped
from rlhf_trainer.data.tokenize.rendering import Rendered, render

BATCH = 1024
T = TypeVar("T")


@dataclass(frozen=True)
class PromptTokens:
    """A prompt, tokenized."""

    ids: list[int]
    learned: list[bool]
    """Whether the token is an earlier response's."""
    text: str
    """What was tokenized."""

    def tail(self, count: int, bos: int | None) -> Self:
        """The last `count` tokens; a BOS at the beginning stays there."""
        if len(self.ids) <= count:
            return self
        first = 1 if self.ids[0] == bos and count > 1 else 0
        at = len(self.ids) - count + first
        return replace(
            self,
            ids=self.ids[:first] + self.ids[at:],
            learned=self.learned[:first] + self.learned[at:],
        )


class Encoder:
    """The tokenizer, many texts at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self.bos: int | None = tokenizer.bos_token_id
        # A chat template says itself where BOS stands.
        added_ids = [] if tokenizer.chat_template else list(tokenizer("")["input_ids"])
        self._adds_bos = added_ids[:1] == [self.bos]
        self._special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}

    def responses(self, texts: Iterable[tuple[str, Source]]) -> Iterator[list[int]]:
        """Token ids of each text, without EOS at the end."""
        for batch in _batches(texts):
            encoded = self._encode([text for text, _ in batch])
            for ids, (text, source) in zip(encoded, batch, strict=True):
                content = ids[:-1] if ids[-1:] == [self.eos] else ids
                _require_tokens(content, text, source)
                yield content

    def prompts(self, texts: Iterable[tuple[Text, Source]]) -> Iterator[PromptTokens]:
        """Token ids of each prompt, rendered."""
        for batch in _batches(texts):
            rendered = [render(self._tokenizer, prompt, source) for prompt, source in batch]
            encoded = iter(self._encode([text for one in rendered for text, _ in one.pieces()]))
            for one, (_, source) in zip(rendered, batch, strict=True):
                found = self._prompt(one, encoded)
                _require_tokens(found.ids, one.text, source)
                yield self._with_bos(found)

    def _prompt(self, rendered: Rendered, encoded: Iterator[list[int]]) -> PromptTokens:
        """The next pieces of `encoded` in one. A special token that ends a response is learned."""
        ids: list[int] = []
        learned: list[bool] = []
        for _, is_learned in rendered.pieces():
            piece = next(encoded)
            ends_turn = learned[-1:] == [True] and piece[:1] and piece[0] in self._special
            ids += piece
            learned += [is_learned] * len(piece)
            if ends_turn:
                learned[-len(piece)] = True
        return PromptTokens(ids, learned, rendered.text)

    def _with_bos(self, prompt: PromptTokens) -> PromptTokens:
        """The prompt behind a BOS, if the tokenizer adds one and the text does not spell it."""
        if self.bos is None or not self._adds_bos or prompt.ids[0] == self.bos:
            return prompt
        return PromptTokens([self.bos, *prompt.ids], [False, *prompt.learned], prompt.text)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found = self._tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        return list(found["input_ids"])


def _batches(items: Iterable[tuple[T, Source]]) -> Iterator[list[tuple[T, Source]]]:
    found = iter(items)
    while batch := list(islice(found, BATCH)):
        yield batch


def _require_tokens(ids: list[int], text: str, source: Source) -> None:
    if not ids:
        raise DataError(
            f"{source}: {clipped(text)}: the tokenizer makes no token of it; correct the row"
        )
