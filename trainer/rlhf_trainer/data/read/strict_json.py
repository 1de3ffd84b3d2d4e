"""JSON in which no key stands twice in one object, of which every parser reads another value.

Called wherever a person's JSON is read: rows, and the texts in them that are JSON themselves.
"""

import json
from typing import Any


class DuplicateKeyError(ValueError):
    """A key that stands twice in one object; the text names it."""


def loads(text: str) -> Any:
    """The value that a JSON text holds.

    Raises:
        DuplicateKeyError: a key stands twice in one object.
        ValueError, RecursionError: it is no JSON, or nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    keys = [key for key, _ in pairs]
    twice = next(key for key in members if keys.count(key) > 1)
    raise DuplicateKeyError(f"the key {json.dumps(twice)} stands twice in one object")
