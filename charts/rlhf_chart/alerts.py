"""The alerts: one table, of which the chart makes Prometheus rules and Grafana-managed rules.

Written to the chart by `python -m rlhf_chart alerts`. Templates put the chart's values in place of
`$threshold` (a number), `$seconds` (the same as a duration) and `$namespace` (the release's).
"""

from dataclasses import dataclass
from typing import Any

from rlhf_api.loading import dump_yaml
from rlhf_api.metrics import LabelledMetric, Metric, MetricLabel, metric_name
from rlhf_api.names import OPERATOR_NAME, ConditionType, GuardrailRule
from rlhf_api.v1alpha1.guardrails import EXPLAINED_BY_A_SOUND_CRITIC
from rlhf_chart.promql import (
    REASON,
    STAGE_LABELS,
    highest,
    judged,
    labelled,
    newest,
    series_name,
)
from rlhf_operator import metrics
from rlhf_operator.job_series import CONDITION, NAMESPACE, PENDING_SINCE, PROGRESS_SINCE, RESTARTS

HEADER = "# Made from charts/rlhf_chart/alerts.py by `make generate`; change that.\n"
CRITICAL, WARNING = "critical", "warning"

# Annotations are written without $, which Grafana's provisioning reads as an environment variable.
_STAGE = (
    f"{{{{ .Labels.{NAMESPACE} }}}}/{{{{ .Labels.{MetricLabel.JOB} }}}}, "
    f"stage {{{{ .Labels.{MetricLabel.STAGE} }}}}"
)
_DESCRIBE = (
    f"`kubectl -n {{{{ .Labels.{NAMESPACE} }}}} describe rlhf {{{{ .Labels.{MetricLabel.JOB} }}}}`"
)
_VALUE = "{{ .Value | humanize }}"
_DURATION = "{{ .Value | humanizeDuration }}"
CAUSE = "cause"
"""Label of `OperatorLagging`: what its value is."""


@dataclass(frozen=True)
class Alert:
    """One alert.

    Attributes:
        name: its name, and that of its heading in docs/runbook.md.
        expr: PromQL; it holds for every series that it returns, whatever the value.
        summary: who is concerned, in one line.
        description: the value, what it means.
        severity: label by which alerts are routed.
        wait: how long `expr` must hold, in the form of Prometheus; `for` in the values.
        threshold: what stands for `$threshold`; None where the trainer's own holds, or there is
            none.
        threshold_expr: `expr` once a value sets another threshold; empty where `expr` is the same.
    """

    name: str
    expr: str
    summary: str
    description: str
    severity: str = WARNING
    wait: str = "1m"
    threshold: float | None = None
    threshold_expr: str = ""

    @property
    def has_threshold(self) -> bool:
        """Whether a value may set one."""
        return "$threshold" in self.expr + self.threshold_expr

    def values(self) -> dict[str, Any]:
        """Its part of the chart's values."""
        return {
            "enabled": True,
            "severity": self.severity,
            "for": self.wait,
            "threshold": self.threshold,
            "runbookUrl": "",
        }

    def to_document(self) -> dict[str, Any]:
        """What the templates read."""
        return {
            "name": self.name,
            "expr": self.expr,
            **({"thresholdExpr": self.threshold_expr} if self.threshold_expr else {}),
            "hasThreshold": self.has_threshold,
            "defaults": self.values(),
            "annotations": {"summary": self.summary, "description": self.description},
        }


