"""Asked to stop: signals become a flag that the loop reads where it can leave in order.

Installed by `__main__` in every rank; the stages ask at step boundaries, all ranks together, and
PPO's rollout asks while decoding. Nothing is saved or raised here.
"""

import os
import signal
from types import FrameType


class StopFlag:
    """Whether this rank was asked to stop."""

    def __init__(self) -> None:
        self._asked = False
        self._launcher: int | None = None

    def install(self) -> None:
        """Hear SIGTERM and SIGINT from now on, and the launcher's death, as requests to stop."""
        # Once the launcher is gone nobody forwards signals, collects this rank's exit code or
        # keeps another attempt from starting beside it.
        self._launcher = os.getppid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._hear)

    def ask(self) -> None:
        """Ask this rank to stop."""
        self._asked = True

    @property
    def is_set(self) -> bool:
        """Whether this rank was asked; other ranks may not know yet."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._asked = True
        return self._asked

    def _hear(self, number: int, frame: FrameType | None) -> None:
        # Only the flag: a handler runs between two bytecodes of anything, logging included.
        self._asked = True
