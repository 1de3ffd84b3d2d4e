"""What people read on stdout and stderr, which may be closed, full or unable to show every letter.

Called by `app`. Nothing that happens to a reader ends a run: the exit code and the workdir tell how
it went.
"""

import io
import os
import sys
from typing import Any

from rich.console import Console


def show_every_letter() -> None:
    """Write what stdout and stderr cannot encode as an escape, in place of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def make_console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr whose reader may leave at any time."""
    return _LastingConsole(stderr=stderr, highlight=False)


class _LastingConsole(Console):
    """Shows nothing more when its reader is gone; rich would end the process."""

    def print(self, *objects: Any, **settings: Any) -> None:
        try:
            super().print(*objects, **settings)
        except OSError:
            # A disk that holds a log may be full while the workdir's is not.
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        # What is left in the stream's buffer is written when the process ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())
        os.close(nowhere)
