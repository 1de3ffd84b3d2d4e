"""The edges of a process: how it logs, hears and leaves. Used by `launch` and `__main__`.

Imports no torch: the launcher hears signals before that costs seconds.
"""

import logging
import os
import signal
import sys
import time
from types import FrameType
from typing import NoReturn


def set_up_logging(who: str) -> None:
    """Log to stderr: our own from INFO, libraries' from WARNING."""
    logging.basicConfig(
        level=logging.WARNING,
        format=f"%(asctime)s {who} %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    logging.getLogger("rlhf_trainer").setLevel(logging.INFO)


class StopRequest:
    """When this process was first asked to stop.

    Attributes:
        since: on the monotonic clock; None while it was not.
    """

    def __init__(self) -> None:
        self.since: float | None = None

    def install(self) -> None:
        """Hear SIGTERM and SIGINT from now on; PID 1 without a handler would ignore them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def age(self) -> float:
        """Seconds since the request; 0 without one."""
        return 0.0 if self.since is None else time.monotonic() - self.since

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.since is None:
            self.since = time.monotonic()


def leave_process(code: int) -> NoReturn:
    """End at once: after a failure, threads and destructors may wait for a peer that is gone."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