def _of_rule(
    rule: GuardrailRule, summary: str, description: str, severity: str, unless: str | None = None
) -> Alert:
    """The trainer's verdict on one of its rules.

    A verdict counts updates in a row, which no `for` can: a time may hold one update or a hundred.
    A threshold of the values is compared with the quantity that the trainer judged, and `for` takes
    the place of the count. The trainer has a verdict as soon as the warm-up is over.

    Args:
        rule: whose quantity breaks it above the threshold.
        summary: what goes wrong, in a few words.
        description: the quantity.
        severity: of the alert.
        unless: what speaks against it though the quantity is above the threshold.
    """
    verdict = newest(LabelledMetric.HEALTH_VERDICT, rule)
    value = newest(LabelledMetric.HEALTH_VALUE, rule)
    threshold = newest(LabelledMetric.HEALTH_THRESHOLD, rule)
    beyond = f"{judged(rule)} > $threshold"
    return Alert(
        name=rule.value,
        # An update that is not finite has no value, and what a new leader knows from status may
        # have neither value nor threshold; the verdict stands all the same.
        expr=f"({value} or {threshold} or 0 * {verdict}) and {verdict} == 1",
        threshold_expr=beyond if unless is None else f"{beyond} unless {unless}",
        summary=f"{_STAGE}: {summary}",
        description=f"{_STAGE}: {description}; {_DESCRIBE} has the numbers, and the runbook what "
        "to change.",
        severity=severity,
    )


def _critic() -> Alert:
    loss, of_mean = newest(Metric.CRITIC_LOSS), newest(Metric.CRITIC_LOSS_OF_MEAN)
    explained = newest(Metric.EXPLAINED_VARIANCE)
    return _of_rule(
        GuardrailRule.CRITIC_LOSS_DIVERGING,
        "the critic diverges",
        f"the critic's loss is at least {_VALUE} times the larger of its start and half the loss "
        "of the mean return",
        CRITICAL,
        unless=f"({loss} <= {of_mean} or {explained} >= {EXPLAINED_BY_A_SOUND_CRITIC:g})",
    )


def _nonfinite() -> Alert:
    verdict = newest(LabelledMetric.HEALTH_VERDICT, GuardrailRule.NON_FINITE)
    beyond = f"{newest(Metric.NONFINITE)} > $threshold"
    return Alert(
        name=GuardrailRule.NON_FINITE.value,
        # The count of an attempt that such a number ends may not have been scraped any more.
        expr=f"{beyond} or {verdict} == 1",
        threshold_expr=beyond,
        threshold=0.0,
        summary=f"{_STAGE}: losses or other metrics are NaN or infinite",
        description=f"{_STAGE}: {_VALUE} or more metric values of this attempt were NaN or "
        "infinite.",
        severity=CRITICAL,
    )


def _checkpoint_stale() -> Alert:
    written = newest(Metric.LAST_CHECKPOINT_TIMESTAMP)
    alive = (metric_name(Metric.STEP), PROGRESS_SINCE.name)
    running = " or ".join(highest(series) for series in alive)
    then = " or ".join(highest(f"{series} offset $seconds") for series in alive)
    return Alert(
        name="CheckpointStale",
        # A job that was resumed has had no time yet to write one. Where none was ever written,
        # the threshold is the least that one knows.
        expr=f"(time() - {written} > $threshold or 0 * ({running}) + $threshold unless {written})"
        f" and ({running}) and ({then})",
        threshold=7200.0,
        wait="5m",
        summary=f"{_STAGE}: no new checkpoint",
        description=f"{_STAGE}: no complete checkpoint was written for at least {_DURATION}; all "
        "since then is lost if a pod dies.",
    )


def _operator_down() -> Alert:
    leads = f'{series_name(metrics.LEADER)}{{{NAMESPACE}="$namespace"}} == 1'
    return Alert(
        name="OperatorDown",
        expr=labelled(f"absent({leads})", NAMESPACE, "$namespace"),
        wait="5m",
        summary=f"No replica of the operator in {{{{ .Labels.{NAMESPACE} }}}} leads",
        description="No replica of the operator is seen to lead. Pods train on, but no stage is "
        f"started, restarted or ended; `kubectl -n {{{{ .Labels.{NAMESPACE} }}}} get pods -l "
        f"app.kubernetes.io/name={OPERATOR_NAME}` shows them.",
        severity=CRITICAL,
    )


