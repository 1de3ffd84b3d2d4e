"""The metrics `rlhf_job_*` of one job: their table, and the samples that follow from its status.

Called by `job_metrics`. Pure. They stand in for rank 0's own series where nobody scrapes pods, and
for a pod that is gone before it was scraped. What status knows a new leader tells as well; only the
last scrape knows the rest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from rlhf_api.metrics import METRIC_HELP, LabelledMetric, Metric, MetricLabel
from rlhf_api.names import ConditionType, GuardrailRule, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJobStatus, StageStatus
from rlhf_operator.metrics import UNKNOWN
from rlhf_operator.planning.clocks import pending_since
from rlhf_operator.planning.guardrails import read_evidence
from rlhf_operator.planning.observed import ObservedVerdict
from rlhf_operator.planning.stages import ACTIVE
from rlhf_operator.planning.statuses import stages_of
from rlhf_operator.scraper import Reading

JOB_PREFIX = "rlhf_job_"
NAMESPACE = "namespace"

RULES_WITH_NUMBERS = (
    GuardrailRule.CRITIC_LOSS_DIVERGING,
    GuardrailRule.KL_ABOVE_LIMIT,
    GuardrailRule.REWARD_COLLAPSE,
)
"""Rules whose numbers are told beside the verdict: those that alerts compare. All eleven would take
1,000 jobs beyond 60,000 series."""

_JOB = (NAMESPACE, MetricLabel.JOB)
_STAGE = (*_JOB, MetricLabel.STAGE)
_ATTEMPT = (*_STAGE, MetricLabel.ATTEMPT)
_RULE = (*_ATTEMPT, MetricLabel.RULE)


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


Series = tuple[JobMetric, tuple[str, ...], float]
"""A sample with the values of its labels."""


def _mirrored(metric: Metric | LabelledMetric, labels: tuple[str, ...]) -> JobMetric:
    text = f"{METRIC_HELP[metric]} As last read from the stage's newest attempt that told any."
    return JobMetric(JOB_PREFIX + metric.value, text, labels)


MIRRORED: Mapping[Metric, JobMetric] = {
    metric: _mirrored(metric, _ATTEMPT)
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
    )
}
HEALTH_VALUE = _mirrored(LabelledMetric.HEALTH_VALUE, _RULE)
HEALTH_THRESHOLD = _mirrored(LabelledMetric.HEALTH_THRESHOLD, _RULE)
HEALTH_VERDICT = _mirrored(LabelledMetric.HEALTH_VERDICT, _RULE)
RESTARTS = JobMetric(
    f"{JOB_PREFIX}restarts_total",
    "Restarts of a stage that count against runPolicy.maxRestarts.",
    _STAGE,
)
DISRUPTIONS = JobMetric(
    f"{JOB_PREFIX}disruptions_total",
    "Restarts of a stage that do not count: by preemption, drained nodes and suspension.",
    _STAGE,
)
PENDING_SINCE = JobMetric(
    f"{JOB_PREFIX}pending_timestamp_seconds",
    "Unix time in seconds since when the stage's newest attempt waits for its pods; told while it "
    "does, and not while a queue holds it back.",
    _STAGE,
)
PROGRESS_SINCE = JobMetric(
    f"{JOB_PREFIX}progress_timestamp_seconds",
    "Unix time in seconds at which the stage's step last grew, or its newest attempt began to run; "
    "told while it runs.",
    _STAGE,
)
CONDITION = JobMetric(
    f"{JOB_PREFIX}condition",
    "Conditions of a job, by type and reason: 1 for status True, 0 for False; told while it is one "
    "of the two. Failed has the label stage: the first stage that failed.",
    (*_STAGE, "type", "reason"),
)

JOB_METRICS = (
    *MIRRORED.values(),
    HEALTH_VALUE,
    HEALTH_THRESHOLD,
    HEALTH_VERDICT,
    RESTARTS,
    DISRUPTIONS,
    PENDING_SINCE,
    PROGRESS_SINCE,
    CONDITION,
)
"""Every metric of single jobs, in the order in which they are told."""


def is_told(status: RLHFJobStatus, now: datetime, keep: timedelta) -> bool:
    """Whether a job has series: until `keep` after its end."""
    return status.completion_time is None or now < status.completion_time + keep


def job_series(
    namespace: str, name: str, status: RLHFJobStatus, readings: Mapping[StageName, Reading]
) -> Iterator[Series]:
    """The samples of a job.

    Args:
        namespace: of the job.
        name: of the job.
        status: its last written status.
        readings: what was last read of each stage, as far as any was.
    """
    labels = (namespace, name)
    yield from _conditions(labels, status)
    for stage, told in stages_of(status).items():
        yield from _stage(told, (*labels, stage.value))
        yield from _attempt(told, readings.get(stage), (*labels, stage.value))


def _conditions(labels: tuple[str, ...], status: RLHFJobStatus) -> Iterator[Series]:
    stages = stages_of(status).items()
    failed = next((name.value for name, each in stages if each.state is StageState.FAILED), "")
    for each in status.conditions:
        if isinstance(each.type, ConditionType) and each.status != "Unknown":
            holds = each.status == "True"
            # A label without text is none for Prometheus.
            stage = failed if holds and each.type is ConditionType.FAILED else ""
            yield CONDITION, (*labels, stage, each.type.value, _word(each.reason)), float(holds)


def _word(reason: Reason | str) -> str:
    """The reason, if it is one of ours: of other releases' words there is no end."""
    known = isinstance(reason, Reason) or reason in set(GuardrailRule)
    return str(reason) if known else UNKNOWN


