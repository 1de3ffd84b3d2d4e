"""Sentences in the values' schema, which both Helm 3 and Helm 4 print of a value that is refused.

Called by `values_schema.schema_text`. Neither prints a schema's description, and both print what an
`enum` asks for. So a value that breaks its type or its pattern is asked to be a sentence. Of keys
that break `propertyNames` Helm 4 tells as if they stood in another map, chosen by chance; so keys
are asked for by the patterns of their properties.
"""

from typing import Any

from rlhf_chart.value_types import WANTED

Schema = dict[str, Any]

_OF_NUMBERS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}
_OF_OTHERS = ("pattern", "minLength", "maxLength", "minProperties", "maxProperties", "not", "allOf")
_LONG_DOMAIN = "^[^/]{254,}/"
"""Of a key: patterns cannot count what they repeat."""
_NOTHING: Schema = {"not": {}}
"""`false`, which not all of Helm 3 reads."""
_NO_NULL = "a map without null for what is missing: leave that out for its default, or give a value"
"""Helm takes a default away where null is given."""
_KINDS = {
    "string": "a text: in quotes in a file, by --set-string on the command line",
    "boolean": "true or false, without quotes",
    "array": "a list: [a, b] in a file, {a,b} after --set, in quotes for the shell",
    "object": "a map: name: value in a file, KEY.name=value after --set",
}


def with_sentences(schema: Schema, path: str) -> Schema:
    """The same schema of the value at a path, which says in words what it asks for."""
    found = {key: value for key, value in schema.items() if key not in (WANTED, "propertyNames")}
    if "properties" in found:
        found["properties"] = {
            name: with_sentences(each, f"{path}.{name}")
            for name, each in found["properties"].items()
        }
    for inner, end in (("items", "[0]"), ("additionalProperties", "")):
        if isinstance(found.get(inner), dict):
            found[inner] = with_sentences(found[inner], path + end)
    if "propertyNames" in schema:
        return _keyed(found, schema["propertyNames"], _in_words(schema, path))
    # Of a wrong type both would tell alone, and in their own words.
    kinds = found.pop("type", None)
    if "enum" in found:
        return found
    conditions = {key: found[key] for key in (*_OF_NUMBERS, *_OF_OTHERS) if key in found}
    if isinstance(kinds, str) and WANTED in schema:
        told = {"then": _else(conditions, schema[WANTED])}
        return found | _else({"type": kinds}, _in_words(schema, path)) | told
    if has_defaults(schema):
        told = {"then": without_null(schema)}
        return found | _else({"type": kinds}, _in_words(schema, path)) | told
    types = {"type": kinds} if kinds else {}
    if WANTED in schema:
        return found | _else(types | conditions, schema[WANTED])
    numbers = {key: found[key] for key in _OF_NUMBERS if key in found}
    return found | _else(types | numbers, _in_words(schema, path))


def has_defaults(schema: Schema) -> bool:
    """Whether a map has fields that are always there, since they have defaults."""
    fields, names = schema.get("properties", {}), schema.get("required", ())
    return bool(names) and all(
        "default" in fields[name] or has_defaults(fields[name]) for name in names
    )


def without_null(schema: Schema) -> Schema:
    """What a map of fields with defaults is held against besides; says why one may be missing."""
    return _else({"required": schema["required"]}, _NO_NULL)


def _keyed(found: Schema, keys: Schema, in_words: str) -> Schema:
    """A map whose keys must match a pattern, and none of those that are reserved."""
    reserved = [_LONG_DOMAIN, *([keys["not"]["pattern"]] if "not" in keys else [])]
    values, allowed = found.pop("additionalProperties"), keys["pattern"]
    taken = dict.fromkeys(reserved, _NOTHING)
    rest = {"additionalProperties": False}
    kind = found.pop("type")
    named: Schema = {"patternProperties": {allowed: {}} | taken} | rest
    told = {"then": _else(named, keys[WANTED])}
    whole = {"patternProperties": {allowed: values} | taken} | rest
    return found | whole | _else({"type": kind}, in_words) | told


def _else(conditions: Schema, sentence: str) -> Schema:
    return {"if": conditions, "else": {"enum": [sentence]}}


def _in_words(schema: Schema, path: str) -> str:
    """What a value has to be by its type, and a number by its bounds."""
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    kind = kinds[0]
    if kind in ("integer", "number"):
        whole = "a whole number" if kind == "integer" else "a number"
        bounds = [f"{word} {schema[key]}" for key, word in _OF_NUMBERS.items() if key in schema]
        size = f" of {' and '.join(bounds)}" if bounds else ""
        text = f"{whole}{size}: without quotes in a file, by --set-json on the command line"
    elif kind == "object" and schema.get("additionalProperties") is False:
        text = f"a map of {', '.join(schema['properties'])}"
        if path.endswith("[0]"):
            text += _of_maps(schema, path)
    elif kind == "array" and "properties" in schema.get("items", {}):
        text = f"a list of maps{_of_maps(schema['items'], f'{path}[0]')}"
    else:
        text = _KINDS[kind]
    return f"{text}; or null" if "null" in kinds else text


def _of_maps(schema: Schema, path: str) -> str:
    """How one map of a list is written, by its first field."""
    field = next(iter(schema["properties"]))
    return f": - {field}: ... in a file, {path}.{field}=... after --set, in quotes for the shell"
