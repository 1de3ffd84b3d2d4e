"""How far an attempt is, read from rank 0's Prometheus endpoint; bounded in time and size.

Called by `scraper` with the address of a pod whose owners were checked: a pod can lie about its own
job only.
"""

import math
from collections.abc import Iterable, Mapping

import aiohttp
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from pydantic.alias_generators import to_camel

from rlhf_api.errors import RLHFError
from rlhf_api.metrics import (
    METRIC_PREFIX,
    ROW_METRICS,
    LabelledMetric,
    Metric,
    MetricLabel,
    metric_name,
)
from rlhf_api.names import GuardrailRule
from rlhf_api.v1alpha1 import DATASETS, RowCounts
from rlhf_api.v1alpha1.bounds import bounded_count
from rlhf_operator.planning.observed import ObservedProgress, ObservedVerdict

MAX_BYTES = 256 * 1024
MAX_LINE = 4096
TIMEOUT = aiohttp.ClientTimeout(total=2)

_READ = {metric.value for metric in Metric}
_RULES = {rule.value: rule for rule in GuardrailRule}
_DATASETS = {to_camel(name) for name in DATASETS}
_STEPS = (Metric.STEP, Metric.TOTAL_STEPS, Metric.LAST_CHECKPOINT_STEP)
_NEVER_NEGATIVE = (Metric.ETA, Metric.NONFINITE, Metric.LAST_CHECKPOINT_TIMESTAMP)


class ScrapeError(RLHFError):
    """The endpoint did not answer in time, or not with metrics."""


async def scrape(session: aiohttp.ClientSession, address: str, port: int) -> ObservedProgress:
    """What the endpoint at `address` tells.

    Raises:
        ScrapeError: with the address and what is wrong.
    """
    host = f"[{address}]" if ":" in address else address
    url = f"http://{host}:{port}/metrics"
    try:
        async with session.get(url, timeout=TIMEOUT, allow_redirects=False) as response:
            body = await response.content.read(MAX_BYTES + 1)
            while not response.content.at_eof() and len(body) <= MAX_BYTES:
                body += await response.content.read(MAX_BYTES + 1 - len(body))
            if response.status != 200 or len(body) > MAX_BYTES:
                size = f"{len(body)} bytes or more"
                raise ScrapeError(f"{url}: answered {response.status} with {size}")
        text = body.decode()
        _check_lines(text, url)
        families = list(text_string_to_metric_families(text))
        return _progress(_values(families), _verdicts(families), _rows(families))
    except ScrapeError:
        raise
    except Exception as error:  # The parser meets what a pod says with errors of any kind.
        raise ScrapeError(f"{url}: {str(error) or type(error).__name__}") from error


def _check_lines(text: str, url: str) -> None:
    """A line of ours has a few hundred characters; one of many takes the parser half a second."""
    if any(len(line) > MAX_LINE for line in text.split("\n")):
        raise ScrapeError(f"{url}: a line has more than {MAX_LINE} characters")


def _values(families: Iterable[Family]) -> dict[str, float]:
    found = {}
    for family in families:
        for sample in family.samples:
            name = sample.name.removeprefix(METRIC_PREFIX)
            value = _bounded(name, sample.value)
            if name in _READ and value is not None:
                found[name] = value
    return found


def _bounded(name: str, value: float) -> float | None:
    """The value within what its metric can be; None for one that says nothing."""
    if not math.isfinite(value):
        return None
    if name in _STEPS:
        return bounded_count(value)
    if name == Metric.PROGRESS:
        return min(max(value, 0.0), 1.0)
    return None if name in _NEVER_NEGATIVE and value < 0 else value


def _verdicts(families: Iterable[Family]) -> dict[GuardrailRule, ObservedVerdict]:
    """By rule; a rule that is not known here, or whose verdict is not told, is left out."""
    samples = [sample for family in families for sample in family.samples]
    broken, values, thresholds = (
        _by_rule(samples, metric)
        for metric in (
            LabelledMetric.HEALTH_VERDICT,
            LabelledMetric.HEALTH_VALUE,
            LabelledMetric.HEALTH_THRESHOLD,
        )
    )
    return {
        rule: ObservedVerdict(bool(verdict), values.get(rule), thresholds.get(rule))
        for rule, verdict in broken.items()
    }


def _by_rule(samples: Iterable[Sample], metric: LabelledMetric) -> dict[GuardrailRule, float]:
    name = metric_name(metric)
    return {
        _RULES[rule]: sample.value
        for sample in samples
        if sample.name == name
        and (rule := sample.labels.get(MetricLabel.RULE)) in _RULES
        and math.isfinite(sample.value)
    }


def _rows(families: Iterable[Family]) -> dict[str, RowCounts]:
    """By the dataset's field; a field that is not known here is left out."""
    found: dict[str, dict[str, int]] = {}
    names = {metric_name(metric): name for metric, name in ROW_METRICS.items()}
    for sample in (sample for family in families for sample in family.samples):
        dataset = sample.labels.get(MetricLabel.DATASET, "")
        count = bounded_count(sample.value)
        if sample.name in names and dataset in _DATASETS and count is not None:
            found.setdefault(dataset, {})[names[sample.name]] = count
    return {name: RowCounts(**told) for name, told in found.items() if "kept" in told}


def _progress(
    values: Mapping[str, float],
    verdicts: Mapping[GuardrailRule, ObservedVerdict],
    rows: Mapping[str, RowCounts],
) -> ObservedProgress:
    checkpoint = values.get(Metric.LAST_CHECKPOINT_STEP)
    return ObservedProgress(
        step=int(values.get(Metric.STEP, 0)),
        total_steps=int(values.get(Metric.TOTAL_STEPS, 0)),
        eta_seconds=values.get(Metric.ETA),
        metrics=dict(values),
        last_checkpoint_step=None if checkpoint is None else int(checkpoint),
        verdicts=dict(verdicts),
        rows=dict(rows),
    )
