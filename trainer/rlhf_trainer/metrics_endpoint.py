"""The Prometheus endpoint of rank 0: the newest value of every metric, as text over HTTP.

Fed by `report`. Holds its own registry, so that two reporters in one process never meet, and never
stops a training: a port that is taken is a warning.
"""

import importlib.metadata
import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from rlhf_api.metrics import (
    LABEL_OF,
    METRIC_PREFIX,
    LabelledMetric,
    Metric,
    MetricLabel,
    metric_name,
)
from rlhf_api.v1alpha1 import StageConfig

logger = logging.getLogger(__name__)

BUILD_INFO = METRIC_PREFIX + "build_info"
_PACKAGES = {
    "version": "rlhf-operator",
    "torch": "torch",
    "deepspeed": "deepspeed",
    "transformers": "transformers",
}

HELP: dict[Metric, str] = {
    Metric.STEP: "Steps done.",
    Metric.TOTAL_STEPS: "Steps in all.",
    Metric.EPOCH: "Passes over the dataset done, with fractions.",
    Metric.PROGRESS: "Share of the steps done, 0 to 1.",
    Metric.ETA: "Estimated time to the last step in seconds.",
    Metric.LOSS: "Training loss of the last step, in nats a token or a pair.",
    Metric.LEARNING_RATE: "Learning rate of the last step; of the actor in PPO.",
    Metric.GRADIENT_NORM: "Global norm of the gradient before clipping; of the actor in PPO.",
    Metric.TOKENS_PER_SECOND: "Real tokens trained on a second, over all ranks.",
    Metric.SAMPLES_PER_SECOND: "Sequences, pairs or prompts a second, over all ranks.",
    Metric.STEP_SECONDS: "Time of the last step in seconds.",
    Metric.LAST_CHECKPOINT_STEP: "Step of the newest complete checkpoint.",
    Metric.NONFINITE: "Metric values of this attempt that were NaN or infinite.",
    Metric.EVAL_LOSS: "Loss on the held-out rows, in nats a token or a pair.",
    Metric.PERPLEXITY: "Perplexity on the held-out rows.",
    Metric.ACCURACY: "Share of pairs whose chosen response scores higher, 0 to 1.",
    Metric.CHOSEN_SCORE: "Mean score of chosen responses.",
    Metric.REJECTED_SCORE: "Mean score of rejected responses.",
    Metric.SCORE_MARGIN: "Mean difference of the scores of a pair.",
    Metric.REWARD: "Mean score of the last rollout.",
    Metric.REWARD_STD: "Standard deviation of the scores of the last rollout.",
    Metric.REWARD_SCALE: "What scores, or whole token rewards, are divided by.",
    Metric.KL: "KL of actor against reference in nats an answer.",
    Metric.KL_COEF: "Weight of the KL penalty.",
    Metric.APPROX_KL: "Drift of the actor within the last update in nats a token.",
    Metric.POLICY_LOSS: "Clipped policy loss of the last update.",
    Metric.PTX_LOSS: "Loss on ptxDataset in the last update before its weight, in nats a token.",
    Metric.CRITIC_LOSS: (
        "Value loss of the last update, before its weight; in units of value_scale under PopArt."
    ),
    Metric.CRITIC_LOSS_BASELINE: "Median value loss at the start, which its growth is judged by.",
    Metric.CRITIC_LOSS_OF_MEAN: (
        "Value loss that the mean return as every value would have: half the returns' variance."
    ),
    Metric.CRITIC_LEARNING_RATE: "Learning rate of the critic.",
    Metric.CRITIC_GRADIENT_NORM: "Global norm of the critic's gradient before clipping.",
    Metric.EXPLAINED_VARIANCE: "Share of the returns' variance that the critic explains.",
    Metric.VALUE_MEAN: "Running mean of the returns, which PopArt takes off the critic's target.",
    Metric.VALUE_SCALE: "Running deviation of the returns, which PopArt divides the target by.",
    Metric.ENTROPY: "Mean entropy of the actor in nats a token.",
    Metric.CLIP_SHARE: "Share of tokens whose ratio was clipped, 0 to 1.",
    Metric.RATIO_MEAN: "Mean probability ratio of the last update.",
    Metric.RETURNS_MEAN: "Mean return over tokens.",
    Metric.RETURNS_STD: "Standard deviation of the returns over tokens.",
    Metric.RETURNS_ABS_MEAN: "Mean absolute return over tokens.",
    Metric.ADVANTAGES_STD: "Standard deviation of the advantages before normalisation.",
    Metric.RESPONSE_TOKENS: "Mean length of a response in tokens, EOS included.",
    Metric.RESPONSE_TOKENS_P05: "5 % quantile of the length of a response in tokens.",
    Metric.RESPONSE_TOKENS_P50: "Median length of a response in tokens.",
    Metric.RESPONSE_TOKENS_P95: "95 % quantile of the length of a response in tokens.",
    Metric.EOS_RATE: "Share of responses that end by EOS or a stop token, 0 to 1.",
    Metric.DISTINCT_2: "Share of distinct pairs of neighbouring tokens in responses, 0 to 1.",
    Metric.SAMPLER_DRIFT: "Mean absolute log-probability gap of sampler and trainer in nats.",
}


