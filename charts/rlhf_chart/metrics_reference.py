"""From the definitions of all metrics to docs/metrics.md: how to scrape them, and what each tells.

Pure; the trainer's come from the contract, since what is made here knows no trainer.
"""

from collections.abc import Iterable, Iterator, Sequence

from prometheus_client.metrics import MetricWrapperBase

from rlhf_api.metrics import (
    BUILD_INFO,
    BUILD_INFO_HELP,
    BUILD_PACKAGES,
    LABEL_OF,
    METRIC_HELP,
    PHASE_HELP,
    LabelledMetric,
    Metric,
    MetricLabel,
    Phase,
    metric_name,
    metric_type,
    phases_of,
    stages_of,
)
from rlhf_api.names import OPERATOR_NAME, Label, Port, StageName
from rlhf_operator import metrics as operator_metrics
from rlhf_operator.job_series import JOB_METRICS, RULES_WITH_NUMBERS, JobMetric

COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"


def _meta(label: str) -> str:
    """Under which name Prometheus' discovery tells a pod's label."""
    return "__meta_kubernetes_pod_label_" + "".join(c if c.isalnum() else "_" for c in label)


SCRAPE_CONFIG = f"""\
scrape_configs:
  - job_name: rlhf-training
    kubernetes_sd_configs: [{{role: pod}}]
    relabel_configs:
      # Rank 0 alone tells metrics.
      - source_labels:
          - {_meta(Label.MANAGED_BY)}
          - {_meta(COMPLETION_INDEX)}
          - __meta_kubernetes_pod_container_port_name
          - __meta_kubernetes_pod_phase
        regex: {OPERATOR_NAME};0;{Port.METRICS_NAME};Running
        action: keep
      - {{source_labels: [__meta_kubernetes_namespace], target_label: namespace}}
      - {{source_labels: [__meta_kubernetes_pod_name], target_label: pod}}
  - job_name: rlhf-operator
    # The namespace of a job's series is the job's, not the operator's.
    honor_labels: true
    kubernetes_sd_configs: [{{role: pod}}]
    relabel_configs:
      - source_labels:
          - {_meta("app.kubernetes.io/name")}
          - __meta_kubernetes_pod_container_port_name
          - __meta_kubernetes_pod_phase
        regex: {OPERATOR_NAME};{Port.METRICS_NAME};Running
        action: keep
      - {{source_labels: [__meta_kubernetes_namespace], target_label: namespace}}
      - {{source_labels: [__meta_kubernetes_pod_name], target_label: pod}}
"""

_HEAD = f"""\
# Metrics

Made from the code by `make generate`. Rank 0 of a stage's attempt tells `rlhf_train_*` at
`/metrics` on port {Port.METRICS}, the operator `rlhf_operator_*` and `rlhf_job_*` on port 8080. In
both pods the port has the name `{Port.METRICS_NAME}`.

## How Prometheus finds them

With prometheus-operator: the chart's values `metrics.podMonitor.enabled`, for training pods, and
`metrics.serviceMonitor.enabled`, for the operator. Without it this is the configuration; pods need
no annotations:

```yaml
{SCRAPE_CONFIG}```

`rlhf run` chooses a free port on the loopback, and tells it as `metricsPort` in the first line of
`events.jsonl`.
"""

_LABELS = """\
## Labels

Every series of a training pod has the labels `rlhfjob`, `stage` and `attempt`; the scrape adds the
namespace. None is called `job` or `instance`: these are Prometheus' own.

- `attempt` counts the starts of a stage from 1. A stage that crashed, was disrupted or was resumed
  goes on from its last checkpoint as the next attempt, in new pods with new series.
- Counters (`*_total`) begin at 0 with each attempt, and steps that an attempt does again count
  again. Over all attempts:
  `sum by (namespace, rlhfjob, stage) (increase(rlhf_train_tokens_total[1h]))`.
- Gauges are of the last step; `perplexity` and those that begin with `eval_` are of the held-out
  rows at the last evaluation.
- `rule` is one of the rules of [guardrails.md](guardrails.md), `reward` a name from
  `spec.stages.ppo.rewards`.
- `phase` is what rank 0 spends its time on. In a step, data, rollout, scoring and learning add up
  to nearly all of its time; checkpoints and evaluations lie between steps. Work that a GPU was
  given counts where its result is waited for.
"""

