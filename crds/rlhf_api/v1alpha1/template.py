"""The pod template of a job: one for all stages, which override a few fields."""

from typing import Annotated

from pydantic import Field

from rlhf_api.contract import Contract
from rlhf_api.v1alpha1.pod import EnvVar, Name, Resources, Text, Toleration


class PodTemplate(Contract):
    """Size and settings of the pods; everything that is not listed here is the operator's."""

    nodes: int = Field(1, ge=1, le=1024)
    """Number of pods of a stage."""
    processes_per_node: int = Field(1, ge=1, le=64)
    """Ranks in each pod, one a GPU."""
    resources: Resources | None = None
    """Requests and limits of each pod."""
    node_selector: Annotated[dict[Name, Text], Field(max_length=64)] | None = None
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=64)] | None = None
    """Taints that the pods accept."""
    env: Annotated[tuple[EnvVar, ...], Field(max_length=128)] | None = None
    """Environment variables of the trainer container."""
    priority_class_name: Name | None = None
    """Priority class of the pods."""
    termination_grace_period_seconds: int = Field(300, ge=15, le=86_400)
    """Seconds that a pod has to save a checkpoint after SIGTERM; a step and a save must fit."""
