"""StageConfig and StageResult: what a trainer pod is given, and what it gives back."""

import hashlib
import json
import math
from bisect import bisect_left
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Any, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from rlhf_api.contract import Contract
from rlhf_api.errors import ConfigError, ContractVersionError
from rlhf_api.loading import describe_errors
from rlhf_api.names import (
    CONTRACT_VERSION,
    MAX_RESULT_BYTES,
    MAX_RESULT_METRICS,
    FileName,
    GuardrailRule,
    Reason,
    StageName,
)
from rlhf_api.v1alpha1.bounds import bounded_result, bounded_text
from rlhf_api.v1alpha1.guardrails import Guardrail, HealthVerdict
from rlhf_api.v1alpha1.pod import MAX_GPUS
from rlhf_api.v1alpha1.stages import PPOStage, RewardStage, SFTStage, StageSpec
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH, Artifact, Digest, Message, Rows

Path = Annotated[str, StringConstraints(min_length=1, max_length=4096)]

POD_FIELDS = (
    "nodes",
    "processes_per_node",
    "resources",
    "node_selector",
    "tolerations",
    "env",
    "priority_class_name",
)
"""What a stage says about its pods; the trainer has no use for it, and no result depends on it."""

COSMETIC_FIELDS = (
    *POD_FIELDS,
    "device",
    "checkpoint",
    "samples_every_steps",
    "gradient_checkpointing",
    "offload_frozen_models",
)
"""Fields of a stage's specification that do not determine its result; never in a digest.

A device rounds in another way, as another model of GPU does, which nobody states either: what is
computed is the same, and a stage that lost its GPUs may go on without them. Gradient checkpointing
leaves less room to rollouts, whose answers may then stand beside others and round in another way.
"""

PATIENCE_FIELDS = ("timeout_seconds", "retries", "batch_size", "token_env")
"""Fields of a reward's endpoint that say how it is asked, and not what it answers."""


_CONSENT_FIELDS = ("allow_loss",)
"""Fields of a dataset that let a stage go on, and change nothing of what it does then."""

DATASETS = ("dataset", "eval_dataset", "ptx_dataset")
"""Fields of a stage's specification that name rows; not every stage has all of them."""


def outside_result(spec: StageSpec) -> dict[str, Any]:
    """What of a stage's specification determines no result, as `exclude` of a pydantic dump."""
    found: dict[str, Any] = dict.fromkeys(COSMETIC_FIELDS, True)
    for name in DATASETS:
        if getattr(spec, name, None) is not None:
            found[name] = set(_CONSENT_FIELDS)
    if isinstance(spec, PPOStage):
        found["rewards"] = {"__all__": {"endpoint": set(PATIENCE_FIELDS)}}
    return found


_OUTSIDE_DIGEST = (
    "attempt",
    "gpus_requested",
    "master_address",
    "master_port",
    "metrics_port",
    "storage",
    "claims",
    "config_digest",
    "guardrails",
    "guardrail_attempt",
    # What they say of the result is added in another form.
    "nodes",
    "processes_per_node",
    "artifacts",
)
"""Fields that say where the work is done and not what it is: a folder that was moved, or mounted
elsewhere, keeps its checkpoints."""


_SURE_OF_MESSAGE = 512
"""Characters of a message that metrics give way to."""


def _cut(message: Any) -> Any:
    """A message that fits and is Unicode; whoever tells a failure must not fail at telling it."""
    if not isinstance(message, str):
        return message
    return bounded_text(message.encode("utf-8", "replace").decode(), MAX_MESSAGE_LENGTH)


def _finite_only(metrics: Any) -> Any:
    if not isinstance(metrics, dict):
        return metrics
    return {
        name: value
        for name, value in metrics.items()
        if not isinstance(value, float) or math.isfinite(value)
    }


def _largest(numbers: range, fits: Callable[[int], bool]) -> int:
    """The largest number that fits, or the first: what fits ends where something does not."""
    return numbers[max(0, bisect_left(numbers, True, key=lambda number: not fits(number)) - 1)]


class JobReference(Contract):
    """The RLHFJob that a stage belongs to."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """metadata.name."""
    namespace: Annotated[str, StringConstraints(max_length=63)] = ""
    """metadata.namespace; empty in local mode."""
    uid: Annotated[str, StringConstraints(min_length=8, max_length=64)]
    """metadata.uid; made at the first run in local mode."""

    @property
    def folder(self) -> str:
        """Name of the job's folder below the storage root."""
        return f"{self.name}-{self.uid[:8]}"


