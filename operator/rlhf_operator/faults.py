"""Whose the values are that the API server's validation finds fault with. Pure.

Called by `refusals`. Between a manifest and its validation stand mutating webhooks and policies:
what one of them writes is refused in the same words as what the manifest says.
"""

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from kubernetes.utils.quantity import parse_quantity

Raw = dict[str, Any]

_STEP = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")
_KEY = re.compile(r"\[(?!\d+\]$)([^\]]+)\]$")
"""The key of a map that a field ends in; a list has numbers."""
_QUOTED = re.compile(r"(?:Invalid|Unsupported|Duplicate) value: |Not found: ")
"""What stands before a value."""
_TOO_LONG = re.compile(r"Too long: .*?(\d+)")
_TWICE = re.compile(r"Duplicate value|must be unique")
_OF_A_LIMIT = re.compile(r"must be (?:less than or )?equal to (\S+) limit")
_AMOUNTS = {"limits", "requests", "sizeLimit"}


def is_sent(manifest: Raw, cause: Raw) -> bool:
    """Whether the value that a cause of a Status finds fault with is the manifest's own.

    Indices are not looked at: a container that was put before ours moves it, and the API server
    leaves some of them out. Where the field ends in a key, the words may be about that.

    Args:
        manifest: the object as it was sent.
        cause: a field, and the words about its value.
    """
    steps = [name or index for name, index in _STEP.findall(cause["field"])]
    if not steps:
        # A webhook's own cause may name no field that there is.
        return False
    said = cause.get("message") or ""
    owners = [each for owner in _at(manifest, steps[:-1]) for each in _items(owner, steps[-1])]
    found = _at(manifest, steps)
    if said.startswith("Required value"):
        return len(owners) > len([value for value in found if value not in (None, "", [], {})])
    limit = _OF_A_LIMIT.search(said)
    if limit and not any(limit[1] in each for each in _at(manifest, _limits_beside(steps))):
        return False
    long = _TOO_LONG.match(said)
    if long:
        return any(_size(value) > int(long[1]) for value in found)
    quoted = _QUOTED.match(said)
    value = _scalar(said[quoted.end() :]) if quoted else None
    if value is None:
        return bool(found)
    if found and _is_of_key(value, cause["field"]):
        return True
    same = _amount if _AMOUNTS & set(steps) else str
    times = [same(leaf) for each in found for leaf in _leaves(each)].count(same(value))
    return times > bool(_TWICE.search(said))


def _at(value: Any, steps: list[str]) -> list[Any]:
    """The values at a path, of which there is one for each item of the lists on it."""
    found = [value]
    for step in steps:
        found = [inner for each in found for inner in _below(each, step)]
    return found


def _below(value: Any, step: str) -> list[Any]:
    if isinstance(value, list):
        if step.isdigit():
            return value
        return [inner for each in value for inner in _below(each, step)]
    if not isinstance(value, dict):
        return []
    if step in ("labels", "annotations") and step not in value:
        # What is wrong with those of a template is told without the metadata that they stand in.
        value = value.get("metadata") or {}
    return [value[step]] if step in value else []


def _items(owner: Any, step: str) -> list[Any]:
    """What may have a field of that name: the owner, or its items where no index is told."""
    return owner if isinstance(owner, list) and not step.isdigit() else [owner]


def _is_of_key(value: str, field: str) -> bool:
    """Whether the value is the key that a field ends in, or what stands behind its domain."""
    key = _KEY.search(field)
    return key is not None and f"/{key[1]}".endswith(f"/{value}")


def _limits_beside(steps: list[str]) -> list[str]:
    return [*steps[: steps.index("resources") + 1], "limits"] if "resources" in steps else []


def _leaves(value: Any) -> Iterator[str]:
    """The keys and values in a value, as text."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _size(value: Any) -> int:
    return sum(len(leaf.encode()) for leaf in _leaves(value))


def _scalar(said: str) -> str | None:
    """The text, number or truth value that a sentence begins with, as text."""
    try:
        value, _ = json.JSONDecoder().raw_decode(said)
    except ValueError:
        return None
    return None if isinstance(value, dict | list) else next(_leaves(value))


def _amount(text: str) -> Decimal | str:
    """A quantity, which the API server writes in a form of its own."""
    try:
        amount: Decimal = parse_quantity(text)
    except ValueError:
        return text
    # A name may read like a number that is none, which cannot be compared.
    return amount if amount.is_finite() else text
