"""The chart's values as a schema, a file and a page: all from one model."""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from rlhf_chart.chart_readme import readme_text
from rlhf_chart.values import GIVEN_BY_THE_CHART, Values
from rlhf_chart.values_file import values_text
from rlhf_chart.values_schema import Schema, schema_text, values_schema
from rlhf_operator.settings import Settings


def objects_in(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every object in a schema, by its path."""
    if schema.get("type") == "object":
        yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from objects_in(field, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from objects_in(schema["items"], f"{path}[]")


def leaves_of(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the values that the models name."""
    for name, value in values.items():
        yield f"{path}{name}"
        if isinstance(value, dict):
            yield from leaves_of(value, f"{path}{name}.")


def test_an_object_takes_the_keys_that_it_names_and_no_others() -> None:
    free = {
        path
        for path, found in objects_in(values_schema())
        if found.get("additionalProperties") is not False
    } - {"prometheusRule.alerts"}
    assert free == {
        "affinity",
        "extraEnv[]",
        "extraVolumeMounts[]",
        "extraVolumes[]",
        "grafana.alerts.labels",
        "grafana.dashboard.annotations",
        "grafana.dashboard.labels",
        "metrics.podMonitor.additionalLabels",
        "metrics.serviceMonitor.additionalLabels",
        "networkPolicy.extraEgress[]",
        "networkPolicy.ingressFrom[]",
        "nodeSelector",
        "podAnnotations",
        "podLabels",
        "prometheusRule.additionalLabels",
        "resources",
        "serviceAccount.annotations",
        "tolerations[]",
        "topologySpreadConstraints[]",
    }


def test_no_reference_is_left() -> None:
    assert not re.search(r'"(\$ref|\$defs|anyOf|title)"', schema_text())


def test_the_file_holds_the_defaults() -> None:
    assert yaml.safe_load(values_text()) == Values().model_dump(by_alias=True)


def test_every_value_is_explained() -> None:
    schema = values_schema()
    unexplained = [
        f"{path}.{name}"
        for path, found in objects_in(schema)
        for name, field in found.get("properties", {}).items()
        if "description" not in field and not path.endswith(".alerts")
    ]
    assert unexplained == []


def test_config_is_what_the_operator_knows() -> None:
    config = values_schema()["properties"]["config"]
    expected = {to_camel(name) for name in set(Settings.model_fields) - GIVEN_BY_THE_CHART}
    assert set(config["properties"]) == set(config["required"]) == expected
    assert config["properties"]["workers"]["maximum"] == 256
    assert config["properties"]["workers"]["default"] == Settings.model_fields["workers"].default


def test_the_page_has_a_row_for_each_value() -> None:
    rows = set(re.findall(r"^\| `([^`]+)` \|", readme_text(), re.MULTILINE))
    paths = set(leaves_of(yaml.safe_load(values_text())))
    assert rows <= paths
    above = {path for path in paths if any(row.startswith(f"{path}.") for row in rows)}
    inside_a_default = {path for path in paths if any(path.startswith(f"{r}.") for r in rows)}
    assert paths - above - inside_a_default == rows


def test_a_parent_chart_may_add_what_helm_adds() -> None:
    assert '"global"' in schema_text()
