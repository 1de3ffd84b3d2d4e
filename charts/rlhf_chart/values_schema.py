"""From the values' models to `values.schema.json`, which Helm holds every installation against.

Called by `__main__`; `values_file` and `chart_readme` go by the same schema.
"""

import json

from pydantic.alias_generators import to_camel

from rlhf_api.loading import dump_yaml, parse_yaml
from rlhf_chart.values import GIVEN_BY_THE_CHART, THRESHOLDS, Values
from rlhf_chart.values_sentences import Schema, with_sentences, without_null
from rlhf_operator.settings import Settings

_DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest that every Helm 3 reads."""

_OF_A_PARENT: Schema = {
    "global": {"type": "object", "description": "What a parent chart gives to all; not used."},
    "enabled": {"type": "boolean", "description": "For a parent chart's condition; not used."},
}
"""What Helm itself may add where the chart is a dependency of another one."""


def values_schema() -> Schema:
    """The schema of all values, with their defaults; every reference is written out."""
    whole = Values.model_json_schema()
    # By way of YAML, which writes a whole number without a point.
    (defaults,) = parse_yaml(dump_yaml(Values().model_dump(by_alias=True)), "values")
    schema = _written_out(whole, whole["$defs"], defaults)
    _fill_config(schema["properties"]["config"])
    _bound_thresholds(schema["properties"]["prometheusRule"]["properties"]["alerts"])
    return {"$schema": _DIALECT, **schema}


def schema_text() -> str:
    """The text of `values.schema.json`."""
    schema = values_schema()
    told = {name: with_sentences(field, name) for name, field in schema["properties"].items()}
    schema |= without_null(schema)
    schema["properties"] = told | _OF_A_PARENT
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _fill_config(schema: Schema) -> None:
    """What the settings file may hold, but for what the chart gives itself."""
    known = Settings.model_json_schema()["properties"]
    names = {name: to_camel(name) for name in known if name not in GIVEN_BY_THE_CHART}
    schema["properties"] = {key: _plain(known[name]) for name, key in names.items()}
    schema["required"] = list(names.values())
    schema["additionalProperties"] = False
    del schema["default"]


def _bound_thresholds(alerts: Schema) -> None:
    """What each alert's own threshold may be."""
    for name, bounds in THRESHOLDS.items():
        threshold = alerts["properties"][name]["properties"]["threshold"]
        threshold |= bounds
        if "exclusiveMinimum" in bounds:
            del threshold["minimum"]


def _written_out(schema: Schema, models: Schema, default: object) -> Schema:
    """The same without references, and with the default that is in force."""
    found = _plain(schema, models)
    if default is not None:
        found["default"] = default
    inner = found.get("additionalProperties")
    if "properties" in found and ("$ref" in schema or "$defs" in schema):
        _fill(found, models, found["properties"])
        found.pop("default", None)
    elif isinstance(inner, dict) and "$ref" in inner and default:
        # An entry for each thing that there is; no other name means anything.
        _fill(found, models, dict.fromkeys(found["default"], inner))
        found["additionalProperties"] = False
    elif isinstance(inner, dict):
        found["additionalProperties"] = _written_out(inner, models, None)
    if "items" in found:
        found["items"] = _written_out(found["items"], models, None)
    return found


def _fill(found: Schema, models: Schema, fields: Schema) -> None:
    """Write out the fields of an object; those that have a default are there, or may be null."""
    defaults = found.get("default", {})
    found["properties"] = {
        name: _written_out(field, models, defaults.get(name)) for name, field in fields.items()
    }
    if defaults:
        found["required"] = [
            name for name, field in found["properties"].items() if "null" not in field["type"]
        ]


def _plain(schema: Schema, models: Schema | None = None) -> Schema:
    """The same with its reference resolved, texts on one line, and without titles."""
    found = dict(schema)
    if models and "$ref" in found:
        found = models[found.pop("$ref").rsplit("/", 1)[1]] | found
    if "description" in found:
        found["description"] = " ".join(found["description"].split())
    return {key: value for key, value in found.items() if key not in ("title", "$defs")}
