"""What a row means: supervised rows, preferences and prompts, validated.

Called by `loading`. The shape is found in the first row and then asked of all. Each mistake is a
DataError that names file, line, field, value and remedy.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.parse.beside import UNREAD, UNREAD_BY_SFT, Skipped, learned_rows
from rlhf_trainer.data.parse.columns import (
    Conversation,
    Message,
    Reader,
    Text,
    Tools,
)
from rlhf_trainer.data.parse.contradictions import (
    require_same_prompt,
    require_same_question,
    require_same_request,
    require_same_responses,
    require_same_turns,
)
from rlhf_trainer.data.parse.miracl import passage_pairs
from rlhf_trainer.data.parse.values import mistake
from rlhf_trainer.data.read.rows import Row, Source


@dataclass(frozen=True)
class SFTRow:
    """A prompt and the response to learn; earlier assistant turns of the prompt are learned too."""

    source: Source
    prompt: Text
    """Text, or the turns before the response."""
    response: str | Message
    """Text, or the assistant's turn where it is more than its content."""
    tools: Tools = ()
    is_learned: bool = True
    """Whether the response is; else only earlier turns are."""


@dataclass(frozen=True)
class PreferenceRow:
    """Two responses to one prompt."""

    source: Source
    prompt: Text
    chosen: str | Message
    rejected: str | Message
    margin: float | None = None
    """Least difference of scores that this row asks for; the stage's when None."""
    tools: Tools = ()


@dataclass(frozen=True)
class PromptRow:
    """What the policy answers."""

    source: Source
    prompt: Text
    tools: Tools = ()


def sft_rows(
    rows: Iterable[Row], dataset: Dataset, field: str, skipped: Skipped | None = None
) -> list[SFTRow]:
    """Rows {prompt, response} or {messages}.

    The prompt may be called query, and may be a list of messages. Messages end with an assistant's
    turn. Where the first row has both shapes, which must say the same, {prompt, response} is read,
    unless the spec names the messages' column.

    Args:
        rows: from `read_rows`.
        dataset: the spec.
        field: the dataset's path in the spec, for messages.
        skipped: counts the rows that say not to be learned.

    Raises:
        DataError: a row that cannot be used, or none at all.
    """
    first, all_rows = _first(rows, dataset, field, skipped, UNREAD_BY_SFT)
    read = Reader.of(dataset.columns, field, first)
    pair = read.has(first, "prompt") and read.has(first, "response")
    is_dialogue = read.is_mapped("messages") or (read.has(first, "messages") and not pair)
    parse = _dialogue if is_dialogue else _pair
    return [parse(read, row) for row in all_rows]


def preference_rows(
    rows: Iterable[Row],
    dataset: Dataset,
    field: str,
    seed: int,
    skipped: Skipped | None = None,
) -> tuple[list[PreferenceRow], int]:
    """Rows {prompt or query, chosen, rejected}, or pairs sampled from MIRACL rows.

    chosen and rejected may be lists of messages that end with the assistant's response; what
    stands before it is then the prompt, the same in both and in a column of the prompt.

    Args: as `sft_rows`, and
        seed: decides which pairs are sampled.

    Returns:
        The pairs, and how many MIRACL rows were dropped since one of their lists is empty.

    Raises:
        DataError: a row that cannot be used, or none at all.
    """
    first, all_rows = _first(rows, dataset, field, skipped)
    read = Reader.of(dataset.columns, field, first)
    passages = read.has(first, "positive_passages") or read.has(first, "negative_passages")
    if passages and not read.has(first, "chosen"):
        return _from_passages(read, all_rows, dataset, field, seed)
    return [_preference(read, row) for row in all_rows], 0


def prompt_rows(
    rows: Iterable[Row], dataset: Dataset, field: str, skipped: Skipped | None = None
) -> list[PromptRow]:
    """Rows {prompt or query}, or {messages}; a list of messages ends with a user's turn.

    Where the first row has both, which must ask for the same, the prompt is read, unless the spec
    names the messages' column.

    Args: as `sft_rows`.

    Raises:
        DataError: a row that cannot be used, or none at all.
    """
    first, all_rows = _first(rows, dataset, field, skipped)
    read = Reader.of(dataset.columns, field, first)
    messages = read.has(first, "messages") and not read.has(first, "prompt")
    name = "messages" if messages or read.is_mapped("messages") else "prompt"
    return [_prompt(read, row, name) for row in all_rows]


def _first(
    rows: Iterable[Row],
    dataset: Dataset,
    field: str,
    skipped: Skipped | None,
    unread: Sequence[str] = UNREAD,
) -> tuple[Row, Iterator[Row]]:
    """The first row that is learned, and all of them."""
    every = iter(rows)
    start = next(every, None)
    if start is None:
        raise DataError(
            f"{field}.uri: {dataset.uri}: is empty: there is no row in it; name a dataset that has "
            "some"
        )
    learned = learned_rows(chain([start], every), dataset.columns, skipped or Skipped(), unread)
    first = next(learned, None)
    if first is None:
        raise DataError(
            f"{field}.uri: {dataset.uri}: holds no rows that are learned; name a dataset that has "
            "some"
        )
    return first, chain([first], learned)


