"""The names of training metrics."""

import re

import pytest

from rlhf_api.metrics import (
    LABEL_OF,
    METRIC_HELP,
    PHASE_HELP,
    LabelledMetric,
    Metric,
    Phase,
    metric_name,
    metric_type,
    phases_of,
    stages_of,
)
from rlhf_api.names import StageName


@pytest.mark.parametrize("metric", [*Metric, *LabelledMetric])
def test_series_names_are_prometheus_names(metric: Metric | LabelledMetric) -> None:
    assert re.fullmatch(r"rlhf_train_[a-z][a-z0-9_]*", metric_name(metric))


def test_each_family_has_its_label_and_no_name_stands_twice() -> None:
    assert set(LABEL_OF) == set(LabelledMetric)
    assert not {metric.value for metric in Metric} & {metric.value for metric in LabelledMetric}


def test_every_metric_has_a_help_sentence_with_its_unit() -> None:
    assert set(METRIC_HELP) == {*Metric, *LabelledMetric}
    for metric, text in METRIC_HELP.items():
        assert text.endswith("."), metric
        if metric.value.endswith("_seconds"):
            assert "seconds" in text
        if metric.value.endswith(("_ratio", "_rate", "_share")) and "learning" not in metric.value:
            assert "0 to 1" in text


def test_counters_are_those_that_end_in_total() -> None:
    assert metric_type(Metric.TOKENS) == metric_type(LabelledMetric.PHASE_SECONDS) == "counter"
    assert metric_type(Metric.TOTAL_STEPS) == metric_type(LabelledMetric.HEALTH_VALUE) == "gauge"


@pytest.mark.parametrize(
    ("metric", "stages"),
    [
        (Metric.STEP, ["sft", "reward", "ppo"]),
        (LabelledMetric.PHASE_SECONDS, ["sft", "reward", "ppo"]),
        (Metric.LOSS, ["sft", "reward"]),
        (Metric.PERPLEXITY, ["sft"]),
        (Metric.ACCURACY, ["reward"]),
        (Metric.KL, ["ppo"]),
        (LabelledMetric.HEALTH_VERDICT, ["ppo"]),
    ],
)
def test_metrics_have_their_stages(metric: Metric | LabelledMetric, stages: list[str]) -> None:
    assert list(stages_of(metric)) == stages


def test_only_ppo_has_all_phases() -> None:
    assert set(PHASE_HELP) == set(Phase) == set(phases_of(StageName.PPO))
    other = ("data", "learning", "checkpoint", "evaluation")
    assert phases_of(StageName.SFT) == phases_of(StageName.REWARD) == other
