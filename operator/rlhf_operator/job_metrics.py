"""Tells Prometheus of every job, and counts jobs by phase.

Made by `serve`, for the leader alone. `look` takes down on the loop what `collect` then works out
in the thread that answers a request: 1,000 jobs take longer than anything else may wait.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry
from pydantic import ValidationError
from pydantic_core import to_json

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import RLHFJobStatus
from rlhf_operator.job_series import JOB_METRICS, JobMetric, is_told, job_series
from rlhf_operator.metrics import JOBS, PHASES, UNKNOWN
from rlhf_operator.scraper import Reading, Scraper
from rlhf_operator.store import Store, key_of

Raw = dict[str, Any]


class JobMetrics(Collector):
    """The series of the jobs that the store held at the last look."""

    def __init__(
        self,
        store: Store,
        scraper: Scraper,
        keep_seconds: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store, self._scraper = store, scraper
        self._keep, self._clock = timedelta(seconds=keep_seconds), clock
        self._seen: list[tuple[Raw, Mapping[StageName, Reading]]] = []

    def look(self) -> None:
        """Take down what is known now; nothing of it is changed later."""
        jobs = self._store.jobs()
        self._seen = [(raw, self._scraper.readings(raw["metadata"]["uid"])) for raw in jobs]
        phases = Counter(_phase(raw) for raw in jobs)
        for phase in PHASES:
            JOBS.labels(phase).set(phases[phase])

    def describe(self) -> Iterable[Family]:
        """The families, without samples."""
        return [_family(metric) for metric in JOB_METRICS]

    def collect(self) -> Iterable[Family]:
        """The families, as of the last look."""
        families = {metric: _family(metric) for metric in JOB_METRICS}
        now = self._clock()
        for raw, readings in self._seen:
            status = _status(raw)
            if status is None or not is_told(status, now, self._keep):
                continue
            for metric, labels, value in job_series(*key_of(raw), status, readings):
                families[metric].add_metric(labels, value)
        return [family for family in families.values() if family.samples]


@contextmanager
def exported(
    metrics: JobMetrics, looks: list[Callable[[], None]], registry: CollectorRegistry = REGISTRY
) -> Iterator[None]:
    """Tell of the jobs while this replica leads.

    Args:
        metrics: of the jobs.
        looks: what is called on the loop before `registry` is collected.
        registry: where they are told.
    """
    registry.register(metrics)
    looks.append(metrics.look)
    try:
        yield
    finally:
        looks.remove(metrics.look)
        registry.unregister(metrics)
        JOBS.clear()


def _phase(raw: Raw) -> str:
    phase = (raw.get("status") or {}).get("phase")
    return phase if phase in PHASES else UNKNOWN


def _status(raw: Raw) -> RLHFJobStatus | None:
    """The job's status; None for a job that is being deleted, or whose status cannot be read."""
    if raw["metadata"].get("deletionTimestamp"):
        return None
    try:
        return RLHFJobStatus.parse_json(to_json(raw.get("status") or {}))
    except ValidationError:
        # Condition Accepted says what is wrong with it.
        return None


def _family(metric: JobMetric) -> GaugeMetricFamily | CounterMetricFamily:
    kind = CounterMetricFamily if metric.name.endswith("_total") else GaugeMetricFamily
    return kind(metric.name, metric.help, labels=metric.labels)