class StageConfig(Contract):
    """Everything one attempt of one stage needs; `stage.json` of the pod."""

    contract_version: int = CONTRACT_VERSION
    """Version of this contract that the writer speaks."""
    job: JobReference
    """The job."""
    stage: StageName
    """The stage; the one of sft, reward and ppo that is set."""
    attempt: int = Field(ge=1)
    """Number of the attempt, from 1."""
    nodes: int = Field(1, ge=1)
    """Number of pods."""
    processes_per_node: int = Field(1, ge=1)
    """Ranks in each pod."""
    gpus_requested: int = Field(0, ge=0, le=MAX_GPUS)
    """GPUs that resources.limits asks for in each pod; device Auto puts no CPU in their place."""
    master_address: Annotated[str, StringConstraints(max_length=253)] = "127.0.0.1"
    """Host name of the pod with rank 0."""
    master_port: int = Field(0, ge=0, le=65535)
    """Port of the rendezvous on it; 0 lets the launcher of a single node choose a free one."""
    metrics_port: int = Field(0, ge=0, le=65535)
    """Port of rank 0's Prometheus endpoint; 0 chooses a free one, which events.jsonl names."""
    storage: Path
    """Folder below which each job has its own."""
    claims: dict[str, Path] = Field(default_factory=dict)
    """Where each claim of a pvc:// URI is mounted."""
    artifacts: dict[StageName, Artifact] = Field(default_factory=dict)
    """What the stages that this one reads have left; URIs are relative to storage."""
    sft: SFTStage | None = None
    """Specification of the stage, if it is sft."""
    reward: RewardStage | None = None
    """Specification of the stage, if it is reward."""
    ppo: PPOStage | None = None
    """Specification of the stage, if it is ppo."""
    guardrails: tuple[Guardrail, ...] = ()
    """What is done when training goes wrong."""
    guardrail_attempt: int = Field(0, ge=0)
    """Last attempt that is known to have been ended by a guardrail; 0 if none is. What a later one
    has saved of such an end was told to nobody."""
    config_digest: Digest = ""
    """What `digest` gave to the writer; empty until `with_digest`, and never so in a file."""

    @model_validator(mode="after")
    def _check_stage(self) -> Self:
        present = [name for name in StageName if getattr(self, name) is not None]
        if present != [self.stage]:
            raise ValueError(f"stage is {self.stage}, but the specification is of {present}")
        return self

    @property
    def spec(self) -> StageSpec:
        """The specification of the stage."""
        spec: StageSpec = getattr(self, self.stage)
        return spec

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.nodes * self.processes_per_node

    @property
    def stage_folder(self) -> PurePosixPath:
        """Folder of all attempts of this stage."""
        return PurePosixPath(self.storage) / self.job.folder / self.stage

    @property
    def attempt_folder(self) -> PurePosixPath:
        """Folder of this attempt, the only one that it writes to."""
        return self.stage_folder / f"attempt-{self.attempt}"

    @property
    def artifact_uri(self) -> str:
        """The artifact's folder relative to storage."""
        folder = self.attempt_folder / FileName.ARTIFACT
        return str(folder.relative_to(self.storage))

    def digest(self) -> str:
        """sha256 of what determines the result, so that the attempts of a stage agree.

        Computed by the writer alone: a reader of another release has other fields and defaults.
        What has its default is left out, so that a field which a later release adds changes no
        digest until it is set; the contract's version stands for the defaults themselves. The job
        is in it, since a StageResult names its job by nothing else.
        """
        left_out: dict[str, Any] = dict.fromkeys(_OUTSIDE_DIGEST, True)
        left_out[self.stage.value] = outside_result(self.spec)
        document = self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True, exclude=left_out
        )
        document["contractVersion"] = self.contract_version
        document["worldSize"] = self.world_size
        # An artifact is what it holds, wherever it lies.
        document["artifacts"] = {name: each.digest for name, each in self.artifacts.items()}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def with_digest(self) -> Self:
        """The same with its digest written into it, as the writer of a file needs it."""
        return self.model_copy(update={"config_digest": self.digest()})

    def to_json(self) -> str:
        """The text of `stage.json`: its version, and every field that has not its default.

        An image that does not know a field can read the file as long as nobody has set it.
        """
        document = {"contractVersion": self.contract_version} | self.model_dump(
            mode="json", by_alias=True, exclude_defaults=True
        )
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "StageConfig":
        """Read `stage.json`.

        Raises:
            ContractVersionError: of another version of the contract.
            ConfigError: not JSON, without a digest, or against the schema.
        """
        try:
            document: Any = json.loads(text)
        except json.JSONDecodeError as error:
            raise ConfigError(f"stage.json is not JSON: {error}; write it with to_json") from error
        version = document.get("contractVersion") if isinstance(document, dict) else None
        if version != CONTRACT_VERSION:
            raise ContractVersionError("stage.json", version, "trainer image")
        try:
            config = cls.parse_json(text)
        except ValidationError as error:
            raise ConfigError("\n".join(describe_errors(error, cls, "stage.json"))) from error
        if not config.config_digest:
            raise ConfigError(
                "stage.json: configDigest: is missing; have the operator or rlhf run write the "
                "file, since only its writer can compute it"
            )
        return config


