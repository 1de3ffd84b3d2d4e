"""From the CRD's schema to docs/spec.md: every field of an RLHFJob, for people. Pure."""

from collections.abc import Iterator
from typing import Any

from rlhf_api.names import KIND
from rlhf_api.schema import Schema, resource_schema

_HEAD = f"""\
# Fields of an {KIND}

Made from the models by `make generate`; the same texts stand behind `kubectl explain rlhfjob.spec`.
A field in **bold** must be set. Defaults are applied when a stage starts and are never written into
the object.
"""


def spec_reference() -> str:
    """The whole page as Markdown."""
    schema = resource_schema()
    parts = [_HEAD]
    for name in ("spec", "status"):
        parts.extend(_sections(name, schema["properties"][name]))
    return "\n".join(parts)


def _sections(path: str, schema: Schema) -> Iterator[str]:
    """A table for the object at `path`, then those of the objects below it."""
    required = schema.get("required", [])
    lines = [f"## `{path}`", "", schema.get("description", ""), ""]
    lines += ["| field | type | meaning |", "| --- | --- | --- |"]
    below: list[tuple[str, Schema]] = []
    for name, field in schema["properties"].items():
        shown = f"**`{name}`**" if name in required else f"`{name}`"
        lines.append(f"| {shown} | {_type(field)} | {_cell(field.get('description', ''))} |")
        inner, suffix = _object_in(field)
        if inner is not None:
            below.append((f"{path}.{name}{suffix}", inner))
    rules = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    if rules:
        lines += ["", "Rules:", "", *(f"- {message}" for message in rules)]
    yield "\n".join(lines) + "\n"
    for inner_path, inner in below:
        yield from _sections(inner_path, inner)


def _object_in(field: Schema) -> tuple[Schema | None, str]:
    """The object with fields of its own that `field` is or lists, and what its path ends in."""
    if "properties" in field:
        return field, ""
    for key, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        if "properties" in field.get(key, {}):
            return field[key], suffix
    return None, ""


def _type(field: Schema) -> str:
    if "x-kubernetes-int-or-string" in field:
        return "quantity"
    if "enum" in field:
        return " or ".join(f"`{value}`" if value else '`""`' for value in field["enum"])
    kind: str = field["type"]
    if kind == "array":
        return f"list of {_type(field['items'])}{_range(field, 'minItems', 'maxItems')}"
    if kind == "object" and "additionalProperties" in field:
        return f"map of {_type(field['additionalProperties'])}"
    if kind in ("integer", "number"):
        return kind + _bounds(field)
    return kind + (f" of at most {field['maxLength']}" if "maxLength" in field else "")


def _range(field: Schema, least: str, most: str) -> str:
    if field.get(least) == field.get(most):
        return f", exactly {field[most]}"
    return f", at most {field[most]}"


def _bounds(field: Schema) -> str:
    parts = []
    if "minimum" in field:
        parts.append(("> " if field.get("exclusiveMinimum") else ">= ") + _number(field["minimum"]))
    if "maximum" in field:
        parts.append(("< " if field.get("exclusiveMaximum") else "<= ") + _number(field["maximum"]))
    return f", {', '.join(parts)}" if parts else ""


def _number(value: Any) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
