"""What a rank spends its time on: wall-clock seconds by phase.

Called by `report`, whose endpoint tells those of rank 0. Nothing here waits for a device: work that
was handed to one counts as time of the phase that asks for its result.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rlhf_api.metrics import Phase


class PhaseClock:
    """Adds up the seconds of phases; within a phase, an inner one's seconds are the inner one's.

    Read by any thread while one enters and leaves phases.
    """

    def __init__(
        self, phases: Iterable[Phase], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`phases` begin at 0 seconds; `clock` never runs backwards."""
        self._clock = clock
        self._seconds = dict.fromkeys(phases, 0.0)
        self._open: list[Phase] = []
        self._settled = clock()
        self._lock = threading.Lock()

    @contextmanager
    def phase(self, phase: Phase) -> Iterator[None]:
        """The time until the context is left belongs to `phase`."""
        with self._lock:
            self._settle()
            self._open.append(phase)
        try:
            yield
        finally:
            with self._lock:
                self._settle()
                self._open.pop()

    def seconds(self) -> dict[Phase, float]:
        """By phase, with the part of the present one that is over: long ones grow as they go."""
        with self._lock:
            self._settle()
            return dict(self._seconds)

    def _settle(self) -> None:
        now = self._clock()
        if self._open:
            self._seconds[self._open[-1]] += now - self._settled
        self._settled = now
