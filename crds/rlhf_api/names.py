"""The one vocabulary: every name that the operator, the trainer, their users and the docs share.

The training metrics stand in `metrics`.

Read by all packages; imports nothing but the standard library, and decides nothing.
"""

from enum import IntEnum, StrEnum

GROUP = "rlhf.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "RLHFJob"
PLURAL = "rlhfjobs"
SINGULAR = "rlhfjob"
SHORT_NAME = "rlhf"
CATEGORIES = ("all", "rlhf")

CONTRACT_VERSION = 4
"""Version of StageConfig and StageResult; grows when an older image could misread a newer file, as
where a default changes: files and digests leave defaults out."""

# Names of children end in "-reward-<attempt>" and must stay DNS labels of at most 63 characters.
MAX_JOB_NAME_LENGTH = 40


class StageName(StrEnum):
    """The stages of a job, in the order in which people name them."""

    SFT = "sft"
    REWARD = "reward"
    PPO = "ppo"


class Label:
    """Labels on every child; `MANAGED_BY` carries `OPERATOR_NAME`."""

    MANAGED_BY = "app.kubernetes.io/managed-by"
    JOB = f"{GROUP}/job"
    JOB_UID = f"{GROUP}/job-uid"
    STAGE = f"{GROUP}/stage"
    ATTEMPT = f"{GROUP}/attempt"
    QUEUE = "kueue.x-k8s.io/queue-name"
    QUEUE_PRIORITY = "kueue.x-k8s.io/priority-class"
    """The user's: Kueue orders queued Jobs by it."""


class Annotation:
    """Annotations on children."""

    CONFIG_DIGEST = f"{GROUP}/config-digest"
    CHECKPOINT_STEP = f"{GROUP}/checkpoint-step"
    """Step of the newest checkpoint when the attempt was started; absent when there was none."""
    GUARDRAILS = f"{GROUP}/guardrails"
    """Digest of the guardrails that the attempt was started with."""


OPERATOR_NAME = "rlhf-operator"


class Port:
    """Named container ports and their numbers."""

    METRICS_NAME = "metrics"
    METRICS = 9400
    RENDEZVOUS = 29500


class ContainerPath:
    """Where a training pod finds what the operator mounts."""

    STAGE_CONFIG = "/etc/rlhf/stage.json"
    CLAIMS = "/mnt/claims"
    TERMINATION_MESSAGE = "/dev/termination-log"


MAX_RESULT_BYTES = 4096
"""The kubelet keeps at most this many bytes of a termination message."""

MAX_RESULT_METRICS = 32
"""As many metrics as a StageResult holds."""


class EnvVar:
    """Environment that the trainer reads. Where a process stands, never how it trains."""

    COMPLETION_INDEX = "JOB_COMPLETION_INDEX"
    TERMINATION_MESSAGE = "RLHF_TERMINATION_MESSAGE"
    GRACE_PERIOD_SECONDS = "RLHF_GRACE_PERIOD_SECONDS"
    CACHE = "RLHF_CACHE"
    """Folder of the node's own, where tokens are kept; the user's cache folder without it."""


class FileName:
    """Files below a stage attempt's folder."""

    CHECKPOINTS = "checkpoints"
    ARTIFACT = "artifact"
    MANIFEST = "manifest.json"
    LATEST = "latest"
    EVENTS = "events.jsonl"
    SAMPLES = "samples.jsonl"
    EVALUATION = "evaluation.json"
    EVALUATION_SAMPLES = "evaluation_samples.jsonl"
    REWARD_STATISTICS = "reward_statistics.json"


class WorkdirFile:
    """Files of the folder in which `rlhf run` keeps a job."""

    LOCK = "lock"
    STATUS = "status.yaml"
    SUMMARY = "summary.json"


class ExitCode(IntEnum):
    """What a training process says by leaving; the operator's reaction is in `failure_class`."""

    DONE = 0
    CRASH = 1
    GUARDRAIL = 42
    USAGE = 64
    DATA = 65
    INPUT = 66
    UNAVAILABLE = 69
    NUMERICS = 70
    IO = 74
    STOPPED_WITH_CHECKPOINT = 75
    NO_PERMISSION = 77
    CONFIG = 78
    PEER_LOST = 80
    KILLED = 137
    STOPPED = 143


class FailureClass(StrEnum):
    """How a gang's failure is judged, from the strongest to the weakest evidence."""

    DISRUPTED = "Disrupted"
    GUARDRAIL = "Guardrail"
    USER_ERROR = "UserError"
    CRASH = "Crash"
    STOPPED = "Stopped"
    PEER_LOST = "PeerLost"


