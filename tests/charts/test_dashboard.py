"""The dashboard's ConfigMap as Helm 3 and Helm 4 render it."""

from typing import Any

import pytest
from chart_renders import CHART, rendered

FILE = CHART / "files" / "dashboard.json"

Raw = dict[str, Any]


def config_maps(major: int, *values: str) -> list[Raw]:
    objects = rendered(major, *values)
    return [each for each in objects if each["metadata"]["name"].endswith("-dashboard")]


@pytest.mark.parametrize("major", [3, 4])
def test_the_sidecar_finds_the_dashboard_where_it_is_switched_on(major: int) -> None:
    (found,) = config_maps(
        major,
        "grafana.dashboard.enabled=true",
        "grafana.dashboard.namespace=monitoring",
        "grafana.dashboard.annotations.grafana_folder=RLHF",
    )
    assert found["kind"] == "ConfigMap"
    metadata = found["metadata"]
    assert metadata["namespace"] == "monitoring"
    assert metadata["labels"]["grafana_dashboard"] == "1"
    assert metadata["annotations"] == {"grafana_folder": "RLHF"}
    assert found["data"] == {"rlhf-operator.json": FILE.read_text()}


def test_it_lies_beside_the_operator_unless_told() -> None:
    (found,) = config_maps(4, "grafana.dashboard.enabled=true")
    assert found["metadata"]["namespace"] == "ops"
    assert "annotations" not in found["metadata"]


def test_it_is_left_out_unless_asked_for() -> None:
    assert config_maps(4) == []
