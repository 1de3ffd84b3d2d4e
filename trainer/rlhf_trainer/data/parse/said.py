"""Whether two values of a row say the same in two ways.

Called by `beside` and `contradictions`. White space does not count. Nothing is refused here.
"""

from collections.abc import Sequence
from typing import Any


def agree(said: Sequence[str], value: object) -> bool:
    """Whether what is read and `value` are the same, or one of them is part of the other."""
    # Turns without a text are part of everything, and say nothing of what `value` does.
    return says(said, value) or (any(map(_compact, said)) and says(texts(value), said))


def says(said: Sequence[str], value: object) -> bool:
    """Whether each text of `value` is part of one that is read."""
    compact = [_compact(text) for text in said]
    return all(any(_compact(text) in other for other in compact) for text in texts(value))


def texts(value: Any) -> list[str]:
    """A text, or the texts of turns and of the parts of their content."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key in ("content", "value", "text") for text in texts(value.get(key))]
    return [text for each in value for text in texts(each)] if isinstance(value, list) else []


def _compact(text: str) -> str:
    return "".join(text.split())