class StageResult(Contract):
    """What an attempt says at its end; the termination message of its pods.

    Read leniently, other than a StageConfig: an image may know a field more than its operator.
    """

    model_config = ConfigDict(extra="ignore")

    contract_version: int = CONTRACT_VERSION
    """Version of this contract that the writer speaks."""
    stage: StageName
    """The stage."""
    attempt: int = Field(ge=1)
    """Number of the attempt."""
    config_digest: Digest
    """Digest of the StageConfig that was run."""
    exit_code: int = Field(ge=0, le=255)
    """Exit code of the process that says it."""
    reason: Reason
    """Why it ended."""
    message: Annotated[Message, BeforeValidator(_cut)] = ""
    """The same in a sentence with object, field, value and remedy."""
    step: int = Field(0, ge=0)
    """Steps done."""
    total_steps: int = Field(0, ge=0)
    """Steps in all; 0 while not known."""
    last_checkpoint_step: int | None = Field(None, ge=0)
    """Step of the newest complete checkpoint."""
    artifact: Artifact | None = None
    """What the stage left; its URI is relative to storage."""
    metrics: Annotated[
        dict[str, float], Field(max_length=MAX_RESULT_METRICS), BeforeValidator(_finite_only)
    ] = Field(default_factory=dict)
    """The last metrics; those that are not finite are left out, since JSON cannot hold them."""
    verdicts: Annotated[tuple[HealthVerdict, ...], Field(max_length=len(GuardrailRule))] = ()
    """Rules that were broken at the end; that one whose action ended the attempt is the first."""
    rows: Rows | None = None
    """What became of the rows of each dataset, by its field; none where none were read."""

    def to_message(self) -> str:
        """JSON of at most 4 KiB: a message that is too long loses its middle.

        The last of the metrics give way to the first of the message, and to artifact and verdicts.
        """
        sure = min(len(self.message), _SURE_OF_MESSAGE)
        metrics = len(self.metrics)
        if not self._fits(sure, metrics):
            metrics = _largest(range(metrics + 1), lambda number: self._fits(sure, number))
        length = _largest(range(len(self.message) + 1), lambda cut: self._fits(cut, metrics))
        if not self._fits(length, metrics):
            raise ValueError(f"a StageResult without message exceeds {MAX_RESULT_BYTES} bytes")
        return self._cut_to(length, metrics)

    def _fits(self, length: int, metrics: int) -> bool:
        return len(self._cut_to(length, metrics).encode()) <= MAX_RESULT_BYTES

    def _cut_to(self, length: int, metrics: int) -> str:
        kept = dict(list(self.metrics.items())[:metrics])
        message = bounded_text(self.message, length)
        cut = self.model_copy(update={"message": message, "metrics": kept})
        document = cut.to_resolved_document()
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_message(cls, text: str) -> "StageResult | None":
        """The result in a termination message; None if it holds none.

        Numbers are kept within what a status can hold, and what cannot be read beside them is left
        out: how an attempt ended outweighs how far it was.

        Raises:
            ContractVersionError: written by another release.
        """
        try:
            document: Any = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict):
            return None
        version = document.get("contractVersion")
        if isinstance(version, int) and version != CONTRACT_VERSION:
            raise ContractVersionError("the stage's result", version, "operator")
        bounded = json.dumps(bounded_result(document), ensure_ascii=False)
        try:
            return cls.parse_json(bounded.encode("utf-8", "replace"))
        except ValidationError:
            return None