LABELLED_HELP: dict[LabelledMetric, str] = {
    LabelledMetric.REWARD_COMPONENT: "Mean of one reward of the last rollout, before its weight.",
    LabelledMetric.HEALTH_VALUE: "Quantity that a guardrail's rule compares with its threshold.",
    LabelledMetric.HEALTH_THRESHOLD: "Threshold of a guardrail's rule that is in force.",
    LabelledMetric.HEALTH_VERDICT: "Whether a guardrail's rule is broken: 1 if it is, else 0.",
    LabelledMetric.HEALTH_START: "Median at the start of the metric that a rule of health judges.",
    LabelledMetric.HEALTH_BEST: "Best level so far of the metric that a rule of health judges.",
}


class _Newest(Collector):
    """The newest values; series that were never set do not exist."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._labels = dict(labels)
        self._values: dict[Metric, float] = {Metric.NONFINITE: 0.0}
        self._labelled: dict[LabelledMetric, dict[str, float]] = {}
        self._lock = threading.Lock()
        self._build = {label: _version(package) for label, package in _PACKAGES.items()}

    def set(self, values: Mapping[Metric, float]) -> None:
        with self._lock:
            self._values.update(values)

    def set_labelled(self, metric: LabelledMetric, values: Mapping[str, float]) -> None:
        with self._lock:
            self._labelled[metric] = dict(values)

    def count_nonfinite(self, number: int) -> None:
        with self._lock:
            self._values[Metric.NONFINITE] += number

    def collect(self) -> Iterable[Family]:
        with self._lock:
            values, labelled = dict(self._values), dict(self._labelled)
        yield from self._families(values)
        yield from self._labelled_families(labelled)

    def _families(self, values: Mapping[Metric, float]) -> Iterator[Family]:
        names, texts = list(self._labels), list(self._labels.values())
        build = GaugeMetricFamily(
            BUILD_INFO, "Versions of what trains; always 1.", labels=[*names, *self._build]
        )
        build.add_metric([*texts, *self._build.values()], 1.0)
        yield build
        for metric, value in values.items():
            kind = CounterMetricFamily if metric.value.endswith("_total") else GaugeMetricFamily
            family = kind(metric_name(metric), HELP[metric], labels=names)
            family.add_metric(texts, value)
            yield family

    def _labelled_families(
        self, labelled: Mapping[LabelledMetric, Mapping[str, float]]
    ) -> Iterator[Family]:
        names, texts = list(self._labels), list(self._labels.values())
        for metric, values in labelled.items():
            family = GaugeMetricFamily(
                metric_name(metric), LABELLED_HELP[metric], labels=[*names, LABEL_OF[metric]]
            )
            for label, value in values.items():
                family.add_metric([*texts, label], value)
            yield family


class MetricsEndpoint:
    """Serves what it was given last.

    Attributes:
        port: where it listens; None if the configured port was taken.
    """

    def __init__(self, config: StageConfig) -> None:
        self._newest = _Newest(
            {
                MetricLabel.JOB: config.job.name,
                MetricLabel.STAGE: config.stage.value,
                MetricLabel.ATTEMPT: str(config.attempt),
            }
        )
        registry = CollectorRegistry()
        registry.register(self._newest)
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        self.port: int | None = None
        # A free port is chosen on a person's own machine, where nobody else should read it; a
        # fixed one is a pod's, which Prometheus and the operator reach from outside.
        address = "0.0.0.0" if config.metrics_port else "127.0.0.1"
        try:
            self._server, self._thread = start_http_server(
                config.metrics_port, addr=address, registry=registry
            )
        except OSError as error:
            logger.warning(
                "metricsPort %d on %s cannot be opened (%s); training goes on without the "
                "Prometheus endpoint, metrics stand in events.jsonl",
                config.metrics_port,
                address,
                error,
            )
            return
        self.port = self._server.server_port

    def set(self, values: Mapping[Metric, float]) -> None:
        """Replace the values of these metrics."""
        self._newest.set(values)

    def set_labelled(self, metric: LabelledMetric, values: Mapping[str, float]) -> None:
        """Replace all series of this family, by the value of its label."""
        self._newest.set_labelled(metric, values)

    def count_nonfinite(self, number: int) -> None:
        """Add to the counter of values that were NaN or infinite."""
        self._newest.count_nonfinite(number)

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._server = self._thread = None


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
