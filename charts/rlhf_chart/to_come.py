"""Series of the operator that its own code does not define yet."""

from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

from rlhf_api.metrics import METRIC_HELP, LabelledMetric, Metric, MetricLabel

JOB_PREFIX = "rlhf_job_"
NAMESPACE = "namespace"

_JOB = (NAMESPACE, MetricLabel.JOB)
_STAGE = (*_JOB, MetricLabel.STAGE)


@dataclass(frozen=True)
class JobMetric:
    """A metric of single jobs.

    Attributes:
        name: of the series.
        help: its meaning and unit.
        labels: their names.
    """

    name: str
    help: str
    labels: tuple[str, ...]


_MIRRORED = tuple(
    JobMetric(JOB_PREFIX + metric.value, METRIC_HELP[metric], (*_STAGE, MetricLabel.ATTEMPT))
    for metric in (
        Metric.STEP,
        Metric.TOTAL_STEPS,
        Metric.PROGRESS,
        Metric.ETA,
        Metric.LOSS,
        Metric.REWARD,
        Metric.KL,
        Metric.CRITIC_LOSS,
        Metric.CRITIC_LOSS_BASELINE,
        Metric.CRITIC_LOSS_OF_MEAN,
        Metric.EXPLAINED_VARIANCE,
        Metric.ENTROPY,
        Metric.NONFINITE,
        Metric.LAST_CHECKPOINT_STEP,
        Metric.LAST_CHECKPOINT_TIMESTAMP,
        LabelledMetric.HEALTH_VALUE,
        LabelledMetric.HEALTH_THRESHOLD,
        LabelledMetric.HEALTH_VERDICT,
    )
)
RESTARTS = JobMetric(
    f"{JOB_PREFIX}restarts_total",
    "Restarts of a stage that count against runPolicy.maxRestarts.",
    _STAGE,
)
DISRUPTIONS = JobMetric(
    f"{JOB_PREFIX}disruptions_total", "Restarts of a stage that do not count.", _STAGE
)
PENDING_SINCE = JobMetric(
    f"{JOB_PREFIX}pending_timestamp_seconds",
    "Unix time in seconds since when the stage's newest attempt waits for its pods.",
    _STAGE,
)
PROGRESS_SINCE = JobMetric(
    f"{JOB_PREFIX}progress_timestamp_seconds",
    "Unix time in seconds at which the stage's step last grew.",
    _STAGE,
)
CONDITION = JobMetric(
    f"{JOB_PREFIX}condition",
    "Conditions of a job, by type and reason: 1 for status True, 0 for False.",
    (*_JOB, "type", "reason"),
)
JOB_METRICS = (*_MIRRORED, RESTARTS, DISRUPTIONS, PENDING_SINCE, PROGRESS_SINCE, CONDITION)

_PREFIX = "rlhf_operator_"

QUEUE_AGE = Gauge(
    f"{_PREFIX}queue_age_seconds", "How long the job that is due longest waits.", registry=None
)
JOBS = Gauge(f"{_PREFIX}jobs", "Jobs by phase.", ["phase"], registry=None)
STAGE_SECONDS = Histogram(
    f"{_PREFIX}stage_duration_seconds",
    "Time from a stage's start to its end.",
    ["stage", "outcome"],
    registry=None,
)
STAGE_RESTARTS = Counter(
    f"{_PREFIX}stage_restarts_total", "Restarts that counted.", ["stage", "reason"], registry=None
)
STAGE_DISRUPTIONS = Counter(
    f"{_PREFIX}stage_disruptions_total", "Disruptions of stages.", ["stage"], registry=None
)
BUILD_INFO = Gauge(
    f"{_PREFIX}build_info", "Version of the operator; always 1.", ["version"], registry=None
)
