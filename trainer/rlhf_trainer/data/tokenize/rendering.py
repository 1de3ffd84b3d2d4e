"""The text that a model reads for a prompt, and which stretches of it were an assistant's.

Called by `encoding`. With a chat template that text is the template's, ending with its generation
prompt; without one it is the prompt as it stands, or the turns one after the other with the end of
a turn behind each of the assistant's. Of an answer, be it the response or an earlier turn, what the
template writes behind its generation prompt is learned, up to the end of the turn, since that is
what the policy has to sample.
"""

from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_api.errors import DataError
from rlhf_trainer.data.parse.columns import THOUGHTS, Conversation, Message, Text, Tools
from rlhf_trainer.data.read.rows import Source, clipped
from rlhf_trainer.data.tokenize.calls import CallWriter
from rlhf_trainer.data.tokenize.omissions import OmissionCheck
from rlhf_trainer.data.tokenize.turns import TemplateRenderError, end_of_turn, templated

QUESTION, ANSWER = Message("user", "probe 7"), Message("assistant", "\t\tprobe 8\t\t")
OTHER_ANSWER = Message("assistant", "probe 9")
TRIMS = (str, str.lstrip, str.rstrip, str.strip)
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class TurnFormat:
    """What a chat template makes of an answer."""

    ending: str
    """What it writes behind the content, up to the end of a turn."""
    suffix: str
    """All that it writes behind the content of the last turn; empty where that is not known."""
    writes_answers: bool = True
    """False for a template that is made for one question: the answer follows what it writes."""

    def content(self, written: str) -> str:
        """What it has written for an answer, without what ends the turn."""
        if self.suffix and written.endswith(self.suffix):
            return written.removesuffix(self.suffix)
        content, ending, _ = written.rpartition(self.ending)
        return content if ending else written.rstrip()


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
        self._omissions = OmissionCheck()
        self._eos = str(tokenizer.eos_token)
        end = end_of_turn(tokenizer)
        self._end, self._end_origin = end.token, end.origin
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        self._special = tuple(sorted(special, key=len, reverse=True))
        self._format = self._turn_format()
        self.ending = self._format.ending
        """The text that ends a response's turn."""

    def prompt(self, prompt: Text, source: Source, tools: Tools = ()) -> Rendered:
        """The text before a response.

        Raises:
            DataError: the chat template refuses the turns, leaves out a turn, tools or what an
                assistant wrote, or rewrites an assistant's earlier turn so that its place cannot be
                told.
        """
        if self._tokenizer.chat_template is None:
            self._require_plain(prompt, source, tools)
            return Rendered(prompt) if isinstance(prompt, str) else self._joined(prompt)
        turns = _turns(prompt)
        text = self._templated(turns, source, tools)
        if tools and self._is_text_of(text, turns):
            raise self._left_out(source, "tools", tools)
        learned = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant" and turn.is_learned:
                learned.append(self._place(turns, index, text, source, tools))
            elif turn.written:
                self._require_written(turns, index, text, source, tools)
        self._require_turns(turns, text, tools, source)
        return Rendered(text, tuple(learned))

    def response(
        self, response: str | Message, prompt: Text, text: str, source: Source, tools: Tools = ()
    ) -> str:
        """A response's text behind its prompt, without what ends its turn, if it spells that.

        Args:
            response: text, or a turn that is more than that.
            prompt: what it answers.
            text: the same as `prompt` has rendered it.
            source: of the row, for messages.
            tools: of the row.

        Raises:
            DataError: the chat template does not write the answer behind its generation prompt,
                leaves out what the assistant wrote beside the content, or changes more of the
                content than its white space.
        """
        turn = Message("assistant", response) if isinstance(response, str) else response
        turn = replace(turn, content=self._unended(turn.content))
        if self._tokenizer.chat_template is None:
            self._require_plain((turn,), source)
            return turn.content
        turns = (*_turns(prompt), turn)
        whole = turn.content
        if self._format.writes_answers or turn.written:
            whole = self._templated(turns, source, tools, add_generation_prompt=False)
            self._require_written(
                turns, len(turns) - 1, whole, source, tools, add_generation_prompt=False
            )
        if not self._format.writes_answers or not (turn.content or turn.written):
            return turn.content
        if not whole.startswith(text):
            raise DataError(
                f"{source}: {_shown(turn)}: the chat template's generation prompt ends by "
                f"{clipped(text[-_SHOWN_CHARACTERS:])}, but before this answer it writes something "
                "else, so that the answer would be learned where the template never puts it; set "
                "the model's chatTemplate to one that writes each answer behind its generation "
                "prompt"
            )
        content = self._format.content(whole.removeprefix(text))
        self._require_content(turn, content, source)
        return content

    def _unended(self, response: str) -> str:
        """A response without the end of its turn, which it may spell."""
        endings = (self.ending, self._end, self._eos)
        spelled = next((end for end in endings if response.endswith(end)), "")
        return response.removesuffix(spelled)

    def _require_plain(self, prompt: Text, source: Source, tools: Tools = ()) -> None:
        """Refuse what only a chat template could write."""
        turns = _turns(prompt)
        written = {key: value for turn in turns for key, value in turn.written.items()}
        for key, value in {**({"tools": tools} if tools else {}), **written}.items():
            raise self._left_out(source, key, value)

    def _require_turns(self, turns: Conversation, text: str, tools: Tools, source: Source) -> None:
        """Refuse turns of which `text` leaves one out."""
        index = self._omissions.first_omitted(
            turns,
            text,
            lambda others: self._written(others, tools),
            has_tools=bool(tools),
        )
        if index is not None:
            turn = turns[index]
            raise self._left_out(source, f"turn {index + 1} ({turn.role})", turn.content)

    def _require_written(
        self,
        turns: Conversation,
        index: int,
        text: str,
        source: Source,
        tools: Tools,
        *,
        add_generation_prompt: bool = True,
    ) -> None:
        """Refuse a turn of which `text`, rendered from all turns, leaves out what stands beside
        its content."""
        turn = turns[index]
        for key, value in turn.written.items():
            gone = THOUGHTS if key in THOUGHTS else (key,)
            rest = {name: other for name, other in turn.written.items() if name not in gone}
            without = (*turns[:index], replace(turn, written=rest), *turns[index + 1 :])
            if self._is_text_of(text, without, tools, add_generation_prompt=add_generation_prompt):
                raise self._left_out(source, key, value)

    def _is_text_of(
        self,
        text: str,
        turns: Conversation,
        tools: Tools = (),
        *,
        add_generation_prompt: bool = True,
    ) -> bool:
        """Whether the template writes `text` for turns from which something was taken away."""
        try:
            return text == self._written(turns, tools, add_generation_prompt=add_generation_prompt)
        except TemplateRenderError:
            # Qwen 2.5's refuses an answer that has neither content nor calls: it has read them.
            return False

    def _require_content(self, turn: Message, written: str, source: Source) -> None:
        """Refuse an answer of which the template has changed more than its white space."""
        if _compact(turn.content) not in _compact(written):
            raise DataError(
                f"{source}: {_shown(turn)}: the chat template rewrites this answer as "
                f"{clipped(written)}, so that something else would be learned than the row says; "
                "correct the row or set the model's chatTemplate"
            )

    def _turn_format(self) -> TurnFormat:
        prompt_only = TurnFormat(self._end, "", writes_answers=False)
        if self._tokenizer.chat_template is None:
            return prompt_only
        try:
            whole, other = (
                _apply(self._tokenizer, (QUESTION, answer), add_generation_prompt=False)
                for answer in (ANSWER, OTHER_ANSWER)
            )
        except TemplateRenderError:
            return prompt_only
        if whole == other:
            return prompt_only
        trim = next((trim for trim in TRIMS if trim(ANSWER.content) in whole), None)
        if trim is None:
            return TurnFormat(self._end, "")
        _, _, suffix = whole.rpartition(trim(ANSWER.content))
        ending, end, _ = suffix.partition(self._end)
        return TurnFormat(ending + end if end else self._end, suffix)

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
        try:
            return self._written(turns, tools, add_generation_prompt=add_generation_prompt)
        except TemplateRenderError as error:
            raise DataError(
                f"{source}: the chat template refuses the turns {clipped(_messages(turns))}: "
                f"{error}; correct the row or set the model's chatTemplate"
            ) from error

    def _written(
        self, turns: Conversation, tools: Tools = (), *, add_generation_prompt: bool = True
    ) -> str:
        """What the template writes for the turns, calls in the form that it takes."""
        fitted = tuple(self._calls.fitted(turn) if turn.written else turn for turn in turns)
        return _apply(self._tokenizer, fitted, tools, add_generation_prompt=add_generation_prompt)

    def _place(
        self, turns: Conversation, index: int, text: str, source: Source, tools: Tools
    ) -> tuple[int, int]:
        """Where an earlier assistant turn stands in the whole conversation's text."""
        turn = turns[index]
        self._require_written(turns, index, text, source, tools)
        before = self._templated(turns[:index], source, tools)
        if not text.startswith(before):
            raise _unplaced(source, index, turn)
        alone = self._templated(turns[: index + 1], source, tools, add_generation_prompt=False)
        start = len(before)
        if alone.startswith(before) and text.startswith(alone):
            # More turns change nothing about it: it is read as if it were the last.
            content = self._format.content(alone[start:])
            self._require_content(turn, content, source)
            end, limit = start + len(content), len(alone)
        else:
            end, limit = self._end_of_content(text, start, turn, index, source), len(text)
        return start, end + self._length_of_ending(text[end:limit], turn, index, source)

    def _end_of_content(
        self, text: str, start: int, turn: Message, index: int, source: Source
    ) -> int:
        """Where an answer's content ends that the template writes otherwise as the last turn, as
        those do which leave out earlier thoughts."""
        if turn.written:
            content = text[start:].partition(self._end)[0]
            self._require_content(turn, content, source)
            return start + len(content)
        content = turn.content.strip()
        begins = len(text) - len(text[start:].lstrip())
        if not text.startswith(content, begins):
            raise _unplaced(source, index, turn)
        return begins + len(content)

    def _length_of_ending(self, behind: str, turn: Message, index: int, source: Source) -> int:
        """Characters of what ends an earlier answer: the end of a turn, or another special token
        where the template chooses it."""
        if behind.startswith(self.ending):
            return len(self.ending)
        token = behind.lstrip()
        endings: tuple[str, ...] = (self._end,)
        if self._end_origin == "the chat template":
            endings += self._special
        ending = next((ending for ending in endings if token.startswith(ending)), None)
        if ending is None:
            remedy = (
                "leave the model's endOfTurn out, which the template does not write"
                if self._end_origin == "endOfTurn"
                else "set the model's chatTemplate to one that ends every answer alike"
            )
            raise DataError(
                f"{source}: turn {index + 1}, {_shown(turn)}: the chat template does not end it by "
                f"{self._end!r}, which ends a response, so that answers would be learned with "
                f"different ends or none; {remedy}, or write one row for each response"
            )
        return len(behind) - len(token) + len(ending)

    def _left_out(self, source: Source, key: str, value: object) -> DataError:
        """The error for what would not be learned."""
        if self._tokenizer.chat_template is None:
            why = "the model has no chat template, which alone could write it"
        else:
            why = "the model's chat template does not write it"
        remedy = "write function_call as tool_calls, " if key == "function_call" else ""
        return DataError(
            f"{source}: {key}: {clipped(value)}: {why}, so that it would not be learned; {remedy}"
            "set the model's chatTemplate to one that does, or remove it from the rows"
        )


def reads_clock(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the date, so that rows have other tokens tomorrow."""
    return "strftime_now" in str(tokenizer.chat_template or "")


def _turns(prompt: Text) -> Conversation:
    return (Message("user", prompt),) if isinstance(prompt, str) else prompt


def _unplaced(source: Source, index: int, turn: Message) -> DataError:
    return DataError(
        f"{source}: the chat template rewrites turn {index + 1}, {_shown(turn)}, where more turns "
        "follow, so that its tokens cannot be told; write one row for each response or set the "
        "model's chatTemplate"
    )


def _shown(turn: Message) -> str:
    return clipped(turn.content or turn.written)


def _compact(text: str) -> str:
    """The text without white space."""
    return "".join(text.split())


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
