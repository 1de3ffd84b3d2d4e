"""The chart's values as a schema, a file and a page: all from one model."""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic.alias_generators import to_camel

from rlhf_chart.alerts import ALERTS
from rlhf_chart.chart_readme import readme_text
from rlhf_chart.value_types import OTHER_VOLUMES
from rlhf_chart.values import GIVEN_BY_THE_CHART, THRESHOLDS, Values
from rlhf_chart.values_file import values_text
from rlhf_chart.values_schema import schema_text, values_schema
from rlhf_chart.values_sentences import Schema
from rlhf_operator.settings import Settings


def kinds_of(schema: Schema) -> list[str]:
    """The types that a value may have."""
    kinds = schema.get("type", [])
    return [kinds] if isinstance(kinds, str) else kinds


def objects_in(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every object in a schema, by its path."""
    if "object" in kinds_of(schema):
        yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from objects_in(field, f"{path}.{name}".lstrip("."))
    if "items" in schema:
        yield from objects_in(schema["items"], f"{path}[]")


def leaves_of(values: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the values that hold no others."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves_of(value, f"{path}{name}.")
        else:
            yield f"{path}{name}"


def test_an_object_takes_the_keys_that_it_names_and_no_others() -> None:
    free = {
        path
        for path, found in objects_in(values_schema())
        if found.get("additionalProperties") is not False and not path.endswith(".matchLabels")
    }
    assert free == {
        "commonAnnotations",
        "commonLabels",
        "extraEnv[].valueFrom.configMapKeyRef",
        "extraEnv[].valueFrom.fieldRef",
        "extraEnv[].valueFrom.fileKeyRef",
        "extraEnv[].valueFrom.resourceFieldRef",
        "extraEnv[].valueFrom.secretKeyRef",
        "extraVolumes[].configMap",
        "extraVolumes[].hostPath",
        "extraVolumes[].persistentVolumeClaim",
        "extraVolumes[].secret",
        *(f"extraVolumes[].{kind}" for kind in OTHER_VOLUMES),
        "grafana.alerts.labels",
        "grafana.dashboard.annotations",
        "grafana.dashboard.labels",
        "metrics.podMonitor.additionalLabels",
        "metrics.serviceMonitor.additionalLabels",
        "nodeSelector",
        "podAnnotations",
        "podLabels",
        "prometheusRule.additionalLabels",
        "resources.claims[]",
        "resources.limits",
        "resources.requests",
        "serviceAccount.annotations",
    }


def test_no_reference_is_left() -> None:
    assert not re.search(r'"(\$ref|\$defs|anyOf|title)"', schema_text())


def leaves_in(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema but the conditions of its sentences."""
    if path:
        yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from leaves_in(field, f"{path}.{name}".lstrip("."))
    for part in ("items", "propertyNames", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from leaves_in(schema[part], f"{path}[{part}]")


def test_every_value_is_asked_for_in_words() -> None:
    schema = json.loads(schema_text())
    found = dict(leaves_in(schema))
    assert len(found) > 150
    for path in ("global", "enabled"):
        del found[path]
    for path, each in found.items():
        # Of a wrong type Helm would tell alone, and in its own words.
        assert "type" not in each, path
        if "enum" in each:
            continue
        parts = [part for part in (each, each.get("then")) if part]
        for (sentence,) in (part["else"]["enum"] for part in parts):
            assert re.match(r"(a|an|the|true|addresses|in) ", sentence), path
            # Helm 3 would put a backslash before the one, Helm 4 before the other.
            assert not set(sentence) & set("'\"\\"), path
        bounds = {"minimum", "maximum", "exclusiveMinimum", "pattern", "maxLength", "not", "allOf"}
        asked = set(each["if"]) | set(each.get("then", {}).get("if", {}))
        assert bounds & set(each) <= asked, path
    assert '"wanted"' not in schema_text()


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
    # Kubernetes explains those of its own.
    unexplained = [each for each in unexplained if "ecurityContext." not in each]
    assert unexplained == []


def test_config_is_what_the_operator_knows() -> None:
    config = values_schema()["properties"]["config"]
    expected = {to_camel(name) for name in set(Settings.model_fields) - GIVEN_BY_THE_CHART}
    assert set(config["properties"]) == set(config["required"]) == expected
    assert config["properties"]["workers"]["maximum"] == 256
    assert config["properties"]["workers"]["default"] == Settings.model_fields["workers"].default


def test_thresholds_are_bounded_for_alerts_that_have_one() -> None:
    assert set(THRESHOLDS) <= {each.name for each in ALERTS if each.has_threshold}
    alerts = values_schema()["properties"]["prometheusRule"]["properties"]["alerts"]["properties"]
    least = {"minimum", "exclusiveMinimum"}
    for name, alert in alerts.items():
        assert len(least & set(alert["properties"]["threshold"])) == 1, name


def test_there_is_a_value_for_each_alert() -> None:
    alerts = values_schema()["properties"]["prometheusRule"]["properties"]["alerts"]
    assert list(alerts["properties"]) == [each.name for each in ALERTS]
    for each in ALERTS:
        fields = alerts["properties"][each.name]
        assert set(fields["required"]) == set(each.values()) - {"threshold"}
        assert fields["properties"]["for"]["default"] == each.wait


def test_the_page_shows_each_value() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", readme_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
    leaves = list(leaves_of(yaml.safe_load(values_text())))
    # The default of a whole map or object shows what it holds.
    assert [leaf for leaf in leaves if not any(f"{leaf}.".startswith(f"{r}.") for r in rows)] == []
    assert [
        row for row in rows if not any(f"{leaf}.".startswith(f"{row}.") for leaf in leaves)
    ] == []


def test_a_parent_chart_may_add_what_helm_adds() -> None:
    assert '"global"' in schema_text()
