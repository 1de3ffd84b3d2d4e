"""The names of training metrics."""

import re

import pytest

from rlhf_api.metrics import LABEL_OF, METRIC_HELP, LabelledMetric, Metric, metric_name


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
