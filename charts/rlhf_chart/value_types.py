"""Types of the chart's values: what each may be, and how it is asked for when it is not that.

Imported by `values`. `wanted` is the sentence that `values_sentences` has Helm say of a value that
breaks the pattern or the bounds beside it. Patterns are read by Helm, in the syntax of RE2.
"""

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from rlhf_operator.settings import Namespace

WANTED = "wanted"
"""Key of a schema: what to write, in words."""
Object = dict[str, Any]
"""An object of Kubernetes, which the API server checks."""


def _pattern(pattern: str, wanted: str, **bounds: Any) -> Any:
    return Field(pattern=pattern, json_schema_extra={WANTED: wanted}, **bounds)


def refusing(wanted: str, *maps: Object) -> Object:
    """Of a map: none of `maps` describes it; `wanted` says so in words."""
    return {"allOf": [{"not": {"type": "object"} | each} for each in maps], WANTED: wanted}


_UNITS = {"y": 2, "w": 3, "d": 4, "h": 5, "m": 5, "s": 6, "ms": 6}
"""Units of a duration in the order that Prometheus asks for, and the most digits of each: all
together stay below the 292 years that it can hold.
"""
Duration = Annotated[
    str,
    _pattern(
        "".join(["^", *(f"([0-9]{{1,{n}}}{unit})?" for unit, n in _UNITS.items()), "$"]),
        "a duration such as 30s or 1m30s, each unit once and the largest first",
        min_length=1,
    ),
]
"""As Prometheus reads it: each unit once, the largest first."""

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_NAMESPACE = "the name of a namespace (a-z, 0-9 and -, at most 63)"
OwnNamespace = Annotated[
    str,
    _pattern(f"^({_LABEL})?$", f"{_NAMESPACE}, or empty for its own", max_length=63),
]
"""Where an object is made; the release's own when empty."""
_WATCHED = f"""{_NAMESPACE}; for all of them leave the list empty, \
--set-json watch.namespaces=[] on the command line"""
WatchedNamespaces = Annotated[
    list[Annotated[Namespace, Field(json_schema_extra={WANTED: _WATCHED})]],
    Field(json_schema_extra={"uniqueItems": True}),
]
ObjectName = Annotated[
    str,
    _pattern(
        rf"^({_LABEL}(\.{_LABEL})*)?$",
        "the name of an object of Kubernetes (a-z, 0-9, - and ., at most 253)",
        max_length=253,
    ),
]
"""The chart's or the cluster's choice when empty, where that may be."""
SecretName = Annotated[
    str,
    _pattern(
        rf"^{_LABEL}(\.{_LABEL})*$",
        "the name of a Secret (a-z, 0-9, - and ., at most 253)",
        max_length=253,
    ),
]

_HOST = "[A-Za-z0-9]([-A-Za-z0-9]*[A-Za-z0-9])?"
_REGISTRY = rf"({_HOST}(\.{_HOST})*|\[[0-9A-Fa-f:]+\])(:[0-9]+)?"
_PART = "[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*"
_TAG = "[A-Za-z0-9_][-.A-Za-z0-9_]{0,127}"
_DIGEST = "(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
ImageReference = Annotated[
    str,
    _pattern(
        f"^(({_REGISTRY}/)?{_PART}(/{_PART})*(:{_TAG})?(@{_DIGEST})?)?$",
        "an image such as registry.example.com/rlhf/operator, in small letters after the "
        "registry; a digest is sha256: and 64 digits of 0-9 and a-f",
        max_length=512,
    ),
]
"""As a registry and the kubelet read it; `_names.tpl` says which values need a tag, or none."""
Tag = Annotated[
    str,
    _pattern(
        f"^({_TAG}(@{_DIGEST})?)?$",
        "a tag (letters, digits, -, _ and ., at most 128), or empty for appVersion",
    ),
]
Digest = Annotated[
    str,
    _pattern(
        f"^{_DIGEST}?$",
        "a digest as the registry tells it, sha256: and 64 digits of 0-9 and a-f, or empty",
    ),
]

