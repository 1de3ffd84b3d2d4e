"""RLHFJobStatus: what is known of a run. Derived anew in every pass; written by one writer.

Read leniently, other than a spec: a newer operator may have written it. What is not known is kept
and written back.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, FiniteFloat, StringConstraints, WithJsonSchema

from rlhf_api.contract import Contract, ListMap
from rlhf_api.names import ConditionType, Phase, Reason, StageState

MAX_MESSAGE_LENGTH = 8192
MAX_TEXT_LENGTH = 256
MAX_COUNT = 2_147_483_647
MAX_ROW_COUNTS = 8

Message = Annotated[str, StringConstraints(max_length=MAX_MESSAGE_LENGTH)]
ShortText = Annotated[str, StringConstraints(max_length=MAX_TEXT_LENGTH)]
Digest = Annotated[str, StringConstraints(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")]
# Open in the CRD: an operator may be newer than the CRD, and a status that the API server refuses
# would stop it.
_Word = WithJsonSchema({"type": "string", "maxLength": 64, "pattern": "^[A-Za-z]+$"})
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
# The enum first: pydantic would else take every word for a plain string, which it is as well.
_KNOWN_FIRST = Field(union_mode="left_to_right")


class StatusModel(Contract):
    """Part of a status: fields that are not known are kept."""

    model_config = ConfigDict(extra="allow")


class Condition(StatusModel):
    """A metav1.Condition."""

    type: Annotated[ConditionType | str, _KNOWN_FIRST, _Word]
    """What the condition says something about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[Reason | str, _KNOWN_FIRST, _Word]
    """Why, in one word."""
    message: Message
    """Why, in a sentence with object, field, value and remedy."""
    last_transition_time: datetime
    """When status last changed."""
    observed_generation: Count | None = None
    """Generation of the spec that this condition was derived from."""


class Progress(StatusModel):
    """How far a stage is."""

    step: Count
    """Steps done."""
    total_steps: Count
    """Steps in all."""
    percent: int = Field(ge=0, le=100)
    """Share of steps done, in percent, rounded down."""
    eta_seconds: Count | None = None
    """Estimated seconds to the stage's end."""


class RowCounts(StatusModel):
    """What became of the rows of one dataset; of pairs, where a stage compares responses."""

    kept: Count
    """Rows that are used."""
    truncated: Count = 0
    """Those of them that were cut to the stage's limits."""
    encoded_apart: Count = 0
    """Those of them of which a prompt and a response were encoded apart, since a token would
    straddle their boundary."""
    over_long: Count = 0
    """Rows left out, since longer than the stage's limits."""
    identical: Count = 0
    """Pairs left out, since chosen and rejected are the same tokens."""
    empty_list: Count = 0
    """MIRACL rows left out, since without positive or without negative passages; no loss."""
    not_learned: Count = 0
    """Rows left out, since they say so themselves, by weight 0 or train false; no loss."""

    @property
    def lost(self) -> int:
        """Rows that were to be used and are not."""
        return self.over_long + self.identical

    @property
    def left_out(self) -> int:
        """Rows that are not used, for whatever reason."""
        return self.lost + self.empty_list + self.not_learned

    @property
    def text(self) -> str:
        """The same in a clause."""
        found = {
            "cut to the limit": self.truncated,
            "with prompt and response encoded apart": self.encoded_apart,
            "left out as too long": self.over_long,
            "left out with identical responses": self.identical,
            "left out without positive or negative passages": self.empty_list,
            "left out by their weight": self.not_learned,
        }
        parts = [f"{number} {what}" for what, number in found.items() if number]
        return ", ".join([f"{self.kept} rows used", *parts])


Rows = Annotated[dict[ShortText, RowCounts], Field(max_length=MAX_ROW_COUNTS)]
"""By the dataset's field: dataset, evalDataset or ptxDataset."""


class Artifact(Contract):
    """What a finished stage left."""

    uri: Annotated[str, StringConstraints(max_length=2048)]
    """Where it lies."""
    digest: Digest
    """Digest of its manifest.json, which holds the digests of all other files."""


class StageArtifact(Artifact):
    """What a finished stage left, as status keeps it."""

    model_config = ConfigDict(extra="allow")


