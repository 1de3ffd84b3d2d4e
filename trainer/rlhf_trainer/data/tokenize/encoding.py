"""Prompts and responses to token ids: what a tokenizer is asked, many rows at a time.

Called by `tokenized`. Prompt and response are encoded as one text, as the chat template's is, and
the prompt's tokens are the ones that it has alone, since that is what the policy continues; see
`offsets` for where both disagree. A text that spells a special token becomes that token, as the
tokenizer does it by default: data sets write their turns with them. A response that spells the end
of its turn gets no second one.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple, Self, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import DataError, InputError
from rlhf_trainer.data.parse.columns import Message, Text, Tools
from rlhf_trainer.data.read.rows import Source, clipped
from rlhf_trainer.data.tokenize.offsets import TokenizedText, UnencodableError, cutter
from rlhf_trainer.data.tokenize.rendering import Rendered, Renderer
from rlhf_trainer.data.tokenize.turns import end_of_turn

BATCH = 1024
_KNOW_ALL = "correct the text, or name a model whose tokenizer has an unknown token or all bytes"
T = TypeVar("T")


class Question(NamedTuple):
    """A row's prompt and the responses to it."""

    prompt: Text
    responses: tuple[str | Message, ...]
    tools: Tools
    source: Source


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


class EncodedRow(NamedTuple):
    """A row, tokenized."""

    prompt: PromptTokens
    responses: list[list[int]]
    """Each with the end of its turn."""
    is_apart: bool
    """Whether a token straddled the beginning or end of a response, so that both sides are encoded
    apart."""


class Encoder:
    """The tokenizer, many rows at a time."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._cutter = cutter(tokenizer)
        self._renderer = Renderer(tokenizer)
        self.end = end_of_turn(tokenizer).token_id
        self.bos: int | None = tokenizer.bos_token_id
        # A chat template says itself where BOS stands.
        added_ids = [] if tokenizer.chat_template else list(tokenizer("")["input_ids"])
        self._adds_bos = added_ids[:1] == [self.bos]
        ending = self._ending()
        # A tokenizer may take special tokens in a text for ordinary ones.
        self._spells_ending = ending.ids[-1:] == [self.end]
        self._ending_length = len(ending.ids) if self._spells_ending else 1
        self._pad = plain_pad(tokenizer)
        self._pad_id = tokenizer.pad_token_id

    def rows(self, questions: Iterable[Question]) -> Iterator[EncodedRow]:
        """Token ids of each prompt, rendered, and of each response.

        Raises:
            DataError: a text without tokens, or with a part that has none, or with a pad token that
                is no special one, or turns that the chat template does not take.
        """
        remaining = iter(questions)
        while batch := list(islice(remaining, BATCH)):
            yield from self._encoded(batch)

    def _encoded(self, batch: list[Question]) -> list[EncodedRow]:
        try:
            return list(self._batch(batch))
        except UnencodableError as error:
            if len(batch) == 1:
                raise DataError(f"{batch[0].source}: {error}; {_KNOW_ALL}") from error
        # Which row it is nobody has said.
        return [encoded for row in batch for encoded in self._encoded([row])]

    def _ending(self) -> TokenizedText:
        """What the chat template writes behind an answer."""
        text = self._renderer.ending
        try:
            (ending,) = self._cutter.texts([(text, [])])
        except UnencodableError as error:
            raise InputError(f"the chat template's {text!r}: {error}; {_KNOW_ALL}") from error
        return ending

    def _batch(self, batch: list[Question]) -> Iterator[EncodedRow]:
        rendered = [self._renderer.prompt(row.prompt, row.source, row.tools) for row in batch]
        prompts = self._cutter.texts([(one.text, one.places) for one in rendered])
        responses = iter(self._responses(batch, rendered, prompts))
        for row, one, prompt in zip(batch, rendered, prompts, strict=True):
            _require_tokens(prompt.ids, one.text, row.source)
            self._require_no_pad(prompt.ids, one.text, row.source)
            own = list(islice(responses, len(row.responses)))
            for (ids, _), response in zip(own, row.responses, strict=True):
                _require_tokens(ids, _shown(response), row.source)
                self._require_no_pad(ids, _shown(response), row.source)
            yield EncodedRow(
                self._with_bos(PromptTokens(prompt.ids, _learned(one, prompt), one.text)),
                [ids for ids, _ in own],
                prompt.is_apart or any(is_apart for _, is_apart in own),
            )

    def _responses(
        self, batch: list[Question], rendered: list[Rendered], prompts: list[TokenizedText]
    ) -> Iterator[tuple[list[int], bool]]:
        """The ids of all responses one after the other, none of one without content, and whether
        they are encoded apart."""
        texts = [
            (
                prompt,
                self._renderer.response(response, row.prompt, one.text, row.source, row.tools),
            )
            for row, one, prompt in zip(batch, rendered, prompts, strict=True)
            for response in row.responses
        ]
        ending = self._renderer.ending if self._spells_ending else ""
        continued = self._cutter.continued([(prompt, text + ending) for prompt, text in texts])
        for (ids, is_apart), (_, text) in zip(continued, texts, strict=True):
            ended = ids if self._spells_ending else [*ids, self.end]
            has_content = len(ended) > self._ending_length or self._has_tokens(text)
            yield (ended if has_content else []), is_apart

    def _require_no_pad(self, ids: list[int], text: str, source: Source) -> None:
        """Refuse a text with a pad token that is a token of texts.

        A tokenizer that is saved reads its pad token as a special one wherever a text spells it, so
        that the text would have other tokens for whoever uses the model, and none when decoded.
        """
        if self._pad is not None and (self._pad in text or self._pad_id in ids):
            raise DataError(
                f"{source}: {clipped(text)}: holds {self._pad!r}, by which batches are padded; set "
                "the model's padToken to a token of its vocabulary that no text holds, or correct "
                "the row"
            )

    def _has_tokens(self, text: str) -> bool:
        (content,) = self._cutter.texts([(text, [])])
        return len(content.ids) > 0

    def _with_bos(self, prompt: PromptTokens) -> PromptTokens:
        """The prompt behind a BOS, if the tokenizer adds one and the text does not spell it."""
        if self.bos is None or not self._adds_bos or prompt.ids[0] == self.bos:
            return prompt
        return PromptTokens([self.bos, *prompt.ids], [False, *prompt.learned], prompt.text)


def plain_pad(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The pad token if it is none of the special tokens that a text is searched for, else None."""
    pad = tokenizer.pad_token
    return None if pad is None or pad in tokenizer.get_added_vocab() else str(pad)


def _learned(rendered: Rendered, tokenized: TokenizedText) -> list[bool]:
    """Whether each token starts in an earlier response."""
    if not rendered.learned:
        return [False] * len(tokenized.ids)
    stretches = iter(rendered.learned)
    start, end = next(stretches)
    mask = []
    for at in tokenized.starts:
        while at >= end:
            start, end = next(stretches, (len(rendered.text) + 1,) * 2)
        mask.append(start <= at)
    return mask


def _shown(response: str | Message) -> str:
    return response if isinstance(response, str) else response.content


def _require_tokens(ids: list[int], text: str, source: Source) -> None:
    if not ids:
        raise DataError(
            f"{source}: {clipped(text)}: the tokenizer makes no token of it; correct the row"
        )
