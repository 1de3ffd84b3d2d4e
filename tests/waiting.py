"""How tests wait: for an event, with a bound, and with words for what did not come.

Sleeping until something has probably happened makes a test depend on the machine.
"""

import linecache
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 60.0
"""Seconds: many times what any event of the tests takes on a quiet machine."""


def eventually(
    check: Callable[[], Any],
    seconds: float = PATIENCE,
    pause: float = 0.05,
    *,
    what: str | Callable[[], str] = "",
    not_yet: type[Exception] | tuple[type[Exception], ...] = (),
    error: type[Exception] = AssertionError,
) -> Any:
    """The first true result of `check`.

    Args:
        check: asked until its result is true.
        seconds: when it is given up.
        pause: seconds between two checks.
        what: what is waited for, for the message; without it the message quotes the check's line.
        not_yet: what `check` may raise in the meantime.
        error: what is raised when it is given up; it names `what`, the time and the last result.
    """
    deadline = time.monotonic() + seconds
    while True:
        cause: Exception | None = None
        try:
            found = check()
        except not_yet as raised:
            found = cause = raised
        else:
            if found:
                return found
        if time.monotonic() >= deadline:
            words = (what() if callable(what) else what) or _place(check)
            raise error(f"{words}: still {found!r} after {seconds:g} s") from cause
        time.sleep(pause)


def _place(check: Callable[[], Any]) -> str:
    code = getattr(check, "__code__", None)
    if code is None:
        return repr(check)
    line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}: {line}"


def is_still(read: Callable[[], Any], seconds: float) -> bool:
    """Whether `read` gives the same after so many seconds.

    What comes to rest does so at some time: ask by `eventually`, and give it several times as long.
    """
    before = read()
    time.sleep(seconds)
    return bool(read() == before)
