"""Whether two values of a row say the same in two ways.

Called by `beside` and `contradictions`. White space does not count. Nothing is refused here.
"""

import re
from collections.abc import Sequence
from typing import Any

_THOUGHT_ENDS = "</think>"
_THOUGHT = re.compile(f"<think>(.*?){_THOUGHT_ENDS}", re.DOTALL)


def agree(said: Sequence[str], value: object) -> bool:
    """Whether what is read and `value` are the same, or one of them is part of the other."""
    # Turns without a text are part of everything, and say nothing of what `value` does.
    return says(said, value) or (any(map(_compact, said)) and says(texts(value), said))


def says(said: Sequence[str], value: object) -> bool:
    """Whether each text of `value` is part of one that is read."""
    compact = [_compact(text) for text in said]
    return all(any(_compact(text) in other for other in compact) for text in texts(value))


def frames(whole: object, said: Sequence[str]) -> bool:
    """Whether all that is read is part of `whole`, which a chat template may have written.

    Templates leave out thoughts in front of an answer, earlier ones or all; other thoughts than
    those that are read are something else.
    """
    if says(texts(whole), said):
        return True
    if not says(said, [thought for text in texts(whole) for thought in _THOUGHT.findall(text)]):
        return False
    parts = [(text, text.rpartition(_THOUGHT_ENDS)[2]) for text in said]
    return all(
        says(texts(whole), text) or (_compact(answer) and says(texts(whole), answer))
        for text, answer in parts
    )


def texts(value: Any) -> list[str]:
    """A text, or the texts of turns and of the parts of their content."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for key in ("content", "value", "text") for text in texts(value.get(key))]
    return [text for each in value for text in texts(each)] if isinstance(value, list) else []


def _compact(text: str) -> str:
    return "".join(text.split())
