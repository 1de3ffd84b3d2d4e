"""An API lint over the whole CRD: what an API server, `kubectl apply` or a reader would mind."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_api.loading import read_yaml

Schema = dict[str, Any]

PATH = Path(__file__).resolve().parents[2] / "crds" / "rlhfjobs.yaml"
MAX_BYTES = 200_000
"""Client-side `kubectl apply` keeps it as JSON in an annotation of at most 262,144 bytes."""
REFUSED_KEYS = {
    "$ref",
    "$defs",
    "allOf",
    "const",
    "default",
    "nullable",
    "oneOf",
    "patternProperties",
    "prefixItems",
    "propertyNames",
    "title",
    "uniqueItems",
    "x-kubernetes-preserve-unknown-fields",
}
# An API server sets these itself, and allows nothing to be said of metadata.
ROOT_FIELDS = {".apiVersion", ".kind", ".metadata"}


def crd() -> Schema:
    (document,) = read_yaml(PATH)
    assert isinstance(document, dict)
    return document


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema in the tree with its path, those of items and map values included."""
    yield path, schema
    for name, field in schema.get("properties", {}).items():
        yield from walk(field, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}.*")


def all_schemas() -> list[tuple[str, Schema]]:
    (version,) = crd()["spec"]["versions"]
    found = list(walk(version["schema"]["openAPIV3Schema"]))
    assert len(found) > 500
    return found


SCHEMAS = all_schemas()
FIELDS = [(path, schema) for path, schema in SCHEMAS if path not in ROOT_FIELDS]


def test_size() -> None:
    assert len(json.dumps(crd(), separators=(",", ":")).encode()) < MAX_BYTES


def test_nothing_that_an_api_server_refuses() -> None:
    assert [path for path, schema in SCHEMAS if REFUSED_KEYS & set(schema)] == []
    assert [p for p, s in SCHEMAS if s.get("additionalProperties") is False] == []


def test_metadata_is_left_to_the_api_server() -> None:
    assert dict(SCHEMAS)[".metadata"] == {"type": "object"}


def test_every_schema_has_one_type() -> None:
    for path, schema in SCHEMAS:
        if schema.get("x-kubernetes-int-or-string"):
            assert "type" not in schema, path
            assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}], path
        else:
            assert schema["type"] in {"object", "array", "string", "integer", "number", "boolean"}
            assert "anyOf" not in schema, path


def test_objects_have_fields_or_values() -> None:
    for path, schema in FIELDS:
        if schema.get("type") == "object":
            assert ("properties" in schema) != ("additionalProperties" in schema), path


@pytest.mark.parametrize(
    ("kind", "bound"), [("string", "maxLength"), ("array", "maxItems"), ("map", "maxProperties")]
)
def test_everything_is_bounded(kind: str, bound: str) -> None:
    def is_kind(schema: Schema) -> bool:
        if kind == "map":
            return "additionalProperties" in schema
        return schema.get("type") == kind

    unbounded = [
        path
        for path, schema in FIELDS
        if is_kind(schema)
        and bound not in schema
        and "enum" not in schema
        and schema.get("format") != "date-time"
    ]
    assert unbounded == []


def test_numbers_have_format_and_bounds() -> None:
    for path, schema in FIELDS:
        if schema.get("type") == "integer":
            assert schema["format"] in ("int32", "int64"), path
            assert {"minimum", "maximum"} <= set(schema), path
        if schema.get("type") == "number":
            assert schema["format"] == "double", path
            assert path.startswith(".status") or {"minimum", "maximum"} <= set(schema), path
        for exclusive in ("exclusiveMinimum", "exclusiveMaximum"):
            assert schema.get(exclusive, True) is True, path


def test_lists_say_how_they_merge() -> None:
    for path, schema in SCHEMAS:
        if schema.get("type") != "array":
            continue
        kind = schema["x-kubernetes-list-type"]
        assert kind in ("atomic", "map"), path
        if kind == "map":
            keys = schema["x-kubernetes-list-map-keys"]
            assert set(keys) <= set(schema["items"]["required"]), path


def test_the_lists_that_merge_by_key() -> None:
    found = dict(SCHEMAS)
    for path, key in {
        ".status.conditions": "type",
        ".spec.template.env": "name",
        ".spec.stages.ppo.env": "name",
        ".spec.template.volumes": "name",
    }.items():
        assert found[path]["x-kubernetes-list-map-keys"] == [key]


def test_every_field_is_described() -> None:
    for path, schema in SCHEMAS:
        for name, field in schema.get("properties", {}).items():
            if f"{path}.{name}" == ".metadata":
                continue
            text = field["description"]
            assert text.endswith("."), (path, name)
            assert 2 < len(text) <= 320, (path, name)
            assert "\n" not in text, (path, name)
            assert text.count("Default: ") <= 1, (path, name)
            # One sentence, whatever the default is.
            assert ". " not in text.split(" Default: ")[0], (path, name)


def test_rules_have_messages() -> None:
    rules = [rule for _, schema in SCHEMAS for rule in schema.get("x-kubernetes-validations", ())]
    assert len(rules) > 30
    for rule in rules:
        assert set(rule) == {"rule", "message"}
        # An API server's bounds.
        assert len(rule["message"]) <= 2048
        assert "\n" not in rule["rule"] + rule["message"]
