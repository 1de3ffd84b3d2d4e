"""Asks running attempts how far they are, one after another, and wakes their jobs.

Fed by `reconcile` with the attempts that run; what it reads is lost with the operator, and read
again. The last reading of a stage outlives its attempt, for the job's metrics. Bounded in number,
so that a thousand running jobs are no load: each job at most every INTERVAL_SECONDS, all together
at most SCRAPES_PER_SECOND times a second, the one that was asked longest ago first.
"""

import asyncio
import heapq
from collections.abc import Callable, Mapping
from contextlib import suppress
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

AttemptId = tuple[StageName, int]


@dataclass(frozen=True)
class Reading:
    """What was last read of a stage.

    Attributes:
        attempt: number of the attempt that told it.
        told: what it told.
    """

    attempt: int
    told: ObservedProgress


@dataclass
class Progress:
    """What was read of one attempt.

    Attributes:
        address: of rank 0's pod.
        told: the last answer; None before the first.
        error: why the last request had none; empty if it had.
        fresh: whether something was read, or could not be, since status was written.
        failures: how often in a row it had no answer.
    """

    address: str
    told: ObservedProgress | None = None
    error: str = ""
    fresh: bool = False
    failures: int = 0

    def intervals(self) -> int:
        """Intervals until it is asked again: more the more often it did not answer."""
        return int(2 ** min(max(0, self.failures - PATIENT_FAILURES), MAX_DOUBLINGS))


@dataclass
class _Job:
    """The attempts of a job, which are asked in one turn.

    Attributes:
        key: of the job.
        attempts: those that run.
        due: when they are asked next, on the loop's clock; an entry of the heap for another time
            is void.
    """

    key: Key
    attempts: dict[AttemptId, Progress]
    due: float = 0.0


class Scraper:
    """The jobs that are asked."""

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
        self._jobs: dict[str, _Job] = {}
        self._readings: dict[str, dict[StageName, Reading]] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._order = count()
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(CONCURRENT)

    def find(self, uid: str, attempt: AttemptId) -> Progress | None:
        """What is known of an attempt; None if it is not asked."""
        job = self._jobs.get(uid)
        return None if job is None else job.attempts.get(attempt)

    def readings(self, uid: str) -> Mapping[StageName, Reading]:
        """The last reading of each stage of a job, until the job is forgotten; a copy."""
        return dict(self._readings.get(uid, {}))

    def keep(self, key: Key, uid: str, addresses: dict[AttemptId, str]) -> None:
        """Ask these attempts of a job, by the address of each, and no others of it."""
        if not addresses:
            self._jobs.pop(uid, None)
            return
        job = self._jobs.setdefault(uid, _Job(key, {}))
        new = addresses.keys() - job.attempts.keys()
        job.attempts = {
            attempt: job.attempts.get(attempt) or Progress(address)
            for attempt, address in addresses.items()
        }
        for attempt, address in addresses.items():
            job.attempts[attempt].address = address
        if new:
            # One that was never asked comes before all others.
            self._push(0.0, uid)

    def forget(self, uid: str) -> None:
        """Ask nothing of this job any more, and keep nothing that it told."""
        self._jobs.pop(uid, None)
        self._readings.pop(uid, None)

    async def run(self) -> None:
        """Ask until cancelled."""
        slot = _now()
        async with asyncio.TaskGroup() as tasks:
            while True:
                uid = await self._next()
                await self._slots.acquire()
                tasks.create_task(self._ask(uid))
                # By the clock, so that what a turn takes is not added to each pause.
                slot = max(slot + 1 / SCRAPES_PER_SECOND, _now())
                await asyncio.sleep(slot - _now())

    async def _next(self) -> str:
        """The job that is due first, as soon as it is due."""
        while True:
            self._changed.clear()
            while self._heap and not self._is_valid(*self._heap[0]):
                heapq.heappop(self._heap)
            wait = self._heap[0][0] - _now() if self._heap else None
            if wait is not None and wait <= 0:
                return heapq.heappop(self._heap)[2]
            # See `WorkQueue.take`.
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _ask(self, uid: str) -> None:
        try:
            job = self._jobs.get(uid)
            if job is None:
                return
            attempts = dict(job.attempts)
            asked = list(attempts.values())
            await asyncio.gather(*(self._renew(progress) for progress in asked))
            if self._jobs.get(uid) is job:
                self._take_down(uid, attempts)
                pause = min((progress.intervals() for progress in asked), default=1)
                self._push(_now() + self._interval * pause, uid)
                self._wake(job.key)
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

    def _take_down(self, uid: str, asked: Mapping[AttemptId, Progress]) -> None:
        """Keep what was read beyond the end of its attempt; a later attempt's is the newer."""
        known = self._readings.setdefault(uid, {})
        for (stage, number), progress in sorted(asked.items(), key=lambda each: each[0]):
            if progress.told is not None and (stage not in known or known[stage].attempt <= number):
                known[stage] = Reading(number, progress.told)

    def _is_valid(self, when: float, _: int, uid: str) -> bool:
        job = self._jobs.get(uid)
        return job is not None and job.due == when

    def _push(self, when: float, uid: str) -> None:
        self._jobs[uid].due = when
        heapq.heappush(self._heap, (when, next(self._order), uid))
        self._changed.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