USER_ERROR_CODES = frozenset(
    {
        ExitCode.USAGE,
        ExitCode.DATA,
        ExitCode.INPUT,
        ExitCode.NUMERICS,
        ExitCode.NO_PERMISSION,
        ExitCode.CONFIG,
    }
)
"""Exit codes that need a person: the stage fails at once and is not restarted."""


def failure_class(code: int) -> FailureClass:
    """Class of one process's exit code; raises ValueError for 0, which is no failure."""
    if code == ExitCode.DONE:
        raise ValueError("exit code 0 is no failure")
    if code == ExitCode.GUARDRAIL:
        return FailureClass.GUARDRAIL
    if code in USER_ERROR_CODES:
        return FailureClass.USER_ERROR
    if code in (ExitCode.STOPPED_WITH_CHECKPOINT, ExitCode.STOPPED):
        return FailureClass.STOPPED
    if code == ExitCode.PEER_LOST:
        return FailureClass.PEER_LOST
    return FailureClass.CRASH


class ConditionType(StrEnum):
    """Condition types of an RLHFJob, all of positive polarity but Suspended and Failed."""

    ACCEPTED = "Accepted"
    CHILDREN_READY = "ChildrenReady"
    CHILDREN_INTACT = "ChildrenIntact"
    ADMITTED = "Admitted"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    PROGRESS_REPORTING = "ProgressReporting"
    HEALTHY = "Healthy"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class Reason(StrEnum):
    """Every reason that a condition, a stage or an Event of ours carries."""

    # Accepted
    VALID = "Valid"
    INVALID_SPEC = "InvalidSpec"
    # ChildrenReady
    CREATED = "Created"
    NAME_CONFLICT = "NameConflict"
    CLAIM_MISSING = "ClaimMissing"
    # ChildrenReady, and why the Job controller could make no pods: `REFUSALS`
    QUOTA_EXCEEDED = "QuotaExceeded"
    RESOURCES_REQUIRED = "ResourcesRequired"
    LIMIT_RANGE_VIOLATED = "LimitRangeViolated"
    POD_SECURITY_VIOLATED = "PodSecurityViolated"
    PRIORITY_CLASS_MISSING = "PriorityClassMissing"
    SERVICE_ACCOUNT_MISSING = "ServiceAccountMissing"
    RUNTIME_CLASS_MISSING = "RuntimeClassMissing"
    POLICY_DENIED = "PolicyDenied"
    WEBHOOK_DENIED = "WebhookDenied"
    WEBHOOK_UNAVAILABLE = "WebhookUnavailable"
    WEBHOOK_FAILED = "WebhookFailed"
    ADMISSION_DENIED = "AdmissionDenied"
    INVALID_MUTATION = "InvalidMutation"
    INVALID_POD = "InvalidPod"
    FORBIDDEN = "Forbidden"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    API_ERROR = "ApiError"
    # ChildrenIntact
    INTACT = "Intact"
    FOREIGN_CHILD = "ForeignChild"
    CHILD_CHANGED = "ChildChanged"
    # Admitted
    QUEUED = "Queued"
    ADMITTED = "Admitted"
    EVICTED = "Evicted"
    # Running
    PODS_READY = "PodsReady"
    PODS_PENDING = "PodsPending"
    UNSCHEDULABLE = "Unschedulable"
    SCHEDULING_GATED = "SchedulingGated"
    SCHEDULER_ERROR = "SchedulerError"
    IMAGE_PULL = "ImagePull"
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    CONTAINER_CONFIG = "ContainerConfig"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"
    CRASH_LOOP = "CrashLoop"
    STOPPING = "Stopping"
    FINISHED = "Finished"
    WAITING_FOR_STAGE = "WaitingForStage"
    # Of Events alone
    ROWS_LEFT_OUT = "RowsLeftOut"
    # Suspended
    USER_REQUESTED = "UserRequested"
    GUARDRAIL = "Guardrail"
    RESUMED = "Resumed"
    # ProgressReporting
    FRESH = "Fresh"
    UNREACHABLE = "Unreachable"
    # Healthy; where it is not, the word of the first broken `GuardrailRule`
    WITHIN_LIMITS = "WithinLimits"
    # Succeeded
    STAGES_COMPLETE = "StagesComplete"
    # Failed, and why a stage failed or restarts
    MAX_RESTARTS = "MaxRestarts"
    MAX_DISRUPTIONS = "MaxDisruptions"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    PENDING_DEADLINE_EXCEEDED = "PendingDeadlineExceeded"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    ARTIFACT_INVALID = "ArtifactInvalid"
    OUT_OF_MEMORY = "OutOfMemory"
    POD_REJECTED = "PodRejected"
    STORAGE_EXCEEDED = "StorageExceeded"
    CHILD_ENDED = "ChildEnded"
    START_ERROR = "StartError"
    CRASHED = "Crashed"
    DISRUPTED = "Disrupted"
    NODE_LOST = "NodeLost"
    NODE_PRESSURE = "NodePressure"
    NODE_SHUTDOWN = "NodeShutdown"
    DRAINED = "Drained"
    PREEMPTED = "Preempted"
    JOB_SUSPENDED = "JobSuspended"
    PEER_LOST = "PeerLost"
    STOPPED = "Stopped"
    SERVICE_UNAVAILABLE = "ServiceUnavailable"
    IO_ERROR = "IOError"
    DATA_ERROR = "DataError"
    INPUT_INVALID = "InputInvalid"
    SELF_CHECK_FAILED = "SelfCheckFailed"
    NON_FINITE = "NonFinite"
    NO_PERMISSION = "NoPermission"
    CONFIG_INVALID = "ConfigInvalid"
    USAGE = "Usage"
    CONTRACT_VERSION = "ContractVersion"


