"""Environment, resources and tolerations of a pod. Secrets are named, never held."""

import json
import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from rlhf_api.contract import Contract, Rule

Name = Annotated[str, StringConstraints(min_length=1, max_length=253)]
EnvName = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
]
Text = Annotated[str, StringConstraints(max_length=32768)]
_DNS_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED_NAME = (
    rf"^({_DNS_LABEL}(\.{_DNS_LABEL})*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$"
)
LabelKey = Annotated[str, StringConstraints(min_length=1, max_length=317, pattern=_QUALIFIED_NAME)]
LabelValue = Annotated[
    str,
    StringConstraints(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"),
]


@dataclass(frozen=True)
class QualifiedKeys:
    """Marks a map whose keys are those of labels: `Annotated[dict[str, Value], QualifiedKeys()]`.

    No schema of an API server says what keys have to be, so a rule does.
    """

    message: ClassVar[str] = (
        "every key must be letters, digits, -, _ and ., at most 63, with a letter or digit at both "
        "ends, after a domain in small letters and one / if you like; correct the key"
    )
    _longest_domain: ClassVar[int] = 253

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, found: dict[str, Any]) -> dict[str, Any]:
        for key in found:
            # Of `match` the last character could be a line break.
            if not re.fullmatch(_QUALIFIED_NAME, key) or key.find("/") > self._longest_domain:
                raise ValueError(f"key {json.dumps(key, ensure_ascii=False)}: {self.message}")
        return found

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler(schema)
        form = _QUALIFIED_NAME.replace("\\", "\\\\")
        rule = f"self.all(k, k.matches('{form}') && k.indexOf('/') <= {self._longest_domain})"
        found["x-kubernetes-validations"] = [{"rule": rule, "message": self.message}]
        return found


QueueName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"),
]
"""Name of an object that must also be the value of a label."""

# An exponent of any length would make a number that takes seconds to write out. Kubernetes itself
# counts no further than 2^63.
_QUANTITY = r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?$"

_GPU = re.compile(r"[^/]+/(gpu(\.shared)?|mig-.+)|gpu\.intel\.com/(i915|xe)")
"""Extended resources that are GPUs, shares or slices of them. What others sell in parts of a GPU
(gpu-mem, gpucores, ...) has units of its own, and comes beside one of these or counts nothing."""
_SCALE = {"m": Decimal("0.001"), "k": Decimal(1000)}
"""Suffixes that a number of GPUs may have; a larger one would be more than there are."""
MAX_GPUS = 2_147_483_647
"""As many as a pod is ever said to have; more are as unlikely to be found."""


def _quantity_text(value: Any) -> Any:
    """An integer as text; the API server accepts both, but no other number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


Quantity = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64, pattern=_QUANTITY),
    BeforeValidator(_quantity_text),
    WithJsonSchema(
        {
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "maxLength": 64,
            "pattern": _QUANTITY,
            "x-kubernetes-int-or-string": True,
        }
    ),
]
"""Amount as Kubernetes writes it, for example 8, 500m or 16Gi; kept as text."""

# These say where a process stands in its gang, which only the operator knows.
RESERVED_ENV = (
    "JOB_COMPLETION_INDEX",
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
RESERVED_ENV_PREFIX = "RLHF_"


class KeyReference(Contract):
    """A key of a Secret or ConfigMap in the job's namespace."""

    name: Name
    """Name of the object."""
    key: Name
    """Key in its data."""
    optional: bool = False
    """Whether the pod starts without it."""


class ObjectReference(Contract):
    """A Secret or ConfigMap in the job's namespace."""

    name: Name
    """Name of the object."""
    optional: bool = False
    """Whether the pod starts without it."""


