"""RLHFJobSpec: what a user may say."""

import re
from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints, model_validator

from rlhf_api.contract import CelRule, Contract, ListMap, Rule
from rlhf_api.names import StageName
from rlhf_api.v1alpha1.graph import graph_rules, stage_order
from rlhf_api.v1alpha1.guardrails import Guardrail
from rlhf_api.v1alpha1.pod import QueueName
from rlhf_api.v1alpha1.sources import S3_REFUSAL, URI
from rlhf_api.v1alpha1.stage_rules import DEFAULT_BATCH_SIZE
from rlhf_api.v1alpha1.stages import PPOStage, Stages
from rlhf_api.v1alpha1.template import PodTemplate

Image = Annotated[str, StringConstraints(min_length=1, max_length=512)]

MUTABLE_FIELDS = ("suspend", "guardrails", "runPolicy")
"""Fields of spec that may change after creation; the CRD's transition rules freeze all others."""

_PARENT_FOLDER = r"(^|/)\.\.(/|$)"


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
        Rule(
            cel=f"!self.uri.matches(r'{_PARENT_FOLDER}')",
            message="uri must not leave its claim by ..; write the path without it",
            holds=lambda m: re.search(_PARENT_FOLDER, m.uri) is None,
        ),
    )

    uri: URI
    """pvc://claim/path below which each job gets a folder of its own."""


class RunPolicy(Contract):
    """Limits of a run; may be changed while it runs."""

    max_restarts: int = Field(3, ge=0, le=1000)
    """Restarts of a stage that count against it, by crashes and the like, before it fails."""
    max_disruptions: int = Field(100, ge=0, le=100_000)
    """Restarts of a stage that do not count, by preemption and drained nodes, before it fails; one
    whose attempt wrote no later checkpoint counts in maxRestarts."""
    pending_deadline_seconds: int | None = Field(None, ge=1, le=31_536_000)
    """Seconds that an attempt's pods may wait to run before the job fails; no limit when left
    out."""
    stage_deadline_seconds: int | None = Field(None, ge=1, le=31_536_000)
    """Seconds that a stage may take, restarts included, but not time in suspension, in a queue or
    refused by the cluster, before the job fails; no limit when left out."""
    active_deadline_seconds: int | None = Field(None, ge=1, le=31_536_000)
    """Seconds that the job may run before it fails; time in which it is suspended, in a queue or
    refused by the cluster does not count; no limit when left out."""
    progress_deadline_seconds: int | None = Field(1800, ge=10, le=31_536_000)
    """Seconds without a further step after which a running gang is restarted and the restart
    counted."""
    ttl_seconds_after_finished: int | None = Field(None, ge=0, le=31_536_000)
    """Seconds after its end when the job is deleted; never when left out."""
    keep_failed_attempts: int = Field(2, ge=0, le=1000)
    """Failed attempts of a stage whose Job, pods and ConfigMap are kept for their logs, the newest
    ones, while older ones are removed, and one that has to be ended goes with its logs at once: it
    hangs, exceeds a deadline, is suspended, or an injected container runs on in it; rlhf run keeps
    the folders of all."""


def _cel_number(stage: StageName, field: str, otherwise: str) -> str:
    return f"(has(self.stages.{stage}.{field}) ? self.stages.{stage}.{field} : {otherwise})"


def _cel_ranks(stage: StageName) -> str:
    factors = []
    for field in ("nodes", "processesPerNode"):
        common = f"(has(self.template) && has(self.template.{field}) ? self.template.{field} : 1)"
        factors.append(_cel_number(stage, field, common))
    return f"({' * '.join(factors)})"


def _batch_rules() -> Iterator[CelRule]:
    """CEL of `RLHFJobSpec._check_batches`."""
    for stage in StageName:
        batch = _cel_number(stage, "batchSize", str(DEFAULT_BATCH_SIZE))
        yield CelRule(
            cel=f"!has(self.stages.{stage}) || {batch} % {_cel_ranks(stage)} == 0",
            message=f"stages.{stage}.batchSize ({DEFAULT_BATCH_SIZE} when left out) must be a "
            "multiple of the stage's ranks, nodes times processesPerNode; change one of them",
        )
    ppo = f"self.stages.{StageName.PPO}"
    yield CelRule(
        cel=f"!has({ppo}) || !has({ppo}.minibatchSize) "
        f"|| {ppo}.minibatchSize % {_cel_ranks(StageName.PPO)} == 0",
        message="stages.ppo.minibatchSize must be a multiple of the stage's ranks, nodes times "
        "processesPerNode; change one of them",
    )


