"""The trainer's errors, below those of the contract, and what any error means at a process's edge.

RLHFError
├── UserError
│   ├── SelfCheckError              70  our own arithmetic does not hold on this machine
│   ├── PermissionDenied            77  storage or an input is closed to us
│   └── ConfigError                 78
│       └── MemoryEstimateError     78  not enough memory, estimated before loading
├── JudgedError                         what was learned ended the attempt
│   ├── GuardrailFired              42  a guardrail with the action Suspend or Fail
│   └── NonFiniteError              70  a loss, gradient or weight is NaN or infinite; a UserError
├── ServiceUnavailable              69  a hub or a network that may come back
├── StorageError                    74  full or failing
├── StopRequested           75 or 143  with or without a checkpoint
├── PeerLost                        80  another rank is gone or does not answer
├── OutOfMemory                      1  with a remedy
└── RankFailed          the rank's own  an error of another rank that is none of ours

Code raises them and lets them rise; only `failure_of` turns errors into exit codes. Imports no
torch, so that a process which fails before that costs no time.
"""

import errno
import socket
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_api.errors import ConfigError, ContractVersionError, RLHFError, UserError
from rlhf_api.names import REASON_OF_EXIT_CODE, ExitCode, Reason
from rlhf_api.v1alpha1 import HealthVerdict

MEMORY_REMEDY = (
    "use a smaller microBatchSize, a higher zeroStage, shorter sequences, more ranks or more memory"
)

FINITE_REMEDY = "lower learningRate (in PPO also criticLearningRate), or set precision FP32"

FULL_OR_BROKEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ESTALE})
CLOSED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

# torch gives its errors no number; the class names are those of torch.distributed and torch, the
# texts those of gloo, NCCL and torch's CPU allocator.
_PEER_CLASSES = frozenset({"DistNetworkError", "DistStoreError"})
_PEER_TEXTS = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "gloo/transport",
    "timed out waiting",
    "socket timeout",
    "collective operation timeout",
    "ncclremoteerror",
    "ncclsystemerror",
    "remote process exited",
    "communicator was aborted",
)
_MEMORY_CLASSES = frozenset({"MemoryError", "OutOfMemoryError"})
_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "cublas_status_alloc_failed")


class SelfCheckError(UserError):
    """A check of our own arithmetic failed: wrong kernels, a broken device or a defect of ours."""

    exit_code = ExitCode.NUMERICS


class PermissionDenied(UserError):  # noqa: N818 - named as what it says
    """A file or folder is closed to the trainer's user."""

    exit_code = ExitCode.NO_PERMISSION


class MemoryEstimateError(ConfigError):
    """The model will not fit, by an estimate made before anything is loaded."""


class JudgedError(RLHFError):
    """What was learned ended the attempt.

    Attributes:
        verdicts: all rules that are broken, the one that fired first.
        step: steps done.
        last_checkpoint_step: step of the newest complete checkpoint; None if there is none.
    """

    def __init__(
        self,
        message: str,
        verdicts: tuple[HealthVerdict, ...] = (),
        step: int | None = None,
        last_checkpoint_step: int | None = None,
    ) -> None:
        super().__init__(message)
        self.verdicts = verdicts
        self.step = step
        self.last_checkpoint_step = last_checkpoint_step

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.verdicts, self.step, self.last_checkpoint_step)


class GuardrailFired(JudgedError):  # noqa: N818 - named as what it says
    """A guardrail with the action Suspend or Fail fired; the message holds its evidence."""

    exit_code = ExitCode.GUARDRAIL


class NonFiniteError(JudgedError, UserError):
    """A loss, a gradient, a weight or a figure is NaN or infinite; nothing after it is kept.

    Comes before every guardrail, whatever its action.
    """

    exit_code = ExitCode.NUMERICS


class ServiceUnavailable(RLHFError):  # noqa: N818 - named as what it says
    """A service outside did not answer; trying again later may help."""

    exit_code = ExitCode.UNAVAILABLE


class StorageError(RLHFError):
    """The storage is full, over quota or broken; what was complete before is untouched."""

    exit_code = ExitCode.IO


class StopRequested(RLHFError):  # noqa: N818 - named as what it says
    """The stage was asked to stop and did.

    Attributes:
        step: steps done.
        last_checkpoint_step: step of the newest complete checkpoint; None if there is none.
        verdicts: rules that are broken.
    """

    exit_code = ExitCode.STOPPED

    def __init__(
        self,
        step: int,
        last_checkpoint_step: int | None,
        verdicts: tuple[HealthVerdict, ...] = (),
    ) -> None:
        kept = (
            "without a checkpoint"
            if last_checkpoint_step is None
            else f"with a checkpoint of step {last_checkpoint_step}"
        )
        super().__init__(f"stopped on request after step {step}, {kept}")
        self.step = step
        self.last_checkpoint_step = last_checkpoint_step
        self.verdicts = verdicts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.step, self.last_checkpoint_step, self.verdicts)


