"""The names of training metrics."""

import re

import pytest

from rlhf_api.metrics import LABEL_OF, LabelledMetric, Metric, metric_name


@pytest.mark.parametrize("metric", [*Metric, *LabelledMetric])
def test_series_names_are_prometheus_names(metric: Metric | LabelledMetric) -> None:
    assert re.fullmatch(r"rlhf_train_[a-z][a-z0-9_]*", metric_name(metric))


def test_each_family_has_its_label_and_no_name_stands_twice() -> None:
    assert set(LABEL_OF) == set(LabelledMetric)
    assert not {metric.value for metric in Metric} & {metric.value for metric in LabelledMetric}
