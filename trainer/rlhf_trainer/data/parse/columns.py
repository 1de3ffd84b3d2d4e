"""Typed values out of a row's columns.

Called by `formats` and `miracl`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import Columns
from rlhf_trainer.data.parse.values import checked_text, encodable, mistake, require_plain
from rlhf_trainer.data.read.rows import Row, clipped
from rlhf_trainer.data.read.strict_json import DuplicateKeyError, loads

ROLES = ("system", "user", "assistant", "tool")


CALLS = ("tool_calls", "function_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""One thing under the names that transformers hands to a chat template as one."""
WRITTEN = (*CALLS, *THOUGHTS)
"""Keys of a message that say what the assistant wrote beside its content."""
CONTINUED = ("prefix", "partial")
"""Keys of a message that ask for an answer which goes on from it, each spelled so by some API."""
ENDED = "end_turn"
"""Key of a message that says whether its turn ends with it."""
NAMES = ("name", "tool_call_id")
"""Keys of a message that a chat template may use and need not."""
SHAREGPT = {"from", "value"}
"""Keys of a turn where ShareGPT's files have role and content."""
_IN_ROLES = (
    "write each turn as {role, content}: from 'human' is user, 'gpt' is assistant, and value is "
    "content"
)
LEARNED = ("weight", "train", "training", "loss")
"""Keys of a message that say whether it is learned, each spelled so by some trainer."""
_BESIDE = """
annotations country created created_at create_time date finish_reason hashed_ip header id
index labels lang language length logprobs message_id meta metadata model num_tokens parent_id rank
rating redacted score source state text_length timestamp token_count tokens toxic turn turn_id
turn_identifier usage uuid
"""
BESIDE = frozenset(_BESIDE.split())
"""Keys of a message that tell of it and change nothing of what is learned."""
KNOWN = frozenset(("role", "content", *WRITTEN, *CONTINUED, *NAMES, *LEARNED, ENDED)) | BESIDE


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str
    """Empty only beside a call."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """What else the assistant wrote, by the names in `WRITTEN`; a chat template must render it."""
    names: Mapping[str, Any] = field(default_factory=dict)
    """By the names in `NAMES`."""
    is_learned: bool = True
    """Whether an assistant's turn is learned in supervised rows."""


Conversation = tuple[Message, ...]
Text = str | Conversation
Tools = tuple[Mapping[str, Any], ...]
"""JSON schemas of functions that the assistant may call."""


