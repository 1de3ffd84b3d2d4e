"""The part of a pod that a job may set. Secrets are named, never held."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from rlhf_api.contract import Contract, Rule

Name = Annotated[str, StringConstraints(min_length=1, max_length=253)]
EnvName = Annotated[
    str, StringConstraints(min_length=1, max_length=256, pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")
]
Text = Annotated[str, StringConstraints(max_length=32768)]
Quantity = Annotated[
    str,
    StringConstraints(
        min_length=1,
        max_length=64,
        pattern=r"^[+-]?([0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
    ),
]
"""Amount as Kubernetes writes it, for example 500m, 16Gi or "8"."""


class KeyReference(Contract):
    """A key of a Secret or ConfigMap in the job's namespace."""

    name: Name
    """Name of the object."""
    key: Name
    """Key in its data."""
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
    )

    name: EnvName
    """Name of the variable."""
    value: Text | None = None
    """Its value; empty when neither this nor valueFrom is set."""
    value_from: EnvVarSource | None = None
    """Where its value comes from."""


class Resources(Contract):
    """Compute resources of each pod."""

    requests: Annotated[dict[Name, Quantity], Field(max_length=32)] | None = None
    """Amounts that the scheduler sets aside."""
    limits: Annotated[dict[Name, Quantity], Field(max_length=32)] | None = None
    """Amounts that a pod cannot exceed; GPUs go here, for example nvidia.com/gpu: "8"."""


class Toleration(Contract):
    """A taint that pods accept."""

    key: Name | None = None
    """Key of the taint; every key when left out."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """Whether the taint's value counts."""
    value: Annotated[str, StringConstraints(max_length=63)] | None = None
    """Value of the taint for Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; every effect when left out."""
    toleration_seconds: int | None = Field(None, ge=0, le=31_536_000)
    """Seconds that a pod stays after NoExecute; for ever when left out."""