_TRAINER = """\
## `rlhf_train_*`: an attempt, by its rank 0

A series appears with its first value, so that those of an option that is off are missing. Values
that are NaN or infinite are served as such, and counted.
"""

_NUMBERED = ", ".join(f"`{rule}`" for rule in RULES_WITH_NUMBERS)
_JOBS = f"""\
## `rlhf_job_*`: every job, by the operator that leads

They stand in for the series of rank 0 where nobody scrapes pods, and for a pod that is gone before
it was scraped: the verdicts of its last word are among them. A job has them until
`config.jobMetricsSeconds` (15 minutes) after its end, or its deletion; a stage has one attempt at a
time, the newest that told any. After a change of leader those that status does not keep come back
with the next reading of the pod. Value and threshold are told of the rules
{_NUMBERED} only, verdicts of all.
"""

_OPERATOR = """\
## `rlhf_operator_*`: the operator itself

A histogram `x` is told as `x_bucket`, `x_sum` and `x_count`.
"""

_ATTEMPT = (MetricLabel.JOB, MetricLabel.STAGE, MetricLabel.ATTEMPT)


def metrics_reference() -> str:
    """The whole page as Markdown."""
    parts = [_HEAD, _LABELS, _table(("`phase`", "stages", "meaning"), _phases())]
    parts += [_TRAINER, _table(("series", "type", "labels", "stages", "meaning"), _trainer())]
    parts += [_JOBS, _table(("series", "type", "labels", "meaning"), _jobs(JOB_METRICS))]
    parts += [_OPERATOR, _table(("series", "type", "labels", "meaning"), _operator())]
    return "\n".join(parts)


def _phases() -> Iterator[Sequence[str]]:
    for phase in Phase:
        stages = [stage for stage in StageName if phase in phases_of(stage)]
        yield f"`{phase}`", _stages(stages), PHASE_HELP[phase]


def _trainer() -> Iterator[Sequence[str]]:
    for metric in (*Metric, *LabelledMetric):
        more = (LABEL_OF[metric],) if isinstance(metric, LabelledMetric) else ()
        yield (
            f"`{metric_name(metric)}`",
            metric_type(metric),
            _labels((*_ATTEMPT, *more)),
            _stages(stages_of(metric)),
            METRIC_HELP[metric],
        )
    labels = _labels((*_ATTEMPT, *BUILD_PACKAGES))
    yield f"`{BUILD_INFO}`", "gauge", labels, _stages(list(StageName)), BUILD_INFO_HELP


def _jobs(metrics: Iterable[JobMetric]) -> Iterator[Sequence[str]]:
    for metric in metrics:
        kind = "counter" if metric.name.endswith("_total") else "gauge"
        yield f"`{metric.name}`", kind, _labels(metric.labels), metric.help


def _operator() -> Iterator[Sequence[str]]:
    found = vars(operator_metrics).values()
    for metric in (each for each in found if isinstance(each, MetricWrapperBase)):
        (family,) = metric.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        # The library tells the names of labels only with samples, and here nothing has happened.
        labels = _labels(metric._labelnames)
        yield f"`{name}`", family.type, labels, family.documentation


def _stages(stages: Sequence[StageName]) -> str:
    return "all" if set(stages) == set(StageName) else ", ".join(stages)


def _labels(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(_line(cells) for cells in (head, ["---"] * len(head), *rows))


def _line(cells: Iterable[str]) -> str:
    escaped = (cell.replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |\n"
