"""From the models to the CustomResourceDefinition. Pure; `__main__` writes the file.

pydantic's JSON schema says more than an API server takes: references, null types, defaults, titles
and 2020's form of exclusive bounds. What comes out here is structural: one tree, every field with
its type and description, and no default, since the API server would write it into the object.
"""

from typing import Any

from pydantic import BaseModel

from rlhf_api.names import (
    API_VERSION,
    CATEGORIES,
    GROUP,
    KIND,
    PLURAL,
    SHORT_NAME,
    SINGULAR,
    VERSION,
)
from rlhf_api.v1alpha1.job import RLHFJob
from rlhf_api.v1alpha1.spec import RLHFJobSpec
from rlhf_api.v1alpha1.status import RLHFJobStatus

Schema = dict[str, Any]

_INT32_MAX = 2**31 - 1
_KEPT = (
    "type",
    "format",
    "pattern",
    "enum",
    "anyOf",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-validations",
)
_ALREADY_SAID = "when left out"

# Name, JSON path below .status, and whether `-o wide` is needed to see it.
_COLUMNS = (
    ("Phase", ".phase", False),
    ("Stage", ".summary.stage", False),
    ("Progress", ".summary.progress", False),
    ("Restarts", ".summary.restarts", False),
    ("Reward", ".summary.reward", True),
    ("KL", ".summary.kl", True),
    ("CriticLoss", ".summary.criticLoss", True),
    ("Reason", ".summary.reason", True),
)


def custom_resource_definition() -> Schema:
    """The CustomResourceDefinition of RLHFJob."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": list(CATEGORIES),
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": _printer_columns(),
                    "schema": {"openAPIV3Schema": resource_schema()},
                }
            ],
        },
    }


def resource_schema() -> Schema:
    """The structural schema of an RLHFJob."""
    return {
        "description": _one_line(RLHFJob.__doc__ or ""),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"{API_VERSION}."},
            "kind": {"type": "string", "description": f"{KIND}."},
            "metadata": {"type": "object"},
            "spec": _field(RLHFJobSpec, RLHFJob, "spec", with_defaults=True),
            # Nobody types a status, so what it holds before its first write is of no interest.
            "status": _field(RLHFJobStatus, RLHFJob, "status", with_defaults=False),
        },
        "x-kubernetes-validations": [
            {"rule": rule.cel, "message": rule.message} for rule in RLHFJob.API_RULES
        ],
    }


def structural(model: type[BaseModel], *, with_defaults: bool = True) -> Schema:
    """The structural schema of `model`.

    Args:
        model: one of the contract's models.
        with_defaults: whether descriptions end by the field's default.
    """
    found = model.model_json_schema(by_alias=True, mode="validation")
    return _Converter(found.get("$defs", {}), with_defaults).convert(found)


def _printer_columns() -> list[Schema]:
    columns: list[Schema] = []
    for name, path, wide in _COLUMNS:
        column: Schema = {"name": name, "type": "string", "jsonPath": f".status{path}"}
        columns.append(column | ({"priority": 1} if wide else {}))
    age = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    columns.insert(next(i for i, column in enumerate(columns) if "priority" in column), age)
    return columns


def _field(
    model: type[BaseModel], owner: type[BaseModel], name: str, *, with_defaults: bool
) -> Schema:
    description = _one_line(owner.model_fields[name].description or "")
    return structural(model, with_defaults=with_defaults) | {"description": description}


class _Converter:
    """Walks one JSON schema; holds what every step of the walk needs."""

    def __init__(self, definitions: Schema, with_defaults: bool) -> None:
        self._definitions = definitions
        self._with_defaults = with_defaults

    def convert(self, schema: Schema) -> Schema:
        """The structural twin of `schema`, with the same meaning but for null and defaults."""
        schema = self._resolved(schema)
        result: Schema = {}
        description = self._description(schema)
        if description:
            result["description"] = description
        result |= {key: schema[key] for key in _KEPT if key in schema}
        if "x-kubernetes-validations" in result:
            result["x-kubernetes-validations"] = [
                {"rule": rule["rule"], "message": rule["message"]}
                for rule in result["x-kubernetes-validations"]
            ]
        kind = schema.get("type")
        if kind in ("integer", "number"):
            result |= _numeric(schema)
        elif kind == "array":
            result["items"] = self.convert(schema["items"])
            result.setdefault("x-kubernetes-list-type", "atomic")
        elif kind == "object":
            result |= self._object(schema)
        elif kind is None and "x-kubernetes-int-or-string" not in schema:
            raise TypeError(f"an API server has no type for {schema}")
        return result

    def _resolved(self, schema: Schema) -> Schema:
        """`schema` with its reference or its only non-null alternative in place."""
        while True:
            inner: Schema | None = None
            if "$ref" in schema:
                inner = self._definitions[schema["$ref"].rsplit("/", 1)[-1]]
            elif "anyOf" in schema and "x-kubernetes-int-or-string" not in schema:
                others = [option for option in schema["anyOf"] if option != {"type": "null"}]
                if len(others) != 1:
                    raise TypeError(f"an API server has no unions: {schema}")
                inner = others[0]
            if inner is None:
                return schema
            # What the field says of itself is nearer than what its type says.
            own = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
            schema = inner | own

    def _object(self, schema: Schema) -> Schema:
        if "properties" in schema:
            result: Schema = {}
            if schema.get("required"):
                result["required"] = schema["required"]
            result["properties"] = {
                name: self.convert(field) for name, field in schema["properties"].items()
            }
            return result
        # A pattern of keys becomes `patternProperties`, which an API server does not know.
        (values,) = schema.get("patternProperties", {}).values() or (
            schema["additionalProperties"],
        )
        return {"additionalProperties": self.convert(values)}

    def _description(self, schema: Schema) -> str:
        text = _one_line(schema.get("description", ""))
        default = schema.get("default")
        if not self._with_defaults or _ALREADY_SAID in text:
            return text
        if default is None or isinstance(default, dict):
            return text
        return f"{text} Default: {_written(default)}."


def _numeric(schema: Schema) -> Schema:
    """Bounds in OpenAPI 3.0's form, where an exclusive bound is a boolean beside the bound."""
    result: Schema = {}
    for bound in ("minimum", "maximum"):
        exclusive = "exclusive" + bound.capitalize()
        if bound in schema:
            result[bound] = schema[bound]
        elif exclusive in schema:
            result |= {bound: schema[exclusive], exclusive: True}
    if schema["type"] == "number":
        return result | {"format": "double"}
    return result | {"format": "int32" if result["maximum"] <= _INT32_MAX else "int64"}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _written(default: object) -> str:
    """A default as people type it in YAML."""
    if isinstance(default, list):
        return f"[{', '.join(_written(item) for item in default)}]"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}".replace("e-0", "e-").replace("e+0", "e")
    return str(default) or "empty"
