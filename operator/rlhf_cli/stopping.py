"""Requests to stop: Ctrl-C, SIGTERM, a closed terminal. Called by `runner` around its loop."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

REPEAT_SECONDS = 1.0
"""A wrapper forwards the Ctrl-C that the terminal sends to all: only a later one is a second."""


@dataclass
class StopRequest:
    """What was asked for so far.

    Attributes:
        number: the first signal; None while there was none.
        insisted: whether there was a second one.
    """

    number: signal.Signals | None = None
    insisted: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Note signals in place of dying from them."""
    request = StopRequest()
    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if request.number is None:
            request.number, first = signal.Signals(number), time.monotonic()
        elif time.monotonic() - first >= REPEAT_SECONDS:
            request.insisted = True

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
