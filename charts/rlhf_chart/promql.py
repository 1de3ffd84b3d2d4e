"""The series that alerts ask for, and how they are asked for.

Every question about a stage goes to the trainer's own series or else, where nobody scrapes pods or
the pod is gone, to the operator's mirror, both with the same labels: an alert that waits does not
begin anew when its source changes, and where both are there it fires once.
"""

from prometheus_client.metrics import MetricWrapperBase

from rlhf_api.metrics import LabelledMetric, Metric, MetricLabel, metric_name
from rlhf_api.names import GuardrailRule
from rlhf_operator import metrics

JOB_PREFIX = "rlhf_job_"
"""Of the operator's series about jobs, those of the trainer mirrored among them."""

RESTARTS = f"{JOB_PREFIX}restarts_total"
PENDING_SINCE = f"{JOB_PREFIX}pending_timestamp_seconds"
PROGRESS_AT = f"{JOB_PREFIX}progress_timestamp_seconds"
"""When a running stage's step last grew; absent when it does not run."""
CONDITION = f"{JOB_PREFIX}condition"
QUEUE_AGE = f"{metrics.PREFIX}queue_age_seconds"

NAMESPACE = "namespace"
REASON = "reason"
STAGE_LABELS = (NAMESPACE, MetricLabel.JOB, MetricLabel.STAGE)


def series_name(metric: MetricWrapperBase) -> str:
    """The series of one of the operator's own metrics."""
    (family,) = metric.describe()
    return f"{family.name}_total" if family.type == "counter" else family.name


def mirror_name(metric: Metric | LabelledMetric) -> str:
    """The operator's series for one of the trainer's."""
    return JOB_PREFIX + metric.value


def highest(series: str, labels: tuple[str, ...] = STAGE_LABELS) -> str:
    """Of all sources of a series the highest value, by these labels."""
    return f"max by ({', '.join(labels)}) ({series})"


def newest(metric: Metric | LabelledMetric, rule: GuardrailRule | None = None) -> str:
    """What the trainer tells of a stage, or else the operator."""
    matcher = "" if rule is None else f'{{{MetricLabel.RULE}="{rule.value}"}}'
    trainer, mirror = metric_name(metric) + matcher, mirror_name(metric) + matcher
    return f"({highest(trainer)} or {highest(mirror)})"


def labelled(expr: str, name: str, value: str) -> str:
    """The same with one more label."""
    return f'label_replace({expr}, "{name}", "{value}", "", "")'
