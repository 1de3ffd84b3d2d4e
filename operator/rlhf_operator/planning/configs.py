"""The StageConfig of an attempt, from the job and where it is to run.

Called by `plan` for each attempt that is to start. Pure: no path is looked up.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import (
    POD_FIELDS,
    Artifact,
    JobReference,
    PPOStage,
    RLHFJob,
    StageConfig,
    StageSpec,
    claim_of,
    stage_inputs,
    uris,
)


@dataclass(frozen=True)
class Placement:
    """Where a job's stages run, as they see it.

    Attributes:
        storage: folder below which each job has its own.
        claims: where each claim of a pvc:// URI is mounted; more than a stage needs do no harm.
        master_address: host name of rank 0's pod; `{stage}` and `{attempt}` in it are filled in.
        master_port: port of the rendezvous; 0 lets the launcher of a single node choose.
        metrics_port: port of rank 0's Prometheus endpoint; 0 lets it choose.
        in_turn: stages of which at most one runs at a time, since they share this place's GPUs.
    """

    storage: str
    claims: Mapping[str, str] = field(default_factory=dict)
    master_address: str = "127.0.0.1"
    master_port: int = 0
    metrics_port: int = 0
    in_turn: frozenset[StageName] = frozenset()


def stage_config(
    job: RLHFJob,
    stage: StageName,
    attempt: int,
    artifacts: Mapping[StageName, Artifact],
    placement: Placement,
) -> StageConfig:
    """What attempt number `attempt` of `stage` is given, with its digest.

    Args:
        job: must have its uid; its status knows the attempts so far.
        stage: one of the job's stages.
        attempt: from 1.
        artifacts: what the stages have left so far, at least those that this one reads.
        placement: where it runs.
    """
    read = stage_inputs(job.spec.stages)[stage].values()
    spec = _trained_spec(job.spec.stages.present()[stage])
    claims = {claim_of(uri) for _, uri in uris(spec)}
    metadata, status = job.metadata, getattr(job.status.stages, stage)
    config = StageConfig(
        job=JobReference(name=metadata.name, namespace=metadata.namespace, uid=metadata.uid),
        stage=stage,
        attempt=attempt,
        nodes=job.spec.nodes(stage),
        processes_per_node=job.spec.processes_per_node(stage),
        gpus_requested=job.spec.gpus(stage),
        master_address=placement.master_address.format(stage=stage, attempt=attempt),
        master_port=placement.master_port,
        metrics_port=placement.metrics_port,
        storage=placement.storage,
        claims={name: path for name, path in placement.claims.items() if name in claims},
        artifacts={name: artifacts[name] for name in StageName if name in read},
        guardrails=job.spec.guardrails,
        guardrail_attempt=(status and status.guardrail_attempt) or 0,
        **{stage.value: spec},
    )
    return config.with_digest()


class Configs:
    """The StageConfigs of one pass over a job, each made once.

    Args:
        job: must have its uid.
        artifacts: what the stages have left so far.
        placement: where they run.
    """

    def __init__(
        self, job: RLHFJob, artifacts: Mapping[StageName, Artifact], placement: Placement
    ) -> None:
        self._job, self._artifacts, self._placement = job, artifacts, placement
        self._made: dict[tuple[StageName, int], StageConfig] = {}

    def missing(self, stage: StageName) -> list[StageName]:
        """The stages that this one reads and that have left nothing yet."""
        sources = dict.fromkeys(stage_inputs(self._job.spec.stages)[stage].values())
        return [source for source in sources if source not in self._artifacts]

    def rivals(self, stage: StageName) -> frozenset[StageName]:
        """The stages that cannot run beside this one."""
        in_turn = self._placement.in_turn
        return in_turn - {stage} if stage in in_turn else frozenset()

    def of(self, stage: StageName, attempt: int) -> StageConfig:
        """What an attempt is given; nothing may be missing."""
        key = stage, attempt
        if key not in self._made:
            made = stage_config(self._job, stage, attempt, self._artifacts, self._placement)
            self._made[key] = made
        return self._made[key]


def _trained_spec(spec: StageSpec) -> StageSpec:
    """The stage's specification without its pods' settings, its length and its preset settled.

    A preset's values are in the specification already; its name goes, so that a later release
    which mends the table changes no work that has begun.
    """
    length = {"epochs": 1} if spec.epochs is None and spec.max_steps is None else {}
    preset = {"preset": None} if isinstance(spec, PPOStage) else {}
    return spec.model_copy(update={**dict.fromkeys(POD_FIELDS), **length, **preset})
