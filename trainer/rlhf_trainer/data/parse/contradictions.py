"""Two columns of a row that say the same thing in two ways, of which a stage reads one.

Called by `formats`. Data sets keep a prompt beside the turns that begin with it, and an answer
beside those that end with it. Where the one that is not read says something else, it is refused
and never dropped. White space does not count.
"""

from collections.abc import Sequence
from typing import Any

from rlhf_trainer.data.parse.columns import Conversation, Reader
from rlhf_trainer.data.parse.values import mistake
from rlhf_trainer.data.read.rows import Row


def require_same_prompt(read: Reader, row: Row, turns: Conversation, of: str) -> None:
    """Refuse a prompt beside responses that bring other turns of their own.

    Args:
        read: the spec's columns.
        row: whose responses begin by turns.
        turns: those before the response.
        of: the column in which they stand.

    Raises:
        DataError: the prompt is not among them.
    """
    column = read.column("prompt")
    prompt = row.values.get(column)
    said = [turn.content for turn in turns]
    if not (_says(said, prompt) or _says(_texts(prompt), said)):
        remedy = (
            f"differs from the turns before the response in {of}, which are read; correct it, or "
            "remove one of them"
        )
        raise mistake(row, column, prompt, remedy)


def require_same_turns(read: Reader, row: Row, *, is_dialogue: bool) -> None:
    """Refuse messages beside prompt and response that say more than these, or the reverse.

    What the spec names is what is meant, and nothing is compared with it.

    Args:
        read: the spec's columns.
        row: of supervised rows.
        is_dialogue: whether the messages are read, and not prompt and response.

    Raises:
        DataError: what is not read says something else.
    """
    if any(read.is_mapped(name) for name in ("messages", "prompt", "response")):
        return
    turns = row.values.get("messages")
    pair = {name: row.values.get(name) for name in (read.column("prompt"), "response")}
    if not is_dialogue:
        if not _says([text for value in pair.values() for text in _texts(value)], turns):
            raise mistake(row, "messages", turns, _differs(read, " and ".join(pair)))
        return
    said = _texts(turns)
    for column, value in pair.items():
        if not (_says(said, value) or _says(_texts(value), said)):
            raise mistake(row, column, value, _differs(read, "messages"))


def _differs(read: Reader, other: str) -> str:
    return (
        f"differs from {other}, which would be read; correct it, name what is meant in "
        f"{read.field}.columns (messages, or prompt and response), or remove the other"
    )


def _says(said: Sequence[str], value: object) -> bool:
    """Whether each text of `value` is part of one that is read."""
    compact = [_compact(text) for text in said]
    return all(any(_compact(text) in other for other in compact) for text in _texts(value))


def _texts(value: Any) -> list[str]:
    """A text, or the texts of turns and of the parts of their content."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key in ("content", "value", "text") for text in _texts(value.get(key))]
    return [text for each in value for text in _texts(each)] if isinstance(value, list) else []


def _compact(text: str) -> str:
    return "".join(text.split())
