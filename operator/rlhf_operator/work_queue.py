"""Which jobs are to be looked at, and when: each key once, and never by two workers at a time.

Filled by `watches`, `scraper` and the workers of `serve`; emptied by these.
"""

import asyncio
import heapq
import random
from contextlib import suppress
from itertools import count

from rlhf_operator.metrics import QUEUE_DEPTH

Key = tuple[str, str]
"""Namespace and name of an RLHFJob."""

AHEAD_SECONDS = 3600.0
"""By how much an urgent key counts as due before all others."""
FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 300.0
SPARE_ENTRIES = 100
"""How many void entries may be kept, beside as many as there are keys."""


class WorkQueue:
    """Keys by the time at which they are due; the earliest time of a key holds."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        # The same without what puts urgent ones first.
        self._waiting: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = count()
        self._active: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._held: set[str] = set()
        self._changed = asyncio.Event()

    def add(self, key: Key, delay: float = 0.0, *, urgent: bool = False) -> None:
        """Look at `key` in `delay` seconds at the latest; at an urgent one before all others."""
        now = asyncio.get_running_loop().time()
        when = now + (-AHEAD_SECONDS if urgent else delay)
        if when >= self._due.get(key, float("inf")):
            return
        self._due[key] = when
        self._waiting[key] = min(self._waiting.get(key, float("inf")), now + delay)
        self._push(key)
        QUEUE_DEPTH.set(len(self._due))
        self._changed.set()

    def retry(self, key: Key, at_least: float = 0.0) -> None:
        """Look at `key` again after a failure: later each time, and not all keys at once."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16))
        self.add(key, max(at_least, delay * random.uniform(0.5, 1.0)))

    def forget_failures(self, key: Key) -> None:
        """The next failure of `key` is its first."""
        self._failures.pop(key, None)

    def hold(self, namespace: str) -> None:
        """Let no key of a namespace, or none at all if it is empty, be taken until `release`."""
        self._held.add(namespace)

    def release(self, namespace: str) -> None:
        """End `hold`; what was added meanwhile is due when it was to be."""
        self._held.discard(namespace)
        for key in self._due:
            if not namespace or key[0] == namespace:
                self._push(key)
        self._changed.set()

    async def take(self) -> Key:
        """The next key that is due; it stays the caller's until `done`."""
        while True:
            wait = self._wait_seconds()
            if wait is not None and wait <= 0:
                _, _, key = heapq.heappop(self._heap)
                del self._due[key], self._waiting[key]
                self._active[key] = asyncio.get_running_loop().time()
                QUEUE_DEPTH.set(len(self._due))
                return key
            self._changed.clear()
            # Not `wait_for`: before Python 3.12 it forgets a cancellation that comes with news.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def done(self, key: Key) -> None:
        """The caller of `take` is through with `key`."""
        del self._active[key]
        if key in self._due:
            self._push(key)
        self._changed.set()

    def oldest_pass(self) -> float:
        """For how many seconds the longest pass has gone on."""
        now = asyncio.get_running_loop().time()
        return max((now - since for since in self._active.values()), default=0.0)

    def age(self) -> float:
        """Seconds since the key that is due longest became due; 0 when none is.

        One that is held, or that another pass has in hand, waits for no worker.
        """
        now = asyncio.get_running_loop().time()
        since = (when for key, when in self._waiting.items() if self._is_free(key))
        return max(0.0, now - min(since, default=now))

    def _is_free(self, key: Key) -> bool:
        """Whether a worker may take `key` when it is due."""
        return key not in self._active and not self._held & {key[0], ""}

    def _push(self, key: Key) -> None:
        if len(self._heap) > 2 * len(self._due) + SPARE_ENTRIES:
            # Of a key that is due in a week each pass leaves an entry for then.
            self._heap = [(when, next(self._order), each) for each, when in self._due.items()]
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, (self._due[key], next(self._order), key))

    def _wait_seconds(self) -> float | None:
        """Until the first key is due that nobody works on; None if there is none."""
        while self._heap:
            when, _, key = self._heap[0]
            if self._is_free(key) and self._due.get(key) == when:
                return when - asyncio.get_running_loop().time()
            # Moved to an earlier time, taken, or put back by `done` or `release`.
            heapq.heappop(self._heap)
        return None