@dataclass(frozen=True)
class Reader:
    """Values of a row by the names of the spec's fields; `prompt` may stand under `query`."""

    columns: Columns
    field: str
    """The dataset's path in the spec, for messages."""
    prompt_column: str
    """Where the prompt stands in every row."""

    @classmethod
    def of(cls, columns: Columns, field: str, first: Row) -> Self:
        """A reader for the rows that follow `first`, whose prompt decides for all."""
        usual = "query" if "query" in first.values and "prompt" not in first.values else "prompt"
        return cls(columns, field, columns.prompt or usual)

    def is_mapped(self, name: str) -> bool:
        """Whether the spec names a column for this field."""
        return getattr(self.columns, name) is not None

    def column(self, name: str) -> str:
        """The column of a field: the spec's, or the field's own name."""
        if name == "prompt":
            return self.prompt_column
        return getattr(self.columns, name) or name

    def has(self, row: Row, name: str) -> bool:
        """Whether the row has the field's column."""
        return self.column(name) in row.values

    def value(self, row: Row, name: str) -> Any:
        """The value of a field that must be there."""
        column = self.column(name)
        if column in row.values:
            return row.values[column]
        named = f"{self.field}.columns.{_camel(name)}"
        remedy = f"correct {named}" if self.is_mapped(name) else f"add it, or name it in {named}"
        remedy = self._remedy_for_turns(row, name) or remedy
        raise DataError(
            f"{row.source}: {column}: is missing; the row has {_columns(row)}; {remedy}"
        )

    def _remedy_for_turns(self, row: Row, name: str) -> str:
        """What to do with a conversation that stands in a column of another name."""
        is_pair = name in ("chosen", "rejected")
        for column in row.values:
            try:
                value = row.values[column]
            except DataError:
                # It is not asked for.
                continue
            first = value[0] if isinstance(value, list) and value else None
            if not isinstance(first, dict):
                continue
            if first.keys() >= SHAREGPT:
                renamed = "add it" if is_pair else f"rename {column} to messages"
                return f"{renamed}, and {_IN_ROLES}"
            if {"role", "content"} <= first.keys() and not (is_pair or self.is_mapped("messages")):
                return f"add it, or set {self.field}.columns.messages to {column}"
        return ""

    def text(self, row: Row, name: str) -> str:
        """The text of a field."""
        return checked_text(row, self.column(name), self.value(row, name))

    def messages(self, row: Row, name: str) -> Conversation:
        """The conversation of a field, at least one turn."""
        return _messages(row, self.column(name), self.value(row, name))

    def tools(self, row: Row) -> Tools:
        """The tools that the chat template shows the assistant; none in most rows.

        OpenAI's older `functions` are tools as well.
        """
        tools, functions = (_schemas(row, name) for name in ("tools", "functions"))
        if tools and functions:
            raise mistake(row, "functions", functions, "the row has tools too; keep one of them")
        return tools or tuple({"type": "function", "function": each} for each in functions)


def _schemas(row: Row, name: str) -> Tools:
    value = row.values.get(name)
    if isinstance(value, str) and value.strip():
        try:
            value = loads(value)
        except (ValueError, RecursionError) as error:
            raise mistake(row, name, value, f"not JSON ({error}); correct it") from error
    if not value:
        return ()
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise mistake(
            row, name, value, "must be a list of functions' JSON schemas; correct or drop it"
        )
    require_plain(row, name, value)
    return tuple(value)


def _messages(row: Row, field: str, value: object) -> Conversation:
    if not isinstance(value, list) or not value:
        raise mistake(row, field, value, "must be a list of messages with role and content")
    return tuple(_message(row, f"{field}[{index}]", item) for index, item in enumerate(value))


def _message(row: Row, field: str, value: object) -> Message:
    if not isinstance(value, dict):
        raise mistake(row, field, value, "must be an object with role and content")
    if value.keys() >= SHAREGPT and "role" not in value:
        raise mistake(row, field, value, f"is a turn of ShareGPT's form; {_IN_ROLES}")
    is_call = any(value.get(key) for key in CALLS)
    for key in ("role",) if is_call else ("role", "content"):
        if key not in value:
            raise mistake(row, f"{field}.{key}", value, "is missing; add it to the message")
    if value["role"] not in ROLES:
        raise mistake(row, f"{field}.role", value["role"], f"must be one of {', '.join(ROLES)}")
    return _known(row, field, value)


