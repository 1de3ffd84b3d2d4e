"""Columns of a row that say the same thing in two ways, of which a stage reads one.

Called by `formats`. Data sets keep a prompt beside the turns that begin with it, an answer beside
those that end with it, turns in ShareGPT's form beside the same as messages, and responses beside
the passages that they are made of. Where the one that is not read says something else, it is
refused and never dropped.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_trainer.data.parse.columns import Conversation, Reader
from rlhf_trainer.data.parse.said import agree, says, texts
from rlhf_trainer.data.parse.values import mistake
from rlhf_trainer.data.read.rows import Row

_ASSISTANT = ("assistant", "gpt")
"""How a turn is called that answers; ShareGPT has a word of its own."""
_PROMPTS = ("prompt", "query")
_TURNS = ("messages", "conversations")
"""Columns of turns: the one that is read, and ShareGPT's."""
_PASSAGES = {"chosen": "positive_passages", "rejected": "negative_passages"}


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
    for column, prompt in _prompts(read, row).items():
        if not agree([turn.content for turn in turns], prompt):
            remedy = (
                f"differs from the turns before the response in {of}, which are read; correct it, "
                "or remove one of them"
            )
            raise mistake(row, column, prompt, remedy)


def require_same_turns(read: Reader, row: Row, *, is_dialogue: bool) -> None:
    """Refuse turns beside prompt and response that say more than these, or the reverse, and other
    turns beside messages.

    What the spec names is what is meant, and nothing is compared with it.

    Args:
        read: the spec's columns.
        row: of supervised rows.
        is_dialogue: whether the messages are read, and not prompt and response.

    Raises:
        DataError: what is not read says something else.
    """
    names = "messages, or prompt and response"
    if _is_meant(read, "messages", "prompt", "response"):
        return
    if not is_dialogue:
        pair = _columns(row, read.column("prompt"), "response")
        _require_said(read, row, pair, _columns(row, *_TURNS), names)
        require_same_question(read, row)
        return
    turns: Any = row.values.get("messages")
    before = {column: (turns[:-1], value) for column, value in _prompts(read, row).items()}
    for column, (part, value) in (
        before | {"response": (turns[-1:], row.values.get("response"))}
    ).items():
        if not agree(texts(part), value):
            raise mistake(row, column, value, _differs(read, "messages", names))
    _require_said(read, row, {"messages": turns}, _columns(row, "conversations"), names)


def require_same_question(read: Reader, row: Row) -> None:
    """Refuse `query` beside a `prompt` that is read, or the reverse, if it says more.

    Args:
        read: the spec's columns; a prompt that they name is what is meant.
        row: whose prompt is read.

    Raises:
        DataError: what is not read says something else.
    """
    others = _prompts(read, row)
    question = {read.column("prompt"): others.pop(read.column("prompt"), None)}
    _require_said(read, row, question, others, "prompt")


def require_same_request(read: Reader, row: Row, name: str) -> None:
    """Refuse turns beside a prompt that is answered, or the reverse, if they ask for more.

    What turns hold from the answer on is not compared: it is not read by PPO.

    Args:
        read: the spec's columns; what they name is what is meant.
        row: of prompts.
        name: what is read, `messages` or `prompt`.

    Raises:
        DataError: what is not read asks for something else.
    """
    if _is_meant(read, "messages", "prompt"):
        return
    names = "messages or prompt"
    if name == "messages":
        said = _columns(row, "messages")
        for column, prompt in _prompts(read, row).items():
            if not agree(list(_texts(said)), prompt):
                raise mistake(row, column, prompt, _differs(read, "messages", names))
    else:
        require_same_question(read, row)
        said = _columns(row, read.column("prompt"))
    others = _columns(row, *(column for column in _TURNS if column not in said))
    asked = {column: _asked(turns, *said.values()) for column, turns in others.items()}
    _require_said(read, row, said, asked, names)


def require_same_responses(read: Reader, row: Row, *, of_passages: bool) -> None:
    """Refuse turns and passages beside responses that say something else than these.

    Args:
        read: the spec's columns; what they name is what is meant.
        row: of preferences.
        of_passages: whether pairs are made of the passages, and chosen and rejected not read.

    Raises:
        DataError: turns say more, or a response is made of none of the row's passages.
    """
    if _is_meant(read, "prompt", "chosen", "rejected", *_PASSAGES.values()):
        return
    responses = _PASSAGES.values() if of_passages else _PASSAGES.keys()
    said = _columns(row, read.column("prompt"), *responses)
    _require_said(read, row, said, _columns(row, *_TURNS), "prompt, chosen and rejected")
    for name, passages in _PASSAGES.items():
        response, sources = row.values.get(name), row.values.get(passages)
        unread, of = (name, passages) if of_passages else (passages, name)
        if not (response and isinstance(sources, list) and sources):
            continue
        if not any(agree(texts(response), passage) for passage in sources):
            remedy = _differs(read, of, f"{name} or {passages}")
            raise mistake(row, unread, row.values[unread], remedy)


def _is_meant(read: Reader, *names: str) -> bool:
    return any(read.is_mapped(name) for name in names)


def _columns(row: Row, *columns: str) -> dict[str, Any]:
    return {column: row.values.get(column) for column in columns}


def _prompts(read: Reader, row: Row) -> dict[str, Any]:
    """What stands in the columns of a prompt: in the one that the spec names, or in both."""
    return _columns(row, *((read.column("prompt"),) if read.is_mapped("prompt") else _PROMPTS))


def _asked(turns: Any, prompt: Any) -> Any:
    """Those of the turns that an answer of theirs follows, as many as the prompt has; all of them
    where they end with a question.

    A system turn is none of those counted: ShareGPT's files often have it in another column.
    """
    if not isinstance(turns, list) or not turns or _role(turns[-1]) not in _ASSISTANT:
        return turns
    if isinstance(prompt, list):
        count = sum(_role(turn) != "system" for turn in prompt)
        counted = [index for index, turn in enumerate(turns) if _role(turn) != "system"]
        return turns[: counted[count]] if count < len(counted) else turns
    first = next(index for index, turn in enumerate(turns) if _role(turn) in _ASSISTANT)
    return turns[:first]


def _role(turn: Any) -> Any:
    return turn.get("role", turn.get("from")) if isinstance(turn, dict) else None


def _require_said(
    read: Reader, row: Row, said: Mapping[str, Any], unread: Mapping[str, Any], names: str
) -> None:
    """Refuse a column of which a text is no part of what is read."""
    everything = list(_texts(said))
    for column, value in unread.items():
        if not says(everything, value):
            raise mistake(row, column, value, _differs(read, " and ".join(said), names))


def _texts(said: Mapping[str, Any]) -> Iterator[str]:
    for value in said.values():
        yield from texts(value)


def _differs(read: Reader, other: str, names: str) -> str:
    return (
        f"differs from {other}, which would be read; correct it, name what is meant in "
        f"{read.field}.columns ({names}), or remove the other"
    )