class EnvVarSource(Contract):
    """Where the value of an environment variable comes from."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.secretKeyRef) != has(self.configMapKeyRef)",
            message="exactly one of secretKeyRef and configMapKeyRef must be set",
            holds=lambda m: (m.secret_key_ref is None) != (m.config_map_key_ref is None),
        ),
    )

    secret_key_ref: KeyReference | None = None
    """Key of a Secret."""
    config_map_key_ref: KeyReference | None = None
    """Key of a ConfigMap."""


class EnvVar(Contract):
    """An environment variable of the trainer container; hyperparameters never go here."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!(has(self.value) && has(self.valueFrom))",
            message="at most one of value and valueFrom may be set",
            holds=lambda m: m.value is None or m.value_from is None,
        ),
        Rule(
            cel=f"!self.name.startsWith('{RESERVED_ENV_PREFIX}') && !(self.name in ["
            + ", ".join(f"'{name}'" for name in RESERVED_ENV)
            + "])",
            message="names that start with RLHF_, and those of ranks and their rendezvous, are set "
            "by the operator; remove the variable",
            holds=lambda m: (
                not m.name.startswith(RESERVED_ENV_PREFIX) and m.name not in RESERVED_ENV
            ),
        ),
    )

    name: EnvName
    """Name of the variable."""
    value: Text | None = None
    """Its value; empty when both this and valueFrom are left out."""
    value_from: EnvVarSource | None = None
    """Where its value comes from."""


class EnvFromSource(Contract):
    """A Secret or ConfigMap whose keys become environment variables."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.secretRef) != has(self.configMapRef)",
            message="exactly one of secretRef and configMapRef must be set",
            holds=lambda m: (m.secret_ref is None) != (m.config_map_ref is None),
        ),
    )

    prefix: EnvName | None = None
    """Put before each key; nothing when left out."""
    secret_ref: ObjectReference | None = None
    """The Secret."""
    config_map_ref: ObjectReference | None = None
    """The ConfigMap."""


def _whole(amount: str) -> int:
    """The number of devices in a quantity, from 0 to `MAX_GPUS`."""
    scale = _SCALE.get(amount[-1], Decimal(1))
    number = amount[:-1] if amount[-1] in _SCALE else amount.rstrip("KMGTPEinu")
    # The number is bounded before it becomes an integer, which has room for any exponent.
    return max(0, math.ceil(min(Decimal(number) * scale, Decimal(MAX_GPUS))))


class Resources(Contract):
    """Compute resources of each pod."""

    requests: Annotated[dict[Name, Quantity], Field(max_length=32)] | None = None
    """Amounts that the scheduler sets aside, by name of the resource; the limits when left out."""
    limits: Annotated[dict[Name, Quantity], Field(max_length=32)] | None = None
    """Amounts that a pod cannot exceed, by name of the resource; GPUs go here, for example
    nvidia.com/gpu: 8."""

    @property
    def gpus(self) -> int:
        """GPUs that the limits ask for; shares and slices of one count as GPUs."""
        limits = self.limits or {}
        found = sum(_whole(amount) for name, amount in limits.items() if _GPU.fullmatch(name))
        return min(found, MAX_GPUS)


class Toleration(Contract):
    """A taint that pods accept."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.key) || (has(self.operator) && self.operator == 'Exists')",
            message="key may be left out only with operator Exists; add one of them",
            holds=lambda m: m.key is not None or m.operator == "Exists",
        ),
        Rule(
            cel="!has(self.value) || self.value == '' || !has(self.operator) "
            "|| self.operator == 'Equal'",
            message="operator Exists takes no value; remove value or write Equal",
            holds=lambda m: not m.value or m.operator == "Equal",
        ),
        Rule(
            cel="!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
            message="tolerationSeconds counts only for NoExecute; write effect: NoExecute",
            holds=lambda m: m.toleration_seconds is None or m.effect == "NoExecute",
        ),
    )

    key: Name | None = None
    """Key of the taint; every key when left out."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the taint's value counts."""
    value: LabelValue | None = None
    """Value of the taint for Equal; empty when left out."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; every effect when left out."""
    toleration_seconds: int | None = Field(None, ge=0, le=31_536_000)
    """Seconds that a pod stays after NoExecute; for ever when left out."""
