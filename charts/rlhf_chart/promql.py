"""The series that alerts ask for, and how they are asked for.

Every question about a stage goes to the trainer's own series or else, where nobody scrapes pods or
the pod is gone, to the operator's mirror, both with the same labels: an alert that waits does not
begin anew when its source changes, and where both are there it fires once.
"""

from prometheus_client.metrics import MetricWrapperBase

from rlhf_api.metrics import LabelledMetric, Metric, MetricLabel, metric_name
from rlhf_api.names import GuardrailRule
from rlhf_operator.job_series import JOB_PREFIX, NAMESPACE

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
    trainer, mirror = _sources(metric, rule)
    return f"({trainer} or {mirror})"


def judged(rule: GuardrailRule) -> str:
    """The newest quantity of a rule, where the same source has a verdict on it."""
    values, verdicts = (
        _sources(metric, rule)
        for metric in (LabelledMetric.HEALTH_VALUE, LabelledMetric.HEALTH_VERDICT)
    )
    found = (f"{value} and {verdict}" for value, verdict in zip(values, verdicts, strict=True))
    return f"({' or '.join(found)})"


def _sources(metric: Metric | LabelledMetric, rule: GuardrailRule | None) -> tuple[str, str]:
    matcher = "" if rule is None else f'{{{MetricLabel.RULE}="{rule.value}"}}'
    return highest(metric_name(metric) + matcher), highest(mirror_name(metric) + matcher)


def labelled(expr: str, name: str, value: str) -> str:
    """The same with one more label."""
    return f'label_replace({expr}, "{name}", "{value}", "", "")'
