"""Volumes that a job may bring into its pods, and the identity that its processes run under."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from rlhf_api.contract import Contract, Rule
from rlhf_api.names import ContainerPath
from rlhf_api.v1alpha1.pod import Name, Quantity

VolumeName = Annotated[
    str,
    StringConstraints(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"),
]
FilePath = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
UnixID = Annotated[int, Field(ge=0, le=2_147_483_647)]

RESERVED_VOLUME_PREFIX = "rlhf-"
RESERVED_MOUNT_PATHS = (
    ContainerPath.CLAIMS,
    ContainerPath.STAGE_CONFIG.rsplit("/", 1)[0],
    ContainerPath.TERMINATION_MESSAGE,
)
_HOME = "/home/rlhf"
PARENT_PATHS = tuple(sorted({path.rsplit("/", 1)[0] for path in (*RESERVED_MOUNT_PATHS, _HOME)}))
"""Folders below which the operator mounts, which a volume there could keep it from."""
_ROUNDABOUT = r"//|/[.][.]?(/|$)|^/$"
"""A path that has a shorter form, by which the same folder goes under several names; and the root,
which would hide the image."""
_LEAVES = r"^/|(^|/)[.][.](/|$)"
"""A path that leads out of the folder that it is written for."""


class ClaimVolume(Contract):
    """A PersistentVolumeClaim of the job's namespace."""

    claim_name: Name
    """Name of the claim."""
    read_only: bool = False
    """Whether pods can only read it."""


class EmptyDirVolume(Contract):
    """A folder that lives as long as its pod."""

    medium: Literal["", "Memory"] = ""
    """Memory keeps it in RAM, which counts against the pod's memory; the node's disk otherwise."""
    size_limit: Quantity | None = None
    """Size above which the pod is evicted; no limit when left out."""


class ConfigMapVolume(Contract):
    """Keys of a ConfigMap as files."""

    name: Name
    """Name of the ConfigMap."""
    optional: bool = False
    """Whether the pod starts without it."""


class SecretVolume(Contract):
    """Keys of a Secret as files."""

    secret_name: Name
    """Name of the Secret."""
    optional: bool = False
    """Whether the pod starts without it."""


_KINDS = ("persistentVolumeClaim", "emptyDir", "configMap", "secret")


class Volume(Contract):
    """A volume by name, from exactly one source."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="["
            + ", ".join(f"has(self.{kind})" for kind in _KINDS)
            + "].filter(present, present).size() == 1",
            message=f"exactly one of {', '.join(_KINDS)} must be set",
            holds=lambda m: (
                sum(
                    source is not None
                    for source in (m.persistent_volume_claim, m.empty_dir, m.config_map, m.secret)
                )
                == 1
            ),
        ),
        Rule(
            cel=f"!self.name.startsWith('{RESERVED_VOLUME_PREFIX}')",
            message=f"names that start with {RESERVED_VOLUME_PREFIX} are the operator's; choose "
            "another name",
            holds=lambda m: not m.name.startswith(RESERVED_VOLUME_PREFIX),
        ),
    )

    name: VolumeName
    """Name that volumeMounts refers to."""
    persistent_volume_claim: ClaimVolume | None = None
    """A PersistentVolumeClaim."""
    empty_dir: EmptyDirVolume | None = None
    """A folder that lives as long as its pod."""
    config_map: ConfigMapVolume | None = None
    """A ConfigMap."""
    secret: SecretVolume | None = None
    """A Secret."""


class VolumeMount(Contract):
    """Where the trainer container sees a volume."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.mountPath.startsWith('/') && !self.mountPath.contains(':')",
            message="mountPath must be absolute and without a colon",
            holds=lambda m: m.mount_path.startswith("/") and ":" not in m.mount_path,
        ),
        Rule(
            cel=" && ".join(
                f"self.mountPath != '{path}' && !self.mountPath.startsWith('{path}/')"
                for path in RESERVED_MOUNT_PATHS
            ),
            message=f"{', '.join(RESERVED_MOUNT_PATHS)} and what is below them are the operator's; "
            "choose another mountPath",
            holds=lambda m: (
                not any(
                    m.mount_path == path or m.mount_path.startswith(f"{path}/")
                    for path in RESERVED_MOUNT_PATHS
                )
            ),
        ),
        Rule(
            cel=f"!self.mountPath.matches(r'{_ROUNDABOUT}')",
            message="mountPath must be a folder below / and written without //, . and ..; write "
            "its shortest form",
            holds=lambda m: re.search(_ROUNDABOUT, m.mount_path) is None,
        ),
        Rule(
            cel="!(self.mountPath in ["
            + ", ".join(f"'{path}', '{path}/'" for path in PARENT_PATHS)
            + "])",
            message=f"the operator mounts below {', '.join(PARENT_PATHS)}; choose a mountPath of "
            "another name, or a folder below",
            holds=lambda m: m.mount_path.removesuffix("/") not in PARENT_PATHS,
        ),
        Rule(
            cel=f"!has(self.subPath) || !self.subPath.matches(r'{_LEAVES}')",
            message="subPath must be relative and without ..; write a folder of the volume",
            holds=lambda m: m.sub_path is None or re.search(_LEAVES, m.sub_path) is None,
        ),
    )

    name: VolumeName
    """Name of one of volumes."""
    mount_path: FilePath
    """Absolute path in the container; at /tmp, /dev/shm or the home the volume stands in for the
    operator's own."""
    sub_path: FilePath | None = None
    """Folder in the volume that is mounted; its root when left out."""
    read_only: bool = False
    """Whether the container can only read it."""


class SeccompProfile(Contract):
    """System calls that processes may make."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.type == 'Localhost') == has(self.localhostProfile)",
            message="localhostProfile must be set if and only if type is Localhost",
            holds=lambda m: (m.type == "Localhost") == (m.localhost_profile is not None),
        ),
        Rule(
            cel=f"!has(self.localhostProfile) || !self.localhostProfile.matches(r'{_LEAVES}')",
            message="localhostProfile must be relative and without ..; write a file of the node's "
            "seccomp folder",
            holds=lambda m: (
                m.localhost_profile is None or re.search(_LEAVES, m.localhost_profile) is None
            ),
        ),
    )

    type: Literal["RuntimeDefault", "Unconfined", "Localhost"]
    """Whose profile is used."""
    localhost_profile: FilePath | None = None
    """File on the node, for type Localhost."""


class SecurityContext(Contract):
    """Identity that the pods' processes run under; the image's own where a field is left out."""

    run_as_user: UnixID | None = None
    """User id of the processes; the image's when left out."""
    run_as_group: UnixID | None = None
    """Group id of the processes; the image's when left out."""
    run_as_non_root: bool | None = None
    """Whether the kubelet refuses to run as root; the operator's choice when left out."""
    fs_group: UnixID | None = None
    """Group that owns volumes and is added to the processes; the operator's choice when left
    out."""
    fs_group_change_policy: Literal["OnRootMismatch", "Always"] | None = None
    """Whether the owner of every file is changed at each mount; Always when left out."""
    supplemental_groups: Annotated[tuple[UnixID, ...], Field(max_length=32)] | None = None
    """Further groups of the processes; none when left out."""
    seccomp_profile: SeccompProfile | None = None
    """System calls that processes may make; the operator's choice when left out."""
