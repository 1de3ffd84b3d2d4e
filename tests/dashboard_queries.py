"""Runs what the chart's dashboard asks against a real Prometheus: every query returns series."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from waiting import eventually

from rlhf_api.metrics import METRIC_HELP, LabelledMetric, Metric, metric_name, stages_of
from rlhf_api.names import StageName
from rlhf_chart.dashboard import Asked, queries
from rlhf_chart.panel_queries import filled, names_in
from rlhf_chart.prometheus_api import at_once, names_of
from rlhf_chart.series import operator_series
from rlhf_operator import metrics as operator
from rlhf_operator.job_series import PENDING_SINCE

DASHBOARD = Path(__file__).parents[1] / "charts" / "rlhf-operator" / "files" / "dashboard.json"

ABSENT_IN_PPO: dict[str, str] = {
    **{
        metric_name(metric): "another stage tells it"
        for metric in METRIC_HELP
        if StageName.PPO not in stages_of(metric)
    },
    metric_name(Metric.PTX_LOSS): "the job has no ptxDataset",
    **{
        metric_name(metric): "the job has no evalDataset"
        for metric in (*Metric, *LabelledMetric)
        if metric.startswith("eval_")
    },
    metric_name(Metric.VALUE_MEAN): "the critic does not learn under PopArt",
    metric_name(Metric.VALUE_SCALE): "the critic does not learn under PopArt",
    PENDING_SINCE.name: "no stage waits for its pods",
    operator_series(operator.RECONCILE_ERRORS)[0]: "no pass failed",
    operator_series(operator.STAGE_SECONDS)[0]: "no stage has ended",
    "ALERTS": "no alert fires",
    "Operator": "no alert of the operator fires",
}
"""What is not there while a PPO stage runs well, by a word of the queries that ask for it."""

_WORD = re.compile(r"\w+")


def asked() -> list[Asked]:
    """What the dashboard in the chart asks."""
    return list(queries(json.loads(DASHBOARD.read_text())))


def run(
    url: str,
    *,
    namespace: str = ".+",
    rlhfjob: str = ".+",
    rate_interval: str = "1m",
    absent: Mapping[str, str],
) -> None:
    """Assert that each query returns series, and that each name in a query is known.

    Args:
        url: of the Prometheus.
        namespace: regular expression of the namespaces that are picked.
        rlhfjob: regular expression of the jobs that are picked.
        rate_interval: window of rates; four scrapes are enough.
        absent: words of queries for which nothing is there, each with the reason.

    Raises:
        AssertionError: names all queries and series that are not there.
        PrometheusError: a query is refused.
    """
    wanted = [each for each in asked() if not words(each) & absent.keys()]
    picked = {"namespace": namespace, "rlhfjob": rlhfjob, "rate_interval": rate_interval}
    missing = [
        f"{where}: {expr}" for where, expr in wanted if not at_once(url, filled(expr, **picked))
    ]
    known = names_of(url)
    unknown = sorted(names_in(each.expr for each in wanted) - known)
    assert not missing, "queries without series:\n" + "\n".join(missing)
    assert not unknown, f"series that nobody exports: {', '.join(unknown)}"


def all_answered(url: str, rate_interval: str) -> None:
    """Wait until every query returns series: some need two scrapes, or a rule's evaluation."""

    def complete() -> bool:
        run(url, rate_interval=rate_interval, absent={})
        return True

    eventually(complete, not_yet=AssertionError, what="every query returns series")


def words(each: Asked) -> set[str]:
    """What `absent` may name of a query."""
    return set(_WORD.findall(each.expr))