class PeerLost(RLHFError):  # noqa: N818 - named as what it says
    """Another rank is gone or does not answer; it knows the cause, this one does not."""

    exit_code = ExitCode.PEER_LOST


class OutOfMemory(RLHFError):  # noqa: N818 - named as what it says
    """Memory of the device or the host ran out."""

    exit_code = ExitCode.CRASH


@dataclass(frozen=True)
class Failure:
    """What an error means to the world outside of the process.

    Attributes:
        exit_code: the process leaves with it.
        reason: the same as a word.
        message: the same as a sentence.
        step: steps done, where the error knows.
        last_checkpoint_step: step of the newest complete checkpoint, where the error knows.
        verdicts: rules of health that are broken, where the error knows.
    """

    exit_code: int
    reason: Reason
    message: str
    step: int | None = None
    last_checkpoint_step: int | None = None
    verdicts: tuple[HealthVerdict, ...] = ()


class RankFailed(RLHFError):  # noqa: N818 - named as what it says
    """Another rank failed with an error that cannot travel; it ends this one in the same way."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failure,)


def failure_of(error: BaseException) -> Failure:
    """What `error`, of whatever origin, means at the edge of a process."""
    if isinstance(error, RankFailed):
        return error.failure
    ours = _translated(error)
    if ours is None:
        return Failure(ExitCode.CRASH, Reason.CRASHED, f"{_text_of(error)}{_place_of(error)}")
    code, step, checkpoint = ours.exit_code, None, None
    verdicts: tuple[HealthVerdict, ...] = ()
    if isinstance(ours, StopRequested | JudgedError):
        step, checkpoint, verdicts = ours.step, ours.last_checkpoint_step, ours.verdicts
    if isinstance(ours, StopRequested) and checkpoint is not None:
        code = ExitCode.STOPPED_WITH_CHECKPOINT
    return Failure(int(code), _reason_of(ours, code), _text_of(ours), step, checkpoint, verdicts)


def is_peer_loss(error: BaseException) -> bool:
    """Whether `error` says that another rank is gone: nothing can be agreed on any more."""
    if isinstance(error, PeerLost):
        return True
    if _class_names(error) & _PEER_CLASSES:
        return True
    return isinstance(error, RuntimeError) and _has_any(error, _PEER_TEXTS)


def _translated(error: BaseException) -> RLHFError | None:
    """The error of ours that `error` stands for; None if it is a crash."""
    if isinstance(error, RLHFError):
        return error
    if isinstance(error, FloatingPointError):
        # The same numbers would come again.
        return NonFiniteError(f"{error}; {FINITE_REMEDY}")
    if _is_memory_error(error):
        return OutOfMemory(f"{_text_of(error)}; {MEMORY_REMEDY}")
    if is_peer_loss(error):
        return PeerLost(f"lost a peer: {_text_of(error)}; see the other ranks for the cause")
    if isinstance(error, OSError):
        return _translated_os_error(error)
    return None


def _translated_os_error(error: OSError) -> RLHFError | None:
    if error.errno in FULL_OR_BROKEN:
        return StorageError(f"{_text_of(error)}; free space or check the volume")
    if error.errno in CLOSED or isinstance(error, PermissionError):
        return PermissionDenied(f"{_text_of(error)}; open it to the trainer's user")
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return ServiceUnavailable(f"{_text_of(error)}; try again when the service answers")
    return None


def _reason_of(error: RLHFError, code: int) -> Reason:
    if isinstance(error, OutOfMemory | MemoryEstimateError):
        return Reason.OUT_OF_MEMORY
    if isinstance(error, NonFiniteError):
        return Reason.NON_FINITE
    if isinstance(error, ContractVersionError):
        return Reason.CONTRACT_VERSION
    return REASON_OF_EXIT_CODE.get(code, Reason.CRASHED)


def _is_memory_error(error: BaseException) -> bool:
    if _class_names(error) & _MEMORY_CLASSES:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _has_any(error, _MEMORY_TEXTS)


def _class_names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _has_any(error: BaseException, texts: tuple[str, ...]) -> bool:
    said = str(error).lower()
    return any(text in said for text in texts)


def _text_of(error: BaseException) -> str:
    """The message; with the class before it unless the error is ours and speaks for itself."""
    text = str(error).strip()
    if isinstance(error, RLHFError) and text:
        return text
    name = type(error).__name__
    return f"{name}: {text}" if text else name


def _place_of(error: BaseException) -> str:
    """Where it was raised: the last frame, and the last of ours if that is another."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    last = frames[-1]
    mine = next((f for f in reversed(frames) if "rlhf_trainer" in Path(f.filename).parts), last)
    places = [_frame_text(last)] + ([_frame_text(mine)] if mine is not last else [])
    return f" ({', from '.join(places)})"


def _frame_text(frame: traceback.FrameSummary) -> str:
    return f"{'/'.join(Path(frame.filename).parts[-2:])}:{frame.lineno} in {frame.name}"