def _transition_rule(field: str) -> CelRule:
    # On spec, since a rule on the field itself is skipped when the field comes or goes.
    return CelRule(
        cel=f"has(self.{field}) == has(oldSelf.{field}) "
        f"&& (!has(self.{field}) || self.{field} == oldSelf.{field})",
        message=f"{field} cannot be changed; delete the job and create it anew",
    )


def _quantity_rules() -> Iterator[CelRule]:
    """Say more than the rules above where `4` was written and `"4"` is."""
    as_written = (
        "is not as it was, and quantities are compared as written: 4 is neither '4' nor 4000m; "
        "write them as before, or delete the job and create it anew"
    )
    for holder in ("template", *(f"stages.{stage}" for stage in StageName)):
        path = f"{holder}.resources"
        given = [f"has({side}.{holder}) && has({side}.{path})" for side in ("self", "oldSelf")]
        cel = f"!({' && '.join(given)}) || self.{path} == oldSelf.{path}"
        yield CelRule(cel=cel, message=f"{path} {as_written}")
    path, size = "template.volumes", "emptyDir.sizeLimit"
    given = [f"has({side}.template) && has({side}.{path})" for side in ("self", "oldSelf")]
    limits = [f"has({each}.emptyDir) && has({each}.{size})" for each in ("v", "w")]
    other = f"v.name == w.name && {' && '.join(limits)} && v.{size} != w.{size}"
    yield CelRule(
        cel=f"!({' && '.join(given)}) || !self.{path}.exists(v, oldSelf.{path}.exists(w, {other}))",
        message=f"{path}[].{size} {as_written}",
    )


class RLHFJobSpec(Contract):
    """Desired state of an RLHFJob."""

    API_RULES: ClassVar[tuple[CelRule, ...]] = (
        *graph_rules(),
        *_batch_rules(),
        *(
            _transition_rule(field)
            for field in ("image", "storage", "template", "queueName", "stages")
        ),
        *_quantity_rules(),
    )

    suspend: bool = False
    """Stops the pods after they saved a checkpoint; the job goes on from it when false again."""
    image: Image | None = None
    """Trainer image; the operator's setting trainerImage when left out."""
    storage: Storage | None = None
    """Where stages leave artifacts and checkpoints; needed on a cluster, while rlhf run uses its
    workdir."""
    template: PodTemplate = PodTemplate()
    """What the pods of all stages have in common."""
    run_policy: RunPolicy = RunPolicy()
    """Limits of the run."""
    guardrails: Annotated[tuple[Guardrail, ...], Field(max_length=16), ListMap("rule")] = ()
    """What is done when PPO goes wrong, for each rule at most once; all others are observed, and a
    change holds from the next attempt on."""
    queue_name: QueueName | None = None
    """Kueue queue that admits the job's pods; not queued when left out."""
    stages: Stages
    """The stages of the job."""

    @model_validator(mode="after")
    def _check_stage_graph(self) -> "RLHFJobSpec":
        stage_order(self.stages)
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> "RLHFJobSpec":
        for name, stage in self.stages.present().items():
            nodes, processes = self.nodes(name), self.processes_per_node(name)
            batches = {"batchSize": stage.batch_size}
            if isinstance(stage, PPOStage) and stage.minibatch_size is not None:
                batches["minibatchSize"] = stage.minibatch_size
            for field, size in batches.items():
                if size % (nodes * processes):
                    raise ValueError(
                        f"stages.{name}.{field}: {size} is no multiple of the stage's "
                        f"{nodes * processes} ranks (nodes {nodes} times processesPerNode "
                        f"{processes}); change one of them"
                    )
        return self

    def nodes(self, stage: str) -> int:
        """Number of pods of `stage`."""
        own: int | None = getattr(self.stages, stage).nodes
        return own if own is not None else self.template.nodes

    def processes_per_node(self, stage: str) -> int:
        """Ranks in each pod of `stage`."""
        own: int | None = getattr(self.stages, stage).processes_per_node
        return own if own is not None else self.template.processes_per_node

    def gpus(self, stage: str) -> int:
        """GPUs that each pod of `stage` asks for; its limits replace those of the template."""
        own, shared = getattr(self.stages, stage).resources, self.template.resources
        given = [each for each in (own, shared) if each is not None and each.limits is not None]
        return given[0].gpus if given else 0
