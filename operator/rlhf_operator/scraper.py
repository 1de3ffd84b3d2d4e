"""Asks running attempts how far they are, one after another, and wakes their jobs.

Fed by `reconcile` with the attempts that run; what it reads is lost with the operator, and read
again. Bounded in number, so that a thousand running jobs are no load: each attempt at most every
INTERVAL_SECONDS, all together at most SCRAPES_PER_SECOND times a second, the one that was asked
longest ago first.
"""

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import aiohttp

from rlhf_api.names import Port, StageName
from rlhf_operator.metrics import SCRAPE_ERRORS
from rlhf_operator.planning.observed import ObservedProgress
from rlhf_operator.scrape import ScrapeError, scrape
from rlhf_operator.work_queue import Key

INTERVAL_SECONDS = 10.0
SCRAPES_PER_SECOND = 20.0
"""Each may lead to one write of mere progress."""
PATIENT_FAILURES = 4
"""As long as a trainer may load without being asked less often."""
MAX_DOUBLINGS = 5
CONCURRENT = 32

Ident = tuple[str, StageName, int]
"""uid of an RLHFJob, stage, attempt."""


@dataclass
class Progress:
    """What was read of one attempt.

    Attributes:
        key: of the job.
        address: of rank 0's pod.
        told: the last answer; None before the first.
        error: why the last request had none; empty if it had.
        fresh: whether something was read, or could not be, since status was written.
    """

    key: Key
    address: str
    told: ObservedProgress | None = None
    error: str = ""
    fresh: bool = False
    failures: int = 0
    due: float = 0.0
    """When it is asked next, on the loop's clock; an entry of the heap for another time is void."""

    def intervals(self) -> int:
        """Intervals until it is asked again: more the more often it did not answer."""
        return int(2 ** min(max(0, self.failures - PATIENT_FAILURES), MAX_DOUBLINGS))


class Scraper:
    """The attempts that are asked."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        wake: Callable[[Key], None],
        *,
        port: int = Port.METRICS,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        self._session, self._wake = session, wake
        self._port, self._interval = port, interval
        self._known: dict[Ident, Progress] = {}
        self._of_job: dict[str, set[Ident]] = {}
        self._heap: list[tuple[float, int, Ident]] = []
        self._order = count()
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(CONCURRENT)

    def find(self, ident: Ident) -> Progress | None:
        """What is known of an attempt; None if it is not asked."""
        return self._known.get(ident)

    def keep(self, key: Key, uid: str, addresses: dict[tuple[StageName, int], str]) -> None:
        """Ask these attempts of a job, by the address of each, and no others of it."""
        wanted = {(uid, stage, attempt): to for (stage, attempt), to in addresses.items()}
        known = self._of_job.pop(uid, set())
        for ident in known - wanted.keys():
            del self._known[ident]
        if wanted:
            self._of_job[uid] = set(wanted)
        for ident, address in wanted.items():
            if ident in known:
                self._known[ident].address = address
                continue
            self._known[ident] = Progress(key, address)
            # One that was never asked comes before all others.
            self._push(0.0, ident)

    def forget(self, uid: str) -> None:
        """Ask nothing of this job any more."""
        for ident in self._of_job.pop(uid, ()):
            del self._known[ident]

    async def run(self) -> None:
        """Ask until cancelled."""
        slot = _now()
        async with asyncio.TaskGroup() as tasks:
            while True:
                ident = await self._next()
                await self._slots.acquire()
                tasks.create_task(self._ask(ident))
                # By the clock, so that what a turn takes is not added to each pause.
                slot = max(slot + 1 / SCRAPES_PER_SECOND, _now())
                await asyncio.sleep(slot - _now())

    async def _next(self) -> Ident:
        """The attempt that is due first, as soon as it is due."""
        while True:
            self._changed.clear()
            while self._heap and not self._is_valid(*self._heap[0]):
                heapq.heappop(self._heap)
            wait = self._heap[0][0] - _now() if self._heap else None
            if wait is not None and wait <= 0:
                return heapq.heappop(self._heap)[2]
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    async def _ask(self, ident: Ident) -> None:
        try:
            progress = self._known.get(ident)
            if progress is None:
                return
            await self._renew(progress)
            if ident in self._known:
                self._push(_now() + self._interval * progress.intervals(), ident)
                self._wake(progress.key)
        finally:
            self._slots.release()

    async def _renew(self, progress: Progress) -> None:
        try:
            progress.told = await scrape(self._session, progress.address, self._port)
        except ScrapeError as error:
            SCRAPE_ERRORS.inc()
            progress.failures += 1
            progress.fresh = progress.fresh or not progress.error
            progress.error = str(error)
        else:
            progress.error, progress.failures, progress.fresh = "", 0, True

    def _is_valid(self, when: float, _: int, ident: Ident) -> bool:
        known = self._known.get(ident)
        return known is not None and known.due == when

    def _push(self, when: float, ident: Ident) -> None:
        self._known[ident].due = when
        heapq.heappush(self._heap, (when, next(self._order), ident))
        self._changed.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
