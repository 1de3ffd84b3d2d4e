"""The pod template of a job: one for all stages, which override a few fields."""

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from rlhf_api.contract import Contract, ListMap, Rule
from rlhf_api.names import GROUP, Label
from rlhf_api.v1alpha1.affinity import Affinity
from rlhf_api.v1alpha1.pod import (
    EnvFromSource,
    EnvVar,
    LabelValue,
    Name,
    QualifiedKeys,
    Resources,
    Toleration,
)
from rlhf_api.v1alpha1.volumes import SecurityContext, Volume, VolumeMount

AnnotationValue = Annotated[str, StringConstraints(max_length=16384)]

MAX_ANNOTATION_BYTES = 131_072
"""Of keys and values. Kubernetes takes 256 KiB an object, some of which are the operator's, the
cluster's and webhooks' own."""

_OWN_PREFIXES = (f"{GROUP}/", "batch.kubernetes.io/")
_KUEUE = "kueue.x-k8s.io/"
# What the Job controller called its labels before they had a prefix.
_RESERVED_LABELS = (Label.MANAGED_BY, "job-name", "controller-uid")
# With the first two Kueue would run a part of a gang; from the last one it takes the queue where no
# label names one.
_RESERVED_ANNOTATIONS = (
    f"{_KUEUE}job-min-parallelism",
    f"{_KUEUE}job-completions-equal-parallelism",
    Label.QUEUE,
)


class ImagePullSecret(Contract):
    """A Secret of the job's namespace with the password of an image registry."""

    name: Name
    """Name of the Secret."""


def _cel_of_keys(field: str, reserved: tuple[str, ...], also: str = "") -> str:
    names = ", ".join(f"'{name}'" for name in reserved)
    prefixes = "".join(f" && !key.startsWith('{prefix}')" for prefix in _OWN_PREFIXES)
    return f"!has(self.{field}) || self.{field}.all(key, !(key in [{names}]){prefixes}{also})"


def _is_reserved_label(key: str) -> bool:
    of_kueue = key.startswith(_KUEUE) and key != Label.QUEUE_PRIORITY
    return key in _RESERVED_LABELS or key.startswith(_OWN_PREFIXES) or of_kueue


def _is_reserved_annotation(key: str) -> bool:
    return key in _RESERVED_ANNOTATIONS or key.startswith(_OWN_PREFIXES)


def _bytes_of(texts: dict[str, str]) -> int:
    return sum(len(key.encode()) + len(value.encode()) for key, value in texts.items())


class PodTemplate(Contract):
    """Size and settings of the pods; everything that is not listed here is the operator's."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.volumeMounts) || self.volumeMounts.all(mount, has(self.volumes) "
            "&& self.volumes.exists(volume, volume.name == mount.name))",
            message="every volumeMount must name one of volumes; add the volume",
            holds=lambda m: (
                {mount.name for mount in m.volume_mounts or ()}
                <= {volume.name for volume in m.volumes or ()}
            ),
        ),
        Rule(
            cel=_cel_of_keys(
                "labels",
                _RESERVED_LABELS,
                f" && (!key.startsWith('{_KUEUE}') || key == '{Label.QUEUE_PRIORITY}')",
            ),
            message=f"labels {', '.join(_RESERVED_LABELS)} and those that start with "
            f"{', '.join(_OWN_PREFIXES)} are not the user's, nor are those of Kueue but for "
            f"{Label.QUEUE_PRIORITY}; remove them (a Kueue queue is named by spec.queueName)",
            holds=lambda m: not any(map(_is_reserved_label, m.labels or ())),
        ),
        Rule(
            cel=_cel_of_keys("annotations", _RESERVED_ANNOTATIONS),
            message=f"annotations {', '.join(_RESERVED_ANNOTATIONS)} and those that start with "
            f"{', '.join(_OWN_PREFIXES)} are not the user's; remove them (a stage runs with all of "
            "its nodes, and a Kueue queue is named by spec.queueName)",
            holds=lambda m: not any(map(_is_reserved_annotation, m.annotations or ())),
        ),
        Rule(
            cel="!has(self.annotations) || self.annotations.map(key, "
            "size(bytes(key)) + size(bytes(self.annotations[key]))).sum() "
            f"<= {MAX_ANNOTATION_BYTES}",
            message=f"keys and values of annotations must have at most {MAX_ANNOTATION_BYTES} "
            "bytes in UTF-8 together; shorten them",
            holds=lambda m: _bytes_of(m.annotations or {}) <= MAX_ANNOTATION_BYTES,
        ),
    )

    nodes: int = Field(1, ge=1, le=1024)
    """Number of pods of a stage."""
    processes_per_node: int = Field(1, ge=1, le=64)
    """Ranks in each pod, one a GPU."""
    resources: Resources | None = None
    """Requests and limits of each pod; none when left out."""
    node_selector: (
        Annotated[dict[str, LabelValue], Field(max_length=64), QualifiedKeys()] | None
    ) = None
    """Labels that a node must have; any node when left out."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=64)] | None = None
    """Taints that the pods accept; none when left out."""
    affinity: Affinity | None = None
    """Nodes and pods that the pods need, prefer or avoid; none when left out."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=128), ListMap("name")] | None = None
    """Environment variables of the trainer container; none when left out."""
    env_from: Annotated[tuple[EnvFromSource, ...], Field(max_length=32)] | None = None
    """Secrets and ConfigMaps whose keys become environment variables; env wins over them."""
    volumes: Annotated[tuple[Volume, ...], Field(max_length=32), ListMap("name")] | None = None
    """Volumes beside those of storage and of pvc:// URIs, which the operator adds itself."""
    volume_mounts: (
        Annotated[tuple[VolumeMount, ...], Field(max_length=32), ListMap("mountPath")] | None
    ) = None
    """Where the trainer container sees the volumes."""
    security_context: SecurityContext | None = None
    """Identity that the pods' processes run under; the operator's choice when left out."""
    service_account_name: Name | None = None
    """Service account of the pods, which get no token for it; default when left out."""
    image_pull_secrets: (
        Annotated[tuple[ImagePullSecret, ...], Field(max_length=16), ListMap("name")] | None
    ) = None
    """Secrets for the registry of the trainer image; those of the service account when left
    out."""
    priority_class_name: Name | None = None
    """Priority class of the pods; the cluster's default when left out."""
    runtime_class_name: Name | None = None
    """Runtime class of the pods, for example nvidia; the cluster's default when left out."""
    labels: Annotated[dict[str, LabelValue], Field(max_length=64), QualifiedKeys()] | None = None
    """Labels added to the pods, and to the Job, ConfigMap and Service that are made for them; the
    rules name those that are reserved."""
    annotations: (
        Annotated[dict[str, AnnotationValue], Field(max_length=64), QualifiedKeys()] | None
    ) = None
    """Annotations added to the pods, and to the Job, ConfigMap and Service that are made for them;
    at most 128 KiB together; the rules name those that are reserved."""
    termination_grace_period_seconds: int = Field(300, ge=15, le=86_400)
    """Seconds that a pod has to save a checkpoint after SIGTERM; a step and a save must fit."""