def _question(read: Reader, row: Row, name: str) -> Text:
    """A prompt; if it is a conversation, one that an assistant's turn may follow."""
    if not isinstance(read.value(row, name), list):
        return read.text(row, name)
    messages = read.messages(row, name)
    if messages[-1].role == "assistant":
        raise _wrong_role(read, row, name, "a prompt ends before the answer; remove this turn")
    return _opened(read, row, name, messages)


def _prompt(read: Reader, row: Row, name: str) -> PromptRow:
    prompt = _question(read, row, name)
    require_same_request(read, row, name)
    return PromptRow(row.source, prompt, read.tools(row))


def _pair(read: Reader, row: Row) -> SFTRow:
    prompt, response = _question(read, row, "prompt"), read.text(row, "response")
    require_same_turns(read, row, is_dialogue=False)
    return SFTRow(row.source, prompt, response, read.tools(row))


def _dialogue(read: Reader, row: Row) -> SFTRow:
    messages = _opened(read, row, "messages", _answered(read, row, "messages"))
    if not any(turn.is_learned for turn in messages if turn.role == "assistant"):
        column = read.column("messages")
        raise mistake(
            row, column, row.values[column], "no turn of it is learned; give one weight 1"
        )
    require_same_turns(read, row, is_dialogue=True)
    *before, last = messages
    return SFTRow(row.source, tuple(before), _plain(last), read.tools(row), last.is_learned)


def _plain(turn: Message) -> str | Message:
    """A response: text where it is nothing else."""
    return turn if turn.written else turn.content


def _opened(read: Reader, row: Row, name: str, turns: Conversation) -> Conversation:
    """`turns`, unless they start with a response to nothing."""
    if turns and turns[0].role == "assistant":
        field = f"{read.column(name)}[0].role"
        raise mistake(row, field, "assistant", "put a turn of user or system before it")
    return turns


def _answered(read: Reader, row: Row, name: str) -> Conversation:
    messages = read.messages(row, name)
    if messages[-1].role != "assistant":
        raise _wrong_role(
            read, row, name, "the last turn is the response; end with a turn of assistant"
        )
    return messages


def _wrong_role(read: Reader, row: Row, name: str, remedy: str) -> DataError:
    messages = read.messages(row, name)
    last = f"{read.column(name)}[{len(messages) - 1}].role"
    return mistake(row, last, messages[-1].role, remedy)


def _preference(read: Reader, row: Row) -> PreferenceRow:
    before_chosen, chosen = _response(read, row, "chosen")
    before_rejected, rejected = _response(read, row, "rejected")
    if before_chosen != before_rejected:
        column = read.column("rejected")
        raise mistake(
            row,
            column,
            row.values[column],
            f"the turns before the response differ from those of {read.column('chosen')}; make "
            "both answer one prompt",
        )
    if before_chosen:
        require_same_prompt(read, row, before_chosen, read.column("chosen"))
        prompt: Text = before_chosen
    else:
        prompt = _question(read, row, "prompt")
        require_same_question(read, row)
    require_same_responses(read, row, of_passages=False)
    return PreferenceRow(row.source, prompt, chosen, rejected, _margin(read, row), read.tools(row))


def _response(read: Reader, row: Row, name: str) -> tuple[Conversation, str | Message]:
    """The turns before a response, none where it is plain text, and the response."""
    if not isinstance(read.value(row, name), list):
        return (), read.text(row, name)
    messages = _answered(read, row, name)
    if not messages[-1].is_learned:
        remedy = "its last turn is not learned, but both responses are compared; give it weight 1"
        raise mistake(row, read.column(name), read.value(row, name), remedy)
    return _opened(read, row, name, messages[:-1]), _plain(messages[-1])


def _margin(read: Reader, row: Row) -> float | None:
    if not read.is_mapped("margin"):
        if margin := row.values.get("margin"):
            remedy = f"is not read; set {read.field}.columns.margin to it, or remove the column"
            raise mistake(row, "margin", margin, remedy)
        return None
    value = read.value(row, "margin")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < 0:
        raise mistake(row, read.column("margin"), value, "must be a number of at least 0")
    return float(value)


def _from_passages(
    read: Reader, rows: Iterator[Row], dataset: Dataset, field: str, seed: int
) -> tuple[list[PreferenceRow], int]:
    pairs: list[PreferenceRow] = []
    dropped = number = 0
    for number, row in enumerate(rows, 1):
        prompt = _question(read, row, "prompt")
        require_same_question(read, row)
        require_same_responses(read, row, of_passages=True)
        row_pairs = passage_pairs(read, row, dataset, random_key=f"{seed}:{number}")
        margin, tools = _margin(read, row), read.tools(row)
        pairs += [
            PreferenceRow(row.source, prompt, good, bad, margin, tools) for good, bad in row_pairs
        ]
        dropped += not row_pairs
    if not pairs:
        lists = f"{read.column('positive_passages')} or {read.column('negative_passages')}"
        raise DataError(
            f"{field}.uri: {dataset.uri}: {lists} is empty in each of its {number} rows, "
            "so that no pair can be made; name a dataset that has both in some row"
        )
    return pairs, dropped
