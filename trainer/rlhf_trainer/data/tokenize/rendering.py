"""The text that a model reads for a prompt, and which stretches of it were an assistant's.

Called by `encoding`. With a chat template that text is the template's, ending with its generation
prompt; without one it is the prompt as it stands, or the turns one after the other with the end of
a turn behind each of the assistant's. The response that follows is never rendered: what is learned
is what the policy samples, the response and what ends its turn.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import THOUGHTS, Conversation, Message, Text, Tools
from rlhf_trainer.data.read.rows import Source, clipped
from rlhf_trainer.data.tokenize.calls import CallWriter
from rlhf_trainer.data.tokenize.turns import TemplateRenderError, end_of_turn, templated

QUESTION, ANSWER = Message("user", "probe 7"), Message("assistant", "\t\tprobe 8\t\t")
TRIMS: tuple[Callable[[str], str], ...] = (str, str.lstrip, str.rstrip, str.strip)


@dataclass(frozen=True)
class TurnFormat:
    """What a chat template makes of a response."""

    ending: str
    """What it writes behind the content, up to the end of a turn."""
    opening: str = ""
    """White space between generation prompt and content, which is the response's: the policy sees
    the prompt without it."""
    trim: Callable[[str], str] = str
    """What it takes off the content."""


@dataclass(frozen=True)
class Rendered:
    """A prompt as text."""

    text: str
    learned: tuple[tuple[int, int], ...] = ()
    """Start and end of each earlier assistant turn, content and what ends the turn, ascending."""

    @property
    def places(self) -> list[int]:
        """Where in the text such a stretch begins or ends."""
        ends = {place for stretch in self.learned for place in stretch}
        return sorted(ends - {0, len(self.text)})


class Renderer:
    """A tokenizer's chat template, or what stands for one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._calls = CallWriter(tokenizer)
        self._eos = str(tokenizer.eos_token)
        self._end = end_of_turn(tokenizer).token
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        self._special = tuple(sorted(special, key=len, reverse=True))
        self._format = self._turn_format()
        self.ending = self._format.ending
        """The text that ends a response's turn."""

    def prompt(self, prompt: Text, source: Source, tools: Tools = ()) -> Rendered:
        """The text before a response.

        Raises:
            DataError: the chat template refuses the turns, leaves out tools or what an assistant
                wrote, or rewrites an assistant's earlier turn so that its place cannot be told.
        """
        if self._tokenizer.chat_template is None:
            self._require_plain(prompt, source, tools)
            return Rendered(prompt) if isinstance(prompt, str) else self._joined(prompt)
        turns = _turns(prompt)
        text = self._templated(turns, source, tools)
        if tools and text == self._templated(turns, source):
            raise _left_out(source, "tools", tools)
        learned = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant" and turn.is_learned:
                learned.append(self._place(turns, index, text, source, tools))
            elif turn.written:
                self._written(turns[:index], turn, source, tools)
        return Rendered(text, tuple(learned))

    def response(
        self, response: str | Message, prompt: Text, source: Source, tools: Tools = ()
    ) -> str:
        """A response's text behind its prompt, without what ends its turn, if it spells that.

        Raises:
            DataError: the chat template leaves out what the assistant wrote beside the content, or
                does not write it behind the prompt.
        """
        if isinstance(response, Message):
            if self._tokenizer.chat_template is None:
                self._require_plain((response,), source, tools)
            return self._written(_turns(prompt), response, source, tools)
        spelled = next(
            (end for end in (self.ending, self._end, self._eos) if response.endswith(end)), ""
        )
        content = self._format.trim(response.removesuffix(spelled))
        return self._format.opening + content if content else ""

    def _require_plain(self, prompt: Text, source: Source, tools: Tools = ()) -> None:
        """Refuse what only a chat template could write."""
        turns = _turns(prompt)
        written = {key: value for turn in turns for key, value in turn.written.items()}
        for key, value in {**({"tools": tools} if tools else {}), **written}.items():
            raise _left_out(source, key, value)

    def _written(self, before: Conversation, turn: Message, source: Source, tools: Tools) -> str:
        """What the template writes for an assistant's turn that is more than its content."""
        prompt = self._templated(before, source, tools)
        whole = self._templated((*before, turn), source, tools, add_generation_prompt=False)
        for key, value in turn.written.items():
            gone = THOUGHTS if key in THOUGHTS else (key,)
            rest = {name: other for name, other in turn.written.items() if name not in gone}
            without = (*before, replace(turn, written=rest))
            if whole == self._templated(without, source, tools, add_generation_prompt=False):
                raise _left_out(source, key, value)
        if not whole.startswith(prompt):
            raise DataError(
                f"{source}: {clipped(turn.written)}: the chat template does not write this behind "
                "its generation prompt; write the turn as content or set the model's chatTemplate"
            )
        behind = whole.removeprefix(prompt)
        content, ending, _ = behind.rpartition(self.ending)
        return content if ending else behind.rstrip()

    def _turn_format(self) -> TurnFormat:
        if self._tokenizer.chat_template is None:
            return TurnFormat(self._end)
        try:
            prompt = _apply(self._tokenizer, (QUESTION,), add_generation_prompt=True)
            whole = _apply(self._tokenizer, (QUESTION, ANSWER), add_generation_prompt=False)
        except TemplateRenderError:
            # The rows are asked one by one what the template makes of them.
            return TurnFormat(self._end)
        trim = next((trim for trim in TRIMS if trim(ANSWER.content) in whole), None)
        if trim is None:
            return TurnFormat(self._end)
        before, _, behind = whole.rpartition(trim(ANSWER.content))
        ending, end, _ = behind.partition(self._end)
        opening = before.removeprefix(prompt)
        return TurnFormat(
            ending + end if end else self._end, opening if opening.isspace() else "", trim
        )

    def _joined(self, turns: Conversation) -> Rendered:
        text = ""
        learned: list[tuple[int, int]] = []
        for turn in turns:
            start = len(text)
            text += turn.content
            if turn.role == "assistant":
                text += self._end
                if turn.is_learned:
                    learned.append((start, len(text)))
        return Rendered(text, tuple(learned))

    def _templated(
        self,
        turns: Conversation,
        source: Source,
        tools: Tools = (),
        *,
        add_generation_prompt: bool = True,
    ) -> str:
        fitted = tuple(self._calls.fitted(turn) if turn.written else turn for turn in turns)
        try:
            return _apply(
                self._tokenizer, fitted, tools, add_generation_prompt=add_generation_prompt
            )
        except TemplateRenderError as error:
            raise DataError(
                f"{source}: the chat template refuses the turns {clipped(_messages(turns))}: "
                f"{error}; correct the row or set the model's chatTemplate"
            ) from error

    def _place(
        self, turns: Conversation, index: int, text: str, source: Source, tools: Tools
    ) -> tuple[int, int]:
        """Where an earlier assistant turn stands in the whole conversation's text."""
        before = self._templated(turns[:index], source, tools)
        turn = turns[index]
        content = turn.content
        # Many templates trim what they are given.
        opened = self._format.opening + self._format.trim(content)
        forms = (
            (self._written(turns[:index], turn, source, tools),)
            if turn.written
            else (opened, content, content.strip())
        )
        for written in forms:
            if text.startswith(before + written):
                end = len(before) + len(written)
                return len(before), end + self._length_of_ending(text, end)
        raise DataError(
            f"{source}: the chat template rewrites turn {index + 1}, "
            f"{clipped(content)}, where more turns follow, so that its tokens cannot "
            "be told; write one row for each response or set the model's chatTemplate"
        )

    def _length_of_ending(self, text: str, at: int) -> int:
        """Characters of what ends a turn there: the ending, or else a special token."""
        endings = (self.ending, *self._special)
        return next((len(ending) for ending in endings if text.startswith(ending, at)), 0)


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the date, so that rows have other tokens tomorrow."""
    return "strftime_now" in str(tokenizer.chat_template or "")


def _turns(prompt: Text) -> Conversation:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _left_out(source: Source, key: str, value: object) -> DataError:
    return DataError(
        f"{source}: {key}: {clipped(value)}: no chat template writes it, so that it would not be "
        "learned; set the model's chatTemplate to one that does, or remove it from the rows"
    )


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    turns: Conversation,
    tools: Tools = (),
    *,
    add_generation_prompt: bool,
) -> str:
    return templated(
        tokenizer, _messages(turns), generation_prompt=add_generation_prompt, tools=tools
    )


def _messages(turns: Conversation) -> list[dict[str, Any]]:
    return [
        {
            "role": turn.role,
            # No content is null, which transformers leaves out.
            "content": turn.content or None,
            **turn.written,
            **turn.names,
        }
        for turn in turns
    ]
