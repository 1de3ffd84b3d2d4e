"""How far an attempt is, read from rank 0's Prometheus endpoint; bounded in time and size.

Called by `reconcile` with a pod whose owners were checked: a pod can lie about its own job only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from rlhf_api.errors import RLHFError
from rlhf_api.names import METRIC_PREFIX, Metric, Port
from rlhf_operator.metrics import SCRAPE_ERRORS
from rlhf_operator.planning.observed import ObservedProgress

INTERVAL = timedelta(seconds=9)
"""Less than the shortest time between two passes without a cause."""
PATIENT_FAILURES = 4
"""As long as a trainer may load without being asked less often."""
MAX_DOUBLINGS = 5
MAX_BYTES = 256 * 1024
TIMEOUT = aiohttp.ClientTimeout(total=2)

_READ = {metric.value for metric in Metric}


class ScrapeError(RLHFError):
    """The endpoint did not answer in time, or not with metrics."""


@dataclass
class Progress:
    """What was read of one attempt; lost with the operator, and read again.

    Attributes:
        told: the last answer; None before the first.
        error: why the last request had none; empty if it had.
    """

    told: ObservedProgress | None = None
    error: str = ""
    _failures: int = field(default=0, init=False)
    _next: datetime | None = field(default=None, init=False)

    async def renew(
        self, session: aiohttp.ClientSession, pod: Mapping[str, Any], now: datetime
    ) -> None:
        """Ask rank 0's pod if it is time to: less often the more often it did not answer."""
        if self._next is not None and now < self._next:
            return
        try:
            self.told = await scrape(session, pod["status"].get("podIP", ""), Port.METRICS)
            self.error, self._failures = "", 0
        except ScrapeError as error:
            SCRAPE_ERRORS.inc()
            self.error = str(error)
            self._failures += 1
        doublings = min(max(0, self._failures - PATIENT_FAILURES), MAX_DOUBLINGS)
        self._next = now + INTERVAL * 2**doublings


async def scrape(session: aiohttp.ClientSession, address: str, port: int) -> ObservedProgress:
    """What the endpoint at `address` tells.

    Raises:
        ScrapeError: with the address and what is wrong.
    """
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{port}/metrics"
    try:
        async with session.get(url, timeout=TIMEOUT, allow_redirects=False) as response:
            body = await response.content.read(MAX_BYTES + 1)
            while not response.content.at_eof() and len(body) <= MAX_BYTES:
                body += await response.content.read(MAX_BYTES + 1 - len(body))
            if response.status != 200 or len(body) > MAX_BYTES:
                size = f"{len(body)} bytes or more"
                raise ScrapeError(f"{url}: answered {response.status} with {size}")
        return _progress(_values(body.decode()))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise ScrapeError(f"{url}: {error or type(error).__name__}") from error


def _values(text: str) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix(METRIC_PREFIX)
            if name in _READ and math.isfinite(sample.value):
                found[name] = sample.value
    return found


def _progress(values: Mapping[str, float]) -> ObservedProgress:
    checkpoint = values.get(Metric.LAST_CHECKPOINT_STEP)
    return ObservedProgress(
        step=int(values.get(Metric.STEP, 0)),
        total_steps=int(values.get(Metric.TOTAL_STEPS, 0)),
        eta_seconds=values.get(Metric.ETA),
        metrics=dict(values),
        last_checkpoint_step=None if checkpoint is None else int(checkpoint),
    )