class StageStatus(StatusModel):
    """State of one stage."""

    state: Annotated[StageState | str, _KNOWN_FIRST, _Word]
    """Where the stage stands."""
    attempt: Count = 0
    """Number of the current attempt, from 1; 0 before the first."""
    created_attempt: Count | None = None
    """Number of the last attempt whose Job was seen; none before the first is made."""
    restarts: Count = 0
    """Restarts that count against runPolicy.maxRestarts."""
    disruptions: Count = 0
    """Restarts that do not count, by preemption, drained nodes and suspension."""
    start_time: datetime | None = None
    """When the first attempt was made."""
    attempt_start_time: datetime | None = None
    """When the current attempt was made."""
    pending_since: datetime | None = None
    """When a queue last let the current attempt run; pendingDeadlineSeconds counts from then, or
    from attemptStartTime."""
    idle_seconds: Count = 0
    """Seconds after startTime in which nothing was to run, by suspension, a queue and the like;
    deadlines leave them out."""
    idle_since: datetime | None = None
    """Since when a queue, a quota or a guardrail keeps the stage from running; not yet in
    idleSeconds."""
    completion_time: datetime | None = None
    """When the stage ended."""
    retry_time: datetime | None = None
    """When the next attempt is due."""
    last_progress_time: datetime | None = None
    """When the step last grew."""
    config_digest: Digest | None = None
    """Digest of the stage's configuration."""
    reported_attempt: Count | None = None
    """Number of the last attempt that told metrics or broken rules; those below are of it."""
    progress: Progress | None = None
    """How far the stage is."""
    metrics: Annotated[dict[ShortText, FiniteFloat], Field(max_length=32)] | None = None
    """The last metrics that the stage told."""
    verdicts: Annotated[dict[ShortText, ShortText], Field(max_length=32)] | None = None
    """Broken rules of guardrails, each with its evidence as it was found; none before any is
    judged."""
    guardrail_attempt: Count | None = None
    """Last attempt that a guardrail has ended; none if none has."""
    last_checkpoint_step: Count | None = None
    """Step of the newest complete checkpoint."""
    rows: Rows | None = None
    """What became of the rows of each dataset, by its field; none before they are read."""
    disruption: Message | None = None
    """How the current attempt was disrupted, by preemption, a drain or a lost node, as it was first
    seen."""
    disruption_reason: Annotated[Reason | str, _KNOWN_FIRST, _Word] | None = None
    """The same in one word; none where disruption is none."""
    artifact: StageArtifact | None = None
    """What the stage left."""
    reason: Annotated[Reason | str, _KNOWN_FIRST, _Word] | None = None
    """Why the stage is in its state."""
    message: Message | None = None
    """The same in a sentence."""


class StageStatuses(StatusModel):
    """State of each stage that is in the spec."""

    sft: StageStatus | None = None
    """Supervised fine-tuning."""
    reward: StageStatus | None = None
    """The reward model."""
    ppo: StageStatus | None = None
    """PPO."""


class Summary(StatusModel):
    """Short texts for people and printer columns; nothing reads them."""

    stage: ShortText = ""
    """Stages that run now, or the last one."""
    progress: ShortText = ""
    """Share of the current stage that is done."""
    restarts: ShortText = ""
    """Restarts of all stages that count."""
    reward: ShortText = ""
    """Last mean score of PPO."""
    kl: ShortText = ""
    """Last mean KL of actor against reference in nats an answer."""
    critic_loss: ShortText = ""
    """Last critic loss."""
    rows: ShortText = ""
    """Rows that the stages have left out, of all that they read; empty where there are none."""
    reason: ShortText = ""
    """Reason of the condition that explains the phase."""


class RLHFJobStatus(StatusModel):
    """What is known of a run."""

    observed_generation: Count | None = None
    """Generation of the spec that this status was derived from."""
    phase: Annotated[Phase | str, _KNOWN_FIRST, _Word] | None = None
    """Derived for people; nothing reads it."""
    start_time: datetime | None = None
    """When the first stage started."""
    idle_seconds: Count = 0
    """Seconds after startTime in which nothing was to run, by suspension, a queue and the like;
    deadlines leave them out."""
    idle_since: datetime | None = None
    """Since when a queue or a quota keeps all stages from running; not yet in idleSeconds."""
    completion_time: datetime | None = None
    """When the job ended."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), ListMap("type")] = ()
    """Conditions by type."""
    stages: StageStatuses = StageStatuses()
    """State of each stage."""
    summary: Summary = Summary()
    """Short texts for people."""