def _known(row: Row, field: str, value: dict[str, Any]) -> Message:
    """A message and those of its other keys that change what is learned; null is no value."""
    role, content = value["role"], value.get("content")
    for key in CONTINUED:
        if value.get(key):
            raise mistake(
                row,
                f"{field}.{key}",
                value[key],
                "an answer is learned as a whole, not from its beginning on; remove it",
            )
    for key, other in value.items():
        # What is false says something.
        if key not in KNOWN and other not in (None, "", [], {}):
            remedy = (
                "is not read, so that it would not be learned; write it into content, or remove it"
            )
            raise mistake(row, f"{field}.{key}", other, remedy)
    written = {key: value[key] for key in WRITTEN if value.get(key)}
    if written and role != "assistant":
        name = next(iter(written))
        raise mistake(
            row, f"{field}.{name}", value[name], f"is the assistant's, but the role is {role}"
        )
    is_call = any(key in written for key in CALLS)
    ends = says_ended(row, f"{field}.{ENDED}", value.get(ENDED))
    # Behind a call comes its result, in a turn of its own.
    if not ends and role == "assistant" and not is_call:
        remedy = "every turn is written with its end; remove it, or write the turn as a whole"
        raise mistake(row, f"{field}.{ENDED}", value[ENDED], remedy)
    _check_calls(row, field, written)
    names = {key: value[key] for key in NAMES if value.get(key)}
    for key, other in {**written, **names}.items():
        # Some number their calls.
        if key not in CALLS and not (key == "tool_call_id" and isinstance(other, int)):
            encodable(row, f"{field}.{key}", other)
    return Message(
        role,
        "" if is_call and not content else _content(row, f"{field}.content", content),
        written,
        names,
        all(_is_learned(row, f"{field}.{key}", value.get(key)) for key in LEARNED),
    )


def _check_calls(row: Row, field: str, written: Mapping[str, Any]) -> None:
    """Refuse calls that no chat template could write as calls."""
    calls = written.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise mistake(row, f"{field}.tool_calls", calls, "must be a list of calls; correct it")
    for index, call in enumerate(calls):
        nested = isinstance(call.get("function"), dict)
        place = f"{field}.tool_calls[{index}]" + (".function" if nested else "")
        _check_call(row, place, call["function"] if nested else call)
    require_plain(row, f"{field}.tool_calls", calls)
    older = written.get("function_call")
    if older is None:
        return
    if not isinstance(older, dict):
        raise mistake(row, f"{field}.function_call", older, "must be a call with name; correct it")
    _check_call(row, f"{field}.function_call", older)
    require_plain(row, f"{field}.function_call", older)


def _check_call(row: Row, field: str, call: Mapping[str, Any]) -> None:
    checked_text(row, f"{field}.name", call.get("name"))
    place, arguments = f"{field}.arguments", call.get("arguments")
    if not arguments or (isinstance(arguments, str) and not arguments.strip()):
        return
    if isinstance(arguments, str):
        try:
            arguments = loads(arguments)
        except DuplicateKeyError as error:
            raise mistake(row, place, arguments, f"{error}; remove one") from error
        except (ValueError, RecursionError):
            pass
    if not isinstance(arguments, dict):
        remedy = "must be an object, or the JSON text of one; correct it"
        raise mistake(row, place, call["arguments"], remedy)
    require_plain(row, place, arguments)


def _content(row: Row, field: str, value: object) -> str:
    """The text of a turn, which OpenAI's form may have in parts."""
    if not isinstance(value, list) or not value:
        return checked_text(row, field, value)
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            remedy = "only parts of type text are learned; remove it, or the row"
            raise mistake(row, f"{field}[{index}].type", kind, remedy)
        if not isinstance(part.get("text"), str):
            checked_text(row, f"{field}[{index}].text", part.get("text"))
    return checked_text(row, field, "".join(part["text"] for part in value))


def _is_learned(row: Row, field: str, value: object) -> bool:
    # 1 and 1.0 are equal to true.
    if value is not None and value not in (0, 1):
        raise mistake(row, field, value, "must be 0 or 1: a turn is learned or not; correct it")
    return value is None or bool(value)


def says_ended(row: Row, field: str, value: object) -> bool:
    """Whether a turn ends where its text does, by the value of `ENDED`; it does where that says
    nothing.

    Raises:
        DataError: the value is neither.
    """
    if value in (None, "", [], {}):
        return True
    # 1 and 1.0 are equal to true.
    if value not in (0, 1):
        raise mistake(row, field, value, "must be true or false; correct it or remove it")
    return bool(value)


def _columns(row: Row) -> str:
    names = [clipped(name) for name in list(row.values)[:12]]
    return ", ".join(names) + (", ..." if len(row.values) > 12 else "") if names else "no columns"


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
