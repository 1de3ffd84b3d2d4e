"""Checks of single values of a row, and the sentence for a value that is wrong.

Called by `columns`, `formats`, `beside` and `miracl`.
"""

import math
from collections.abc import Mapping

from rlhf_api.errors import DataError
from rlhf_trainer.data.read.rows import Row, clipped


def mistake(row: Row, field: str, value: object, remedy: str) -> DataError:
    """The error for one value of one row."""
    # A field holds keys of the row, which may not be printable.
    field = field.encode(errors="backslashreplace").decode()
    return DataError(f"{row.source}: {field}: {clipped(value)}: {remedy}")


def checked_text(row: Row, field: str, value: object) -> str:
    """`value` if it is text that says something.

    Raises:
        DataError: of another type, empty or blank, or not encodable.
    """
    text = encodable(row, field, value)
    if not text.strip():
        raise mistake(row, field, value, "is empty; fill it in or remove the row")
    return text


def encodable(row: Row, field: str, value: object) -> str:
    """`value` if it is text that a tokenizer can take, be it empty.

    Raises:
        DataError: of another type, or not encodable.
    """
    if not isinstance(value, str):
        raise mistake(row, field, value, f"must be text, but is {_type_name(value)}; correct it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise mistake(
            row, field, value, f"holds half a character at {error.start}; correct its \\u escape"
        ) from error
    return value


def require_plain(row: Row, field: str, value: object) -> None:
    """Refuse text that is not encodable and numbers that JSON has not, at any depth of `value`.

    Raises:
        DataError: naming the place inside `value`.
    """
    remaining = [(field, value)]
    while remaining:
        place, part = remaining.pop()
        if isinstance(part, str):
            encodable(row, place, part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise mistake(row, place, part, "is no number that JSON has; correct it")
        elif isinstance(part, Mapping):
            for key, inner in part.items():
                encodable(row, place, key)
                remaining.append((f"{place}.{key}", inner))
        elif isinstance(part, list):
            remaining += [(f"{place}[{index}]", inner) for index, inner in enumerate(part)]


def _type_name(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "a boolean", int: "a number", float: "a number", list: "a list"}.get(
        type(value), "an object"
    )
