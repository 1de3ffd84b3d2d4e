"""Two columns of a row that say the same thing in two ways, of which a stage reads one.

Called by `formats`. Data sets keep a prompt beside the turns that begin with it, and an answer
beside those that end with it. Where the one that is not read says something else, it is refused
and never dropped.
"""

from typing import Any

from rlhf_trainer.data.parse.columns import Conversation, Reader
from rlhf_trainer.data.parse.said import agree, says, texts
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
    if not agree([turn.content for turn in turns], prompt):
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
    turns: Any = row.values.get("messages")
    pair = {name: row.values.get(name) for name in (read.column("prompt"), "response")}
    if not is_dialogue:
        if not says([text for value in pair.values() for text in texts(value)], turns):
            raise mistake(row, "messages", turns, _differs(read, " and ".join(pair)))
        return
    for (column, value), part in zip(pair.items(), (turns[:-1], turns[-1:]), strict=True):
        if not agree(texts(part), value):
            raise mistake(row, column, value, _differs(read, "messages"))


def _differs(read: Reader, other: str) -> str:
    return (
        f"differs from {other}, which would be read; correct it, name what is meant in "
        f"{read.field}.columns (messages, or prompt and response), or remove the other"
    )