def _stage(stage: StageStatus, labels: tuple[str, ...]) -> Iterator[Series]:
    yield RESTARTS, labels, stage.restarts
    yield DISRUPTIONS, labels, stage.disruptions
    if stage.state is StageState.STARTING and stage.reason is not Reason.QUEUED:
        since = pending_since(stage)
        if since is not None:
            yield PENDING_SINCE, labels, since.timestamp()
    if stage.state is StageState.RUNNING and stage.last_progress_time is not None:
        yield PROGRESS_SINCE, labels, stage.last_progress_time.timestamp()


def _attempt(
    stage: StageStatus, reading: Reading | None, labels: tuple[str, ...]
) -> Iterator[Series]:
    """The samples of the attempt that told any last."""
    reported = stage.reported_attempt or 0
    if reading is not None and reading.attempt < reported:
        reading = None
    attempt = reported if reading is None else reading.attempt
    if not attempt:
        return
    live = stage.state in ACTIVE and stage.attempt == attempt
    labels = (*labels, str(attempt))
    values = _values(stage, reading, live=live)
    for metric, row in MIRRORED.items():
        if metric in values:
            yield row, labels, values[metric]
    for rule, verdict in _verdicts(stage, reading, live=live).items():
        of_rule = (*labels, rule.value)
        yield HEALTH_VERDICT, of_rule, float(verdict.broken)
        if rule in RULES_WITH_NUMBERS:
            if verdict.value is not None:
                yield HEALTH_VALUE, of_rule, verdict.value
            if verdict.threshold is not None:
                yield HEALTH_THRESHOLD, of_rule, verdict.threshold


def _values(stage: StageStatus, reading: Reading | None, *, live: bool) -> dict[str, float]:
    """The newest values by name: those of the result of a stage that is done, else the reading."""
    known = _status_values(stage)
    if reading is not None:
        told = reading.told.metrics
        known = {**told, **known} if stage.state is StageState.SUCCEEDED else {**known, **told}
    steps = [known.get(Metric.LAST_CHECKPOINT_STEP), stage.last_checkpoint_step]
    if newest := [step for step in steps if step is not None]:
        known[Metric.LAST_CHECKPOINT_STEP] = max(newest)
    if not live:
        # Of what does not run nobody can say when it will be done.
        known.pop(Metric.ETA, None)
    return known


def _status_values(stage: StageStatus) -> dict[str, float]:
    values: dict[str, float] = dict(stage.metrics or {})
    progress = stage.progress
    if progress is not None:
        values[Metric.STEP] = progress.step
        values[Metric.TOTAL_STEPS] = progress.total_steps
        if progress.total_steps:
            values[Metric.PROGRESS] = min(1.0, progress.step / progress.total_steps)
        if progress.eta_seconds is not None:
            values[Metric.ETA] = progress.eta_seconds
    return values


def _verdicts(
    stage: StageStatus, reading: Reading | None, *, live: bool
) -> Mapping[GuardrailRule, ObservedVerdict]:
    """Of the rules that are judged; what the attempt said at its end is the last word."""
    told = {} if reading is None else reading.told.verdicts
    runs = live and stage.state is StageState.RUNNING
    if told and (runs or stage.verdicts is None):
        # Of a rule in its warm-up there is no verdict.
        return told
    if stage.verdicts is None:
        return {}
    step = 0 if reading is None else reading.told.step
    # Status does not know which rules were in their warm-up.
    judged = told.keys() | stage.verdicts.keys() if told else set(GuardrailRule)
    return {
        rule: _last_word(stage.verdicts.get(rule), told.get(rule), step)
        for rule in GuardrailRule
        if rule in judged
    }


def _last_word(evidence: str | None, told: ObservedVerdict | None, step: int) -> ObservedVerdict:
    """The verdict in status, with the newest numbers that agree with it.

    Args:
        evidence: the rule's entry in status; None for a rule that is not broken.
        told: the verdict that was read at `step`.
        step: of the reading.
    """
    agrees = told is not None and told.broken == (evidence is not None)
    if evidence is None:
        return told if told is not None and agrees else ObservedVerdict(broken=False)
    ended = read_evidence(evidence)
    later = ended.step is not None and ended.step > step
    return told if told is not None and agrees and not later else ended