def _operator_lagging() -> Alert:
    here = f'{NAMESPACE}="$namespace"'
    age = f"{highest(f'{series_name(metrics.QUEUE_AGE)}{{{here}}}', (NAMESPACE,))} > $threshold"
    # After a conflict the pass is made again at once.
    failed = f'{series_name(metrics.RECONCILE_ERRORS)}{{{here},{REASON}!="{metrics.CONFLICT}"}}'
    passes = f"{series_name(metrics.RECONCILE_SECONDS)}_count{{{here}}}"
    # As short as the alert waits, so that a minute with failures is over before it fires; and more
    # than a few jobs fail by themselves, each tried again every five minutes at the latest.
    failures, all_passes = (
        f"sum by ({NAMESPACE}) (rate({counter}[5m]))" for counter in (failed, passes)
    )
    share = f"{failures} / {all_passes} > 0.5 and {failures} > 0.02"
    return Alert(
        name="OperatorLagging",
        expr=f"{labelled(age, CAUSE, 'queue age in seconds')} or "
        f"{labelled(share, CAUSE, 'share of failing passes')}",
        threshold=60.0,
        wait="5m",
        summary=f"The operator in {{{{ .Labels.{NAMESPACE} }}}} does not keep up",
        description=f"The operator's {{{{ .Labels.{CAUSE} }}}} is {_VALUE}: jobs are started, "
        "restarted and ended late.",
    )


def _restart_storm() -> Alert:
    least = f"min by ({', '.join(STAGE_LABELS)}) (min_over_time({RESTARTS.name}[1h]))"
    return Alert(
        name="RestartStorm",
        # Not increase(): the counter goes on in another series when another replica leads.
        expr=f"{highest(RESTARTS.name)} - {least} >= $threshold",
        threshold=3.0,
        wait="0s",
        summary=f"{_STAGE}: restarts again and again",
        description=f"{_STAGE}: {_VALUE} restarts within an hour; {_DESCRIBE} says why.",
    )


def _job_failed() -> Alert:
    failed = f'{CONDITION.name}{{type="{ConditionType.FAILED.value}"}}'
    return Alert(
        name="RLHFJobFailed",
        expr=f"{highest(failed, (*STAGE_LABELS, REASON))} == 1",
        wait="0s",
        summary=f"{_STAGE}: the job has failed: {{{{ .Labels.{REASON} }}}}",
        description=f"{_STAGE}: the job has failed with reason {{{{ .Labels.{REASON} }}}}; "
        f"{_DESCRIBE} says why.",
        severity=CRITICAL,
    )


ALERTS = (
    _critic(),
    _nonfinite(),
    _of_rule(
        GuardrailRule.KL_ABOVE_LIMIT,
        "the actor leaves its reference",
        f"the KL of actor against reference is at least {_VALUE} nats an answer",
        WARNING,
    ),
    _of_rule(
        GuardrailRule.REWARD_COLLAPSE,
        "the reward collapses",
        f"the reward is at least {_VALUE} deviations below its best level",
        WARNING,
    ),
    _job_failed(),
    Alert(
        name="ProgressStalled",
        expr=f"time() - {highest(PROGRESS_SINCE.name)} > $threshold",
        threshold=1200.0,
        summary=f"{_STAGE}: no further step",
        description=f"{_STAGE}: the step has not grown for {_DURATION}; {_DESCRIBE} says what "
        "is seen of its pods.",
    ),
    _restart_storm(),
    Alert(
        name="PendingTooLong",
        expr=f"time() - {highest(PENDING_SINCE.name)} > $threshold",
        threshold=900.0,
        summary=f"{_STAGE}: waits for its pods",
        description=f"{_STAGE}: the pods of its newest attempt have not run for {_DURATION}; "
        f"{_DESCRIBE} says what they wait for.",
    ),
    _checkpoint_stale(),
    _operator_down(),
    _operator_lagging(),
)


def alerts_text() -> str:
    """The text of the chart's `files/alerts.yaml`."""
    return HEADER + dump_yaml({"alerts": [alert.to_document() for alert in ALERTS]})
