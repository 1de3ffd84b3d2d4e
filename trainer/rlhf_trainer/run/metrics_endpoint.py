"""The Prometheus endpoint of rank 0: the newest value of every metric, as text over HTTP.

Fed by `report`. Holds its own registry, so that two reporters in one process never meet, and never
stops a training: a port that is taken is a warning.
"""

import importlib.metadata
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from rlhf_api.metrics import (
    BUILD_INFO,
    BUILD_INFO_HELP,
    BUILD_PACKAGES,
    LABEL_OF,
    METRIC_HELP,
    LabelledMetric,
    Metric,
    MetricLabel,
    Phase,
    metric_name,
    metric_type,
)
from rlhf_api.v1alpha1 import StageConfig

logger = logging.getLogger(__name__)

_FAMILY = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}

_STOP_SECONDS = 0.05
"""How long the end of a stage may wait for the server to look whether it is to stop."""

PhaseSeconds = Callable[[], Mapping[Phase, float]]
"""Asked at each scrape."""


class _Newest(Collector):
    """The newest values; series that were never set do not exist."""

    def __init__(self, labels: Mapping[str, str], phase_seconds: PhaseSeconds) -> None:
        self._labels = dict(labels)
        self._phase_seconds = phase_seconds
        self._values: dict[Metric, float] = {
            metric: 0.0 for metric in Metric if metric_type(metric) == "counter"
        }
        self._labelled: dict[LabelledMetric, dict[str, float]] = {}
        self._lock = threading.Lock()
        self._build = {label: _version(package) for label, package in BUILD_PACKAGES.items()}

    def set(self, values: Mapping[Metric, float]) -> None:
        with self._lock:
            self._values.update(values)

    def set_labelled(self, metric: LabelledMetric, values: Mapping[str, float]) -> None:
        with self._lock:
            self._labelled[metric] = dict(values)

    def count(self, numbers: Mapping[Metric, float]) -> None:
        with self._lock:
            for metric, number in numbers.items():
                self._values[metric] += number

    def collect(self) -> Iterable[Family]:
        with self._lock:
            values, labelled = dict(self._values), dict(self._labelled)
        phases = self._phase_seconds().items()
        labelled[LabelledMetric.PHASE_SECONDS] = {name.value: spent for name, spent in phases}
        yield from self._families(values)
        yield from self._labelled_families(labelled)

    def _families(self, values: Mapping[Metric, float]) -> Iterator[Family]:
        names, texts = list(self._labels), list(self._labels.values())
        build = GaugeMetricFamily(BUILD_INFO, BUILD_INFO_HELP, labels=[*names, *self._build])
        build.add_metric([*texts, *self._build.values()], 1.0)
        yield build
        for metric, value in values.items():
            family = _FAMILY[metric_type(metric)](
                metric_name(metric), METRIC_HELP[metric], labels=names
            )
            family.add_metric(texts, value)
            yield family

    def _labelled_families(
        self, labelled: Mapping[LabelledMetric, Mapping[str, float]]
    ) -> Iterator[Family]:
        names, texts = list(self._labels), list(self._labels.values())
        for metric, values in labelled.items():
            if not values:
                continue
            family = _FAMILY[metric_type(metric)](
                metric_name(metric), METRIC_HELP[metric], labels=[*names, LABEL_OF[metric]]
            )
            for label, value in values.items():
                family.add_metric([*texts, label], value)
            yield family


class _Server(ThreadingMixIn, WSGIServer):
    """Whoever reads slowly holds up neither others nor the end of the process."""

    daemon_threads = True


class _Handler(WSGIRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """A scrape is no news."""


class MetricsEndpoint:
    """Serves what it was given last.

    Attributes:
        port: where it listens; None if the configured port was taken.
    """

    def __init__(self, config: StageConfig, phase_seconds: PhaseSeconds = dict) -> None:
        self._newest = _Newest(
            {
                MetricLabel.JOB: config.job.name,
                MetricLabel.STAGE: config.stage.value,
                MetricLabel.ATTEMPT: str(config.attempt),
            },
            phase_seconds,
        )
        registry = CollectorRegistry()
        registry.register(self._newest)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.port: int | None = None
        # A free port is chosen on a person's own machine, where nobody else should read it; a
        # fixed one is a pod's, which Prometheus and the operator reach from outside.
        address = "0.0.0.0" if config.metrics_port else "127.0.0.1"
        try:
            self._server = make_server(
                address, config.metrics_port, make_wsgi_app(registry), _Server, _Handler
            )
        except OSError as error:
            logger.warning(
                "metricsPort %d on %s cannot be opened (%s); training goes on without the "
                "Prometheus endpoint, metrics stand in events.jsonl",
                config.metrics_port,
                address,
                error,
            )
            return
        self.port = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_STOP_SECONDS,), daemon=True
        )
        self._thread.start()

    def set(self, values: Mapping[Metric, float]) -> None:
        """Replace the values of these metrics."""
        self._newest.set(values)

    def set_labelled(self, metric: LabelledMetric, values: Mapping[str, float]) -> None:
        """Replace all series of this family, by the value of its label."""
        self._newest.set_labelled(metric, values)

    def count(self, numbers: Mapping[Metric, float]) -> None:
        """Add to these counters."""
        self._newest.count(numbers)

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