Text = Annotated[str, Field(min_length=1, json_schema_extra={WANTED: "a text that is not empty"})]
Port = Annotated[int, Field(ge=1, le=65535)]
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(\.{_OCTET}){{3}}/([0-9]|[12][0-9]|3[0-2])"
_H = "[0-9A-Fa-f]{1,4}"
_SHORTENED = "|".join(f"({_H}:){{1,{7 - n}}}(:{_H}){{1,{n}}}" for n in range(1, 7))
_DOTTED = f"(({_H}:){{6}}|({_H}:){{1,5}}(:{_H}){{0,4}}:|::({_H}:){{0,5}}){_OCTET}(\\.{_OCTET}){{3}}"
_IPV6 = f"(({_H}:){{7}}{_H}|({_H}:){{1,7}}:|{_SHORTENED}|:((:{_H}){{1,7}}|:)|{_DOTTED})"
_IPV6 += "/([0-9]{1,2}|1[01][0-9]|12[0-8])"
ADDRESSES: Object = {
    "type": "string",
    "pattern": f"^({_IPV4}|{_IPV6})$",
    WANTED: "addresses with the length of their prefix, such as 192.0.2.1/32",
}
CIDR = Annotated[str, WithJsonSchema(ADDRESSES)]
"""Addresses with the length of their prefix, such as 192.0.2.1/32."""
URL = Annotated[str, _pattern(r"^[^#\s]+$", "a URL without # and spaces")]
OptionalURL = Annotated[str, _pattern(r"^\S*$", "a URL without spaces, or empty")]

_VALUE = "[A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?"
_OF_A_LABEL = "the value of a label (letters, digits, -, _ and ., at most 63)"
LabelValue = Annotated[str, _pattern(f"^{_VALUE}$", _OF_A_LABEL, max_length=63)]

_KEY: Object = {
    "pattern": rf"^({_LABEL}(\.{_LABEL})*/)?"
    "[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$",
}
_KEY_IN_WORDS = "letters, digits, -, _ and ., at most 63, after a domain and / if you like"
_VALUES: Object = {
    "label": {
        "type": "string",
        "pattern": f"^({_VALUE})?$",
        "maxLength": 63,
        WANTED: f"{_OF_A_LABEL}, or empty",
    },
    "annotation": {"type": "string"},
}


def _map_schema(what: str, reserved: str = "") -> Object:
    """A map of labels or annotations, but for those whose keys match `reserved`."""
    keys = _KEY | {"maxLength": 317, WANTED: f"a map with keys of {what}s ({_KEY_IN_WORDS})"}
    if reserved:
        keys |= {"not": {"pattern": reserved}}
        keys[WANTED] += ", and none that the chart sets itself"
    return {"type": "object", "propertyNames": keys, "additionalProperties": _VALUES[what]}


def _map_of(what: str, reserved: str = "") -> WithJsonSchema:
    return WithJsonSchema(_map_schema(what, reserved))


LABELS = _map_schema("label")
_CHOSEN_BY = r"app\.kubernetes\.io/(name|instance|managed-by)"
Labels = Annotated[dict[str, str], _map_of("label")]
CommonLabels = Annotated[
    dict[str, str],
    _map_of("label", rf"^({_CHOSEN_BY}|app\.kubernetes\.io/version|helm\.sh/chart)$"),
]
PodLabels = Annotated[dict[str, str], _map_of("label", f"^{_CHOSEN_BY}$")]
"""The operator's Service finds pods by some of these, and the operator training pods."""
Annotations = Annotated[dict[str, str], _map_of("annotation")]
CommonAnnotations = Annotated[dict[str, str], _map_of("annotation", r"^(meta\.)?helm\.sh/")]
"""By these Helm knows what belongs to a release, what it keeps, and what it runs as a hook."""
PodAnnotations = Annotated[dict[str, str], _map_of("annotation", "^checksum/config$")]


def described(kind: str, description: str, **more: Any) -> Object:
    """The schema of a field, with its description."""
    return {"type": kind, "description": description, **more}


_NAME = described("string", "Its name.", minLength=1)
_VARIABLE = described(
    "string",
    "Its name.",
    pattern="^[^=]+$",
    **{
        WANTED: "a variable without =, neither one of RLHF_OPERATOR_*, which are values of this "
        "chart, nor POD_ID, which it sets"
    },
)
_VARIABLE["not"] = {"pattern": "^(RLHF_OPERATOR_.*|POD_ID)$"}


def _texts_of(description: str, *names: str) -> Object:
    """An object some of whose fields are texts; the API server checks the rest."""
    fields = {name: described("string", "Quote a number.") for name in names}
    return described("object", description, properties=fields)


