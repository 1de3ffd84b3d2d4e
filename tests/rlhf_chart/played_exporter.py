"""Serves every series that the dashboard may ask for, by the endpoints that serve them in earnest.

Run as a program, since the operator's metrics are those of the whole process. Prints its ports and
ends with its standard input.
"""

import json
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from launching import stage_config
from prometheus_client import REGISTRY, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from rlhf_api.metrics import LabelledMetric, Metric, Phase
from rlhf_operator import metrics as operator
from rlhf_operator.job_series import JOB_METRICS
from rlhf_trainer.run.metrics_endpoint import MetricsEndpoint

NAMESPACE = "team"
JOB, GONE = "demo", "gone"
NUMBER = 3.0


class Jobs(Collector):
    """Each metric of single jobs: of one that trains, and of one whose pods are gone."""

    def collect(self) -> Iterable[Family]:
        """A family each."""
        for metric in JOB_METRICS:
            family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for job in (JOB, GONE):
                family.add_metric([_value(label, job) for label in metric.labels], NUMBER)
            yield family


def train(folder: Path) -> MetricsEndpoint:
    """The trainer's endpoint with a value for every metric."""
    endpoint = MetricsEndpoint(stage_config(folder), lambda: dict.fromkeys(Phase, NUMBER))
    endpoint.set(dict.fromkeys(Metric, NUMBER))
    # Seconds by phase are asked for, the others told.
    for metric in set(LabelledMetric) - {LabelledMetric.PHASE_SECONDS}:
        endpoint.set_labelled(metric, {"one": NUMBER})
    return endpoint


def operate() -> None:
    """Give the operator's metrics that have labels a series."""
    operator.API_REQUESTS.labels("GET", "200").inc()
    operator.RECONCILE_ERRORS.labels("bug").inc()
    operator.RECONCILE_SECONDS.observe(NUMBER)
    operator.WATCH_STARTS.labels(NAMESPACE).inc()
    operator.NAMESPACE_MISSING.labels(NAMESPACE).set(0)
    operator.JOBS.labels("Running").set(1)
    operator.STAGE_SECONDS.labels("ppo", "Succeeded").observe(NUMBER)
    operator.STAGE_RESTARTS.labels("ppo", "Crashed").inc()


def _value(label: str, job: str) -> str:
    values = {"namespace": NAMESPACE, "rlhfjob": job, "stage": "sft", "attempt": "2"}
    return values.get(label, "one")


def main() -> None:
    """Serve until standard input ends."""
    operate()
    REGISTRY.register(Jobs())
    server, _ = start_http_server(0, addr="127.0.0.1")
    with tempfile.TemporaryDirectory() as folder:
        endpoint = train(Path(folder))
        ports = {"operator": server.server_port, "trainer": endpoint.port}
        sys.stdout.write(json.dumps(ports) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()
