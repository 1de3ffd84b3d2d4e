"""How far an attempt is, read from rank 0's Prometheus endpoint; bounded in time and size.

Called by `scraper` with the address of a pod whose owners were checked: a pod can lie about its own
job only.
"""

import math
from collections.abc import Mapping

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from rlhf_api.errors import RLHFError
from rlhf_api.names import METRIC_PREFIX, Metric
from rlhf_operator.planning.observed import ObservedProgress

MAX_BYTES = 256 * 1024
MAX_LINE = 4096
TIMEOUT = aiohttp.ClientTimeout(total=2)

_READ = {metric.value for metric in Metric}
_MAX_STEP = 2_147_483_647


class ScrapeError(RLHFError):
    """The endpoint did not answer in time, or not with metrics."""


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
        text = body.decode()
        _check_lines(text, url)
        return _progress(_values(text))
    except ScrapeError:
        raise
    except Exception as error:  # The parser meets what a pod says with errors of any kind.
        raise ScrapeError(f"{url}: {str(error) or type(error).__name__}") from error


def _check_lines(text: str, url: str) -> None:
    """A line of ours has a few hundred characters; one of many takes the parser half a second."""
    if any(len(line) > MAX_LINE for line in text.split("\n")):
        raise ScrapeError(f"{url}: a line has more than {MAX_LINE} characters")


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
        step=_step(values.get(Metric.STEP, 0)),
        total_steps=_step(values.get(Metric.TOTAL_STEPS, 0)),
        eta_seconds=values.get(Metric.ETA),
        metrics=dict(values),
        last_checkpoint_step=None if checkpoint is None else _step(checkpoint),
    )


def _step(value: float) -> int:
    """Within what status can hold, whatever a pod says."""
    return int(min(max(value, 0), _MAX_STEP))
