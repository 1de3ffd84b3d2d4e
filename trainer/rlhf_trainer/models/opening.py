"""What a library says while it opens a person's files, as a sentence of ours.

Called around each such opening. Nothing that fails there is a crash: no further attempt would find
other files.
"""

import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

from rlhf_api.errors import InputError
from rlhf_api.names import Reason
from rlhf_trainer.errors import failure_of

_MAX_LENGTH = 300
_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
"""Escape sequences of a terminal (ECMA-48)."""
_CALLED = re.compile(r"GLOBAL (\S+)")
"""How torch names a class or function that a pickle asks for and that is not allowed."""


@contextmanager
def opening(what: str, remedy: str) -> Iterator[None]:
    """Raise what nobody foresaw as an InputError.

    Errors of ours pass, and so do memory that runs out, storage, permissions and networks, which
    have words of their own.

    Args:
        what: the field and what cannot be done with its value.
        remedy: what a person can do.

    Raises:
        InputError: `what`, the library's words and `remedy`.
    """
    try:
        yield
    except Exception as error:
        if failure_of(error).reason is not Reason.CRASHED:
            raise
        raise InputError(f"{what}: {one_line(error)}; {remedy}") from error


def one_line(error: BaseException) -> str:
    """A library's message without colours, line breaks and lists: a reason is read in a last
    line.

    Of a pickle in our own words: torch's advise to run what it holds.
    """
    if isinstance(error, pickle.UnpicklingError):
        called = _CALLED.search(str(error))
        holds = f"calls {called[1]}" if called else "holds more than tensors, or is damaged"
        return f"it {holds}; nothing of it was run"
    text = " ".join(_COLOURS.sub("", str(error)).split())
    if isinstance(error, LookupError) or not text:
        # The key alone, which says nothing of what is wrong with it.
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= _MAX_LENGTH else f"{text[:_MAX_LENGTH]}..."