_SOURCES = {
    "secretKeyRef": _texts_of("A key of a Secret.", "name", "key"),
    "configMapKeyRef": _texts_of("A key of a ConfigMap.", "name", "key"),
    "fieldRef": _texts_of("A field of the pod.", "apiVersion", "fieldPath"),
    "resourceFieldRef": _texts_of("A resource of a container.", "containerName", "resource"),
    "fileKeyRef": _texts_of("A key of a file.", "volumeName", "path", "key"),
}
EnvVar = Annotated[
    Object,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "name": _VARIABLE,
                "value": described("string", "Quote a number."),
                "valueFrom": described(
                    "object",
                    "From where it is taken.",
                    properties=_SOURCES,
                    additionalProperties=False,
                    minProperties=1,
                    maxProperties=1,
                    **{WANTED: f"a map with one of {', '.join(_SOURCES)}"},
                ),
            },
            "required": ["name"],
            "additionalProperties": False,
            "not": {"required": ["value", "valueFrom"]},
            WANTED: "a name with value or valueFrom, not both",
        }
    ),
]
OTHER_VOLUMES = (
    *("csi", "downwardAPI", "emptyDir", "ephemeral", "image", "projected"),
    *("awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "fc", "flexVolume"),
    *("flocker", "gcePersistentDisk", "gitRepo", "glusterfs", "iscsi", "nfs", "portworxVolume"),
    *("photonPersistentDisk", "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume"),
)
"""What else a volume may be; the API server checks what is in it."""
Volume = Annotated[
    Object,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "name": described(
                    "string",
                    "Its name.",
                    pattern=f"^{_LABEL}$",
                    maxLength=63,
                    **{
                        "not": {"enum": ["config", "tmp"]},
                        WANTED: "the name of a volume (a-z, 0-9 and -, at most 63), neither "
                        "config nor tmp, which are there",
                    },
                ),
                "configMap": _texts_of("A ConfigMap.", "name"),
                "secret": _texts_of("A Secret.", "secretName"),
                "persistentVolumeClaim": _texts_of("A claim.", "claimName"),
                "hostPath": _texts_of("A path of the node.", "path", "type"),
            }
            | {kind: described("object", "As a pod has it.") for kind in OTHER_VOLUMES},
            "required": ["name"],
            "additionalProperties": False,
            "minProperties": 2,
            "maxProperties": 2,
            WANTED: "the name of a volume and one thing that it is, such as secret or emptyDir",
        }
    ),
]
_PROGRAM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_HIDING = (
    # Folders of the image, with all that is below them.
    *_PROGRAM,
    *(f"usr/{name}" for name in (*_PROGRAM, "libexec")),
    *(f"usr/local/{name}" for name in _PROGRAM),
    *("opt/rlhf", "proc", "sys", "dev", "etc/rlhf-operator"),
    *(f"{run}/secrets/kubernetes.io/serviceaccount" for run in ("var/run", "run")),
)
_ABOVE = (
    *("", "usr", "usr/local", "opt", "etc", "tmp", "var", "var/run", "run"),
    *(f"{run}/secrets" for run in ("var/run", "run")),
    *(f"{run}/secrets/kubernetes.io" for run in ("var/run", "run")),
)


def _any_of(paths: tuple[str, ...]) -> str:
    return "|".join(path.replace(".", r"\.").replace("/", "/+") for path in paths)


_HIDDEN = f"^/+(({_any_of(_HIDING)})(/.*)?|({_any_of(_ABOVE)})/*)$|/\\.\\.?(/|$)"
"""Where a volume would hide the program, the API server's token or what the chart mounts; and paths
by way of . or .., which may lead there."""
VolumeMount = Annotated[
    Object,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "name": _NAME,
                "mountPath": described(
                    "string",
                    "Where it is found.",
                    pattern="^/[^:]*$",
                    **{
                        "not": {"pattern": _HIDDEN},
                        WANTED: "an absolute path without a colon, . and .., that hides neither "
                        "the program (/, /usr, /lib, /opt, ...) nor what the pod has at /tmp, "
                        "/etc/rlhf-operator and /var/run/secrets",
                    },
                ),
                "subPath": described("string", "Of the volume."),
                "subPathExpr": described("string", "Likewise, with variables in it."),
                "readOnly": described("boolean", "Whether nothing can be written."),
                "recursiveReadOnly": described("string", "Disabled, IfPossible or Enabled."),
                "mountPropagation": described("string", "None, HostToContainer or Bidirectional."),
            },
            "required": ["name", "mountPath"],
            "additionalProperties": False,
        }
    ),
]
_QUANTITIES: Object = {
    "type": "object",
    "additionalProperties": {
        "type": ["string", "number"],
        "pattern": r"^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$",
        "minimum": 0,
        WANTED: "a quantity such as 500m, 2 or 1Gi",
    },
}
Resources = Annotated[
    Object,
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "requests": _QUANTITIES | {"description": "What is kept free for it."},
                "limits": _QUANTITIES | {"description": "What it can take."},
                "claims": described("array", "Of devices.", items={"type": "object"}),
            },
            "additionalProperties": False,
        }
    ),
]
