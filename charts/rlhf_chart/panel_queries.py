"""PromQL over the series of trainer and operator.

What both export is read from the trainer, or else from the operator's mirror: the dashboard works
where nobody scrapes training pods, and for a pod that is gone.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from rlhf_api.metrics import (
    LABEL_OF,
    METRIC_HELP,
    METRIC_PREFIX,
    LabelledMetric,
    Metric,
    MetricLabel,
    metric_name,
)
from rlhf_chart.promql import STAGE_LABELS, highest, mirror_name
from rlhf_chart.series import operator_series
from rlhf_operator.job_series import JOB_METRICS, JOB_PREFIX, NAMESPACE, JobMetric
from rlhf_operator.metrics import PREFIX

PICKED = f'{NAMESPACE}=~"$namespace",{MetricLabel.JOB}=~"$rlhfjob"'
"""Matchers of the jobs that are picked on the dashboard."""

ANY_OF_A_JOB = f'count({{__name__=~"({METRIC_PREFIX}|{JOB_PREFIX}).+",{PICKED}}})'
"""How many series there are of the picked jobs; none if there is none."""

WHO = f"{{{{{NAMESPACE}}}}}/{{{{{MetricLabel.JOB}}}}}"
"""What tells the series of two jobs apart, as Grafana's legends write it."""

_OF_ALERTS = ("alertname", "alertstate", "severity")
ALERTS = highest(f"ALERTS{{{PICKED}}}", (*STAGE_LABELS, *_OF_ALERTS))
OPERATOR_ALERTS = highest('ALERTS{alertname=~"Operator.+"}', _OF_ALERTS)
FIRING = highest(f'ALERTS{{alertstate="firing",{PICKED}}}', (*STAGE_LABELS, "alertname"))
"""Alerts of the picked jobs, of the operator, and those of the picked jobs that fire."""

_WINDOW = "$__rate_interval"
_MIRRORS = frozenset(metric.name for metric in JOB_METRICS)
_NAME = re.compile(r"\brlhf_(?:train|job|operator)_[a-z0-9_]+")


class Query(NamedTuple):
    """What a panel asks Prometheus for.

    Attributes:
        expr: PromQL with Grafana's variables.
        name: what is asked for, in a word or two.
        who: what tells its series apart: a legend with labels in double braces, or nothing.
        help: what the numbers mean, with their unit.
    """

    expr: str
    name: str
    who: str
    help: str


def of_stage(metric: Metric | LabelledMetric, *more: str) -> Query:
    """The newest value for each picked stage, and for each value of the labels `more`."""
    labels = _own_label(metric) + list(more)
    return Query(
        either(metric, *more), metric.value, _who([MetricLabel.STAGE, *labels]), METRIC_HELP[metric]
    )


def either(metric: Metric | LabelledMetric, *more: str) -> str:
    """PromQL of a metric by stage and by the labels `more`: the trainer's, or else the mirror's."""
    by = (*STAGE_LABELS, *_own_label(metric), *more)
    mirror = mirror_name(metric)
    names = [metric_name(metric), *([mirror] if mirror in _MIRRORS else [])]
    return " or ".join(highest(f"{name}{{{PICKED}}}", by) for name in names)


def rate_of_stage(metric: LabelledMetric) -> Query:
    """Growth of a counter a second for each picked stage; the trainer's alone."""
    labels = _own_label(metric)
    by = ", ".join([*STAGE_LABELS, *labels])
    expr = f"sum by ({by}) (rate({metric_name(metric)}{{{PICKED}}}[{_WINDOW}]))"
    return Query(expr, metric.value, _who([MetricLabel.STAGE, *labels]), METRIC_HELP[metric])


def of_job(metric: JobMetric) -> Query:
    """What the operator alone tells of the picked jobs."""
    expr = highest(f"{metric.name}{{{PICKED}}}", metric.labels)
    more = [label for label in metric.labels if label not in (NAMESPACE, MetricLabel.JOB)]
    name = metric.name.removeprefix(JOB_PREFIX)
    return Query(expr, name, _who(more), metric.help)


def since(query: Query, name: str, text: str) -> Query:
    """Seconds since the Unix time that `query` tells; `text` is their meaning."""
    return query._replace(expr=f"time() - ({query.expr})", name=name, help=text)


def of_operator(collector: MetricWrapperBase, *by: str, how: str = "sum") -> Query:
    """The newest values of an operator's gauge, put together over its replicas."""
    series, text = operator_series(collector)
    return Query(f"{how}{_by(by)}({series})", _short(series), _legend(by), text)


def rate_of_operator(collector: MetricWrapperBase, *by: str) -> Query:
    """Growth of an operator's counter a second."""
    series, text = operator_series(collector)
    return Query(f"sum{_by(by)}(rate({series}[{_WINDOW}]))", _short(series), _legend(by), text)


def growth_of_operator(collector: MetricWrapperBase, *by: str) -> Query:
    """Growth of an operator's counter in an hour."""
    series, text = operator_series(collector)
    return Query(f"sum{_by(by)}(increase({series}[1h]))", _short(series), _legend(by), text)


def quantile_of_operator(
    collector: MetricWrapperBase, quantile: float, *by: str, recent: bool = True
) -> Query:
    """A quantile of an operator's histogram: of the last minutes, or since it was started."""
    series, text = operator_series(collector)
    buckets = f"rate({series}[{_WINDOW}])" if recent else series
    expr = f"histogram_quantile({quantile:g}, sum{_by(('le', *by))}({buckets}))"
    return Query(expr, f"p{quantile * 100:g}", _legend(by), text)


def filled(expr: str, *, namespace: str, rlhfjob: str, rate_interval: str) -> str:
    """`expr` as Grafana sends it to Prometheus.

    Args:
        expr: PromQL with the dashboard's variables.
        namespace: regular expression of the namespaces that are picked.
        rlhfjob: regular expression of the jobs that are picked.
        rate_interval: window of rates, such as `1m`.

    Raises:
        ValueError: another variable is left.
    """
    values = {"$namespace": namespace, "$rlhfjob": rlhfjob, _WINDOW: rate_interval}
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    if left := re.search(r"\$\w+|\$\{\w+", expr):
        raise ValueError(f"{left.group()} in {expr} has no value; give it one in filled()")
    return expr


def names_in(exprs: Iterable[str]) -> set[str]:
    """The series of trainer and operator that queries name."""
    return {name for expr in exprs for name in _NAME.findall(expr)}


def _own_label(metric: Metric | LabelledMetric) -> list[str]:
    return [LABEL_OF[metric]] if isinstance(metric, LabelledMetric) else []


def _who(labels: Iterable[str]) -> str:
    return f"{WHO} {_legend(labels)}"


def _legend(labels: Iterable[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _by(labels: Iterable[str]) -> str:
    names = ", ".join(labels)
    return f" by ({names}) " if names else ""


def _short(series: str) -> str:
    return series.removeprefix(PREFIX)
