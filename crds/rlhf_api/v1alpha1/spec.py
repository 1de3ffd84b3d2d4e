"""RLHFJobSpec: what a user may say."""

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints, model_validator

from rlhf_api.contract import Contract, Rule
from rlhf_api.v1alpha1.graph import stage_order
from rlhf_api.v1alpha1.pod import Name
from rlhf_api.v1alpha1.sources import S3_REFUSAL, URI
from rlhf_api.v1alpha1.stages import Stages
from rlhf_api.v1alpha1.template import PodTemplate

Image = Annotated[str, StringConstraints(min_length=1, max_length=512)]

MUTABLE_FIELDS = ("suspend", "runPolicy")
"""Fields of spec that may change after creation; the CRD's transition rules freeze all others."""


class Storage(Contract):
    """Where stages leave artifacts and checkpoints."""

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!self.uri.startsWith('s3://')",
            message=S3_REFUSAL,
            holds=lambda m: not m.uri.startswith("s3://"),
        ),
        Rule(
            cel="self.uri.startsWith('s3://') || self.uri.startsWith('pvc://')",
            message="uri must be pvc://claim/path, a PersistentVolumeClaim of the job's namespace",
            holds=lambda m: m.uri.startswith(("s3://", "pvc://")),
        ),
    )

    uri: URI
    """pvc://claim/path below which each job gets a folder of its own."""


class RunPolicy(Contract):
    """Limits of a run; may be changed while it runs."""

    max_restarts: int = Field(3, ge=0, le=1000)
    """Restarts of a stage that count against it, by crashes and the like, before it fails."""
    max_disruptions: int = Field(100, ge=0, le=100_000)
    """Restarts of a stage that do not count, by preemption and drained nodes, before it fails."""
    pending_deadline_seconds: int | None = Field(None, ge=1, le=31_536_000)
    """Seconds that an attempt's pods may wait to run before the job fails; no limit when left
    out."""
    stage_deadline_seconds: int | None = Field(None, ge=1, le=31_536_000)
    """Seconds that a stage may take, restarts included, before the job fails; no limit when left
    out."""
    active_deadline_seconds: int | None = Field(None, ge=1, le=31_536_000)
    """Seconds that the job may run, time in suspension left out, before it fails; no limit when
    left out."""
    progress_deadline_seconds: int | None = Field(1800, ge=10, le=31_536_000)
    """Seconds without a further step after which a running gang is restarted and the restart
    counted."""
    ttl_seconds_after_finished: int | None = Field(None, ge=0, le=31_536_000)
    """Seconds after its end when the job is deleted; never when left out."""


class RLHFJobSpec(Contract):
    """Desired state of an RLHFJob."""

    suspend: bool = False
    """Stops the job's pods after they saved a checkpoint, and continues from it when false again."""
    image: Image | None = None
    """Trainer image; the operator's setting trainerImage when left out."""
    storage: Storage | None = None
    """Where stages leave artifacts and checkpoints; needed on a cluster, while rlhf run uses its
    workdir."""
    template: PodTemplate = PodTemplate()
    """What the pods of all stages have in common."""
    run_policy: RunPolicy = RunPolicy()
    """Limits of the run."""
    queue_name: Name | None = None
    """Kueue queue that admits the job's pods; not queued when left out."""
    stages: Stages
    """The stages of the job."""

    @model_validator(mode="after")
    def _check_stage_graph(self) -> "RLHFJobSpec":
        stage_order(self.stages)
        return self

    def nodes(self, stage: str) -> int:
        """Number of pods of `stage`."""
        own: int | None = getattr(self.stages, stage).nodes
        return own if own is not None else self.template.nodes

    def processes_per_node(self, stage: str) -> int:
        """Ranks in each pod of `stage`."""
        own: int | None = getattr(self.stages, stage).processes_per_node
        return own if own is not None else self.template.processes_per_node
