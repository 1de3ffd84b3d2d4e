"""Types of the chart's security contexts, of a pod and of a container.

Imported by `values`. Null, as a whole or in one field, leaves it to the cluster.
"""

from typing import Annotated

from pydantic import WithJsonSchema

from rlhf_chart.value_types import Object, refusing

_ID: Object = {"type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1}
_FLAG: Object = {"type": ["boolean", "null"]}
_WORD: Object = {"type": ["string", "null"]}


def _part(**fields: Object) -> Object:
    return {"type": ["object", "null"], "properties": fields, "additionalProperties": False}


def _series(items: Object) -> Object:
    return {"type": ["array", "null"], "items": items}


_SYSCTL: Object = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
    "required": ["name", "value"],
    "additionalProperties": False,
}
_CAPABILITIES = _series({"type": "string"})
_LOCAL: Object = {"const": "Localhost"}
_PROFILE = _part(
    type={"enum": ["RuntimeDefault", "Unconfined", "Localhost", None]}, localhostProfile=_WORD
) | refusing(
    "a map of type, and of localhostProfile with type Localhost alone; or null",
    {"properties": {"type": {"type": "null"}}},
    {
        "properties": {
            "type": _LOCAL,
            # Null has no length.
            "localhostProfile": {"maxLength": 0},
        },
        "required": ["type"],
    },
    {
        "properties": {"type": {"not": _LOCAL}, "localhostProfile": {"type": "string"}},
        "required": ["localhostProfile"],
    },
)
_OF_BOTH = {
    "runAsUser": _ID,
    "runAsGroup": _ID,
    "runAsNonRoot": _FLAG,
    "seccompProfile": _PROFILE,
    "appArmorProfile": _PROFILE,
    "seLinuxOptions": _part(user=_WORD, role=_WORD, type=_WORD, level=_WORD),
    "windowsOptions": _part(
        gmsaCredentialSpecName=_WORD,
        gmsaCredentialSpec=_WORD,
        runAsUserName=_WORD,
        hostProcess=_FLAG,
    ),
}
PodSecurity = Annotated[
    Object | None,
    WithJsonSchema(
        _part(
            **_OF_BOTH,
            fsGroup=_ID,
            fsGroupChangePolicy={"enum": ["Always", "OnRootMismatch", None]},
            supplementalGroups=_series(_ID | {"type": "integer"}),
            supplementalGroupsPolicy={"enum": ["Merge", "Strict", None]},
            seLinuxChangePolicy={"enum": ["Recursive", "MountOption", None]},
            sysctls=_series(_SYSCTL),
        )
    ),
]
ContainerSecurity = Annotated[
    Object | None,
    WithJsonSchema(
        _part(
            **_OF_BOTH,
            allowPrivilegeEscalation=_FLAG,
            privileged=_FLAG,
            readOnlyRootFilesystem=_FLAG,
            capabilities=_part(add=_CAPABILITIES, drop=_CAPABILITIES),
            procMount={"enum": ["Default", "Unmasked", None]},
        )
        | refusing(
            "a map of fields of the securityContext of a container, in which privileged goes with "
            "allowPrivilegeEscalation: true; or null",
            {
                "properties": {
                    "privileged": {"const": True},
                    "allowPrivilegeEscalation": {"const": False},
                },
                "required": ["privileged", "allowPrivilegeEscalation"],
            },
        )
    ),
]