REFUSALS = frozenset(
    {
        Reason.QUOTA_EXCEEDED,
        Reason.RESOURCES_REQUIRED,
        Reason.LIMIT_RANGE_VIOLATED,
        Reason.POD_SECURITY_VIOLATED,
        Reason.PRIORITY_CLASS_MISSING,
        Reason.SERVICE_ACCOUNT_MISSING,
        Reason.RUNTIME_CLASS_MISSING,
        Reason.POLICY_DENIED,
        Reason.WEBHOOK_DENIED,
        Reason.WEBHOOK_UNAVAILABLE,
        Reason.WEBHOOK_FAILED,
        Reason.ADMISSION_DENIED,
        Reason.INVALID_MUTATION,
        Reason.INVALID_POD,
        Reason.FORBIDDEN,
        Reason.NAMESPACE_TERMINATING,
        Reason.API_ERROR,
    }
)
"""Why the cluster does not let a valid child, or a pod of one, be made: waited for, and counted by
no deadline but `runPolicy.pendingDeadlineSeconds`."""

DISRUPTIONS = frozenset(
    {
        Reason.DISRUPTED,
        Reason.NODE_LOST,
        Reason.NODE_PRESSURE,
        Reason.NODE_SHUTDOWN,
        Reason.DRAINED,
        Reason.PREEMPTED,
        Reason.JOB_SUSPENDED,
        Reason.EVICTED,
    }
)
"""Why the platform, and not the trainer, has ended an attempt."""

REASON_OF_EXIT_CODE: dict[int, Reason] = {
    ExitCode.GUARDRAIL: Reason.GUARDRAIL,
    ExitCode.USAGE: Reason.USAGE,
    ExitCode.DATA: Reason.DATA_ERROR,
    ExitCode.INPUT: Reason.INPUT_INVALID,
    ExitCode.UNAVAILABLE: Reason.SERVICE_UNAVAILABLE,
    ExitCode.NUMERICS: Reason.SELF_CHECK_FAILED,
    ExitCode.IO: Reason.IO_ERROR,
    ExitCode.STOPPED_WITH_CHECKPOINT: Reason.STOPPED,
    ExitCode.NO_PERMISSION: Reason.NO_PERMISSION,
    ExitCode.CONFIG: Reason.CONFIG_INVALID,
    ExitCode.PEER_LOST: Reason.PEER_LOST,
    ExitCode.STOPPED: Reason.STOPPED,
}
"""Reason of an exit code when the process left no result; any other code is `CRASHED`."""


class GuardrailRule(StrEnum):
    """What can go wrong in PPO training; the same words are reasons of condition Healthy."""

    CRITIC_LOSS_DIVERGING = "CriticLossDiverging"
    NEGATIVE_KL = "NegativeKL"
    CLIP_SHARE_HIGH = "ClipShareHigh"
    KL_ABOVE_LIMIT = "KLAboveLimit"
    ENTROPY_COLLAPSE = "EntropyCollapse"
    REPETITION_HIGH = "RepetitionHigh"
    EOS_RATE_LOW = "EOSRateLow"
    LENGTH_OUT_OF_RANGE = "LengthOutOfRange"
    REWARD_COLLAPSE = "RewardCollapse"
    SCORE_STD_COLLAPSE = "ScoreStdCollapse"
    NON_FINITE = "NonFinite"


class GuardrailAction(StrEnum):
    """What follows when a rule's verdict is bad."""

    OBSERVE = "Observe"
    SUSPEND = "Suspend"
    FAIL = "Fail"


class Phase(StrEnum):
    """Derived for people; nothing reads it."""

    PENDING = "Pending"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class StageState(StrEnum):
    """State of one stage in status."""

    WAITING = "Waiting"
    STARTING = "Starting"
    RUNNING = "Running"
    STOPPING = "Stopping"
    RESTARTING = "Restarting"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
