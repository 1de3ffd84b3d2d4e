"""What any error means at the edge of a process."""

import errno
import pickle
import socket

import pytest
import torch
import torch.distributed as dist

from rlhf_api.errors import DataError, RLHFError
from rlhf_api.names import GuardrailAction, GuardrailRule, Reason
from rlhf_api.v1alpha1 import HealthVerdict
from rlhf_trainer import errors
from rlhf_trainer.errors import (
    ContractVersionError,
    Failure,
    GuardrailFired,
    MemoryEstimateError,
    NonFiniteError,
    OutOfMemory,
    RankFailed,
    ServiceUnavailable,
    StopRequested,
    failure_of,
    is_peer_loss,
)

GLOO = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] "
    "Connection closed by peer [127.0.0.1]:37177"
)


FIRED = GuardrailFired(
    "kl 99",
    verdicts=(
        HealthVerdict(
            rule=GuardrailRule.KL_ABOVE_LIMIT,
            action=GuardrailAction.FAIL,
            step=7,
            value=99.0,
            threshold=50.0,
        ),
    ),
    step=7,
    last_checkpoint_step=5,
)


@pytest.mark.parametrize(
    ("error", "code", "reason", "words"),
    [
        (DataError("d.jsonl:3: bad"), 65, Reason.DATA_ERROR, "d.jsonl:3: bad"),
        (ContractVersionError("stage.json", 9, "image"), 78, Reason.CONTRACT_VERSION, "is 9"),
        (MemoryEstimateError("9 GiB"), 78, Reason.OUT_OF_MEMORY, "9 GiB"),
        (GuardrailFired("kl 99"), 42, Reason.GUARDRAIL, "kl 99"),
        (NonFiniteError("loss at step 3"), 70, Reason.NON_FINITE, "loss at step 3"),
        # Numbers that are refused somewhere below would be the same in the next attempt.
        (FloatingPointError("kl is nan"), 70, Reason.NON_FINITE, "kl is nan; lower learningRate"),
        (OutOfMemory("host"), 1, Reason.OUT_OF_MEMORY, "host"),
        (ServiceUnavailable("hub"), 69, Reason.SERVICE_UNAVAILABLE, "hub"),
        (torch.cuda.OutOfMemoryError("Tried 2 GiB"), 1, Reason.OUT_OF_MEMORY, "zeroStage"),
        (MemoryError(), 1, Reason.OUT_OF_MEMORY, "MemoryError; use a smaller microBatchSize"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            1,
            Reason.OUT_OF_MEMORY,
            "can't allocate",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 1, Reason.OUT_OF_MEMORY, "ENOMEM"),
        (RuntimeError(GLOO), 80, Reason.PEER_LOST, "Connection closed by peer"),
        (
            RuntimeError("Timed out waiting 1800000ms for recv operation to complete"),
            80,
            Reason.PEER_LOST,
            "lost a peer",
        ),
        (dist.DistNetworkError("failed to recv"), 80, Reason.PEER_LOST, "failed to recv"),
        (dist.DistStoreError("wait timeout"), 80, Reason.PEER_LOST, "wait timeout"),
        (dist.DistBackendError("ncclRemoteError: x"), 80, Reason.PEER_LOST, "ncclRemoteError"),
        (dist.DistBackendError("ncclInvalidUsage"), 1, Reason.CRASHED, "ncclInvalidUsage"),
        (RuntimeError("DataLoader timed out after 5 seconds"), 1, Reason.CRASHED, "DataLoader"),
        (OSError(errno.ENOSPC, "No space left", "/x"), 74, Reason.IO_ERROR, "'/x'; free space"),
        (OSError(errno.EDQUOT, "Quota"), 74, Reason.IO_ERROR, "Quota"),
        (OSError(errno.EIO, "Input/output error"), 74, Reason.IO_ERROR, "Input/output"),
        (PermissionError(errno.EACCES, "Denied", "/x"), 77, Reason.NO_PERMISSION, "'/x'; open it"),
        (OSError(errno.EROFS, "Read-only"), 77, Reason.NO_PERMISSION, "Read-only"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "hub"), 69, Reason.SERVICE_UNAVAILABLE, "hub"),
        (socket.gaierror(-3, "no name"), 69, Reason.SERVICE_UNAVAILABLE, "no name"),
        (FileNotFoundError(errno.ENOENT, "No such file"), 1, Reason.CRASHED, "FileNotFoundError"),
        (KeyError("x"), 1, Reason.CRASHED, "KeyError: 'x'"),
        (ValueError(), 1, Reason.CRASHED, "ValueError"),
        (StopRequested(7, 5), 75, Reason.STOPPED, "after step 7, with a checkpoint of step 5"),
        (StopRequested(7, 0), 75, Reason.STOPPED, "with a checkpoint of step 0"),
        (StopRequested(7, None), 143, Reason.STOPPED, "after step 7, without a checkpoint"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_an_error_means(error: BaseException, code: int, reason: Reason, words: str) -> None:
    failure = failure_of(error)
    assert (failure.exit_code, failure.reason) == (code, reason)
    assert words in failure.message or words == "ENOMEM"


def test_a_crash_names_its_last_frame() -> None:
    try:
        [][0]
    except IndexError as error:
        failure = failure_of(error)
    here = "rlhf_trainer/test_errors.py:"
    assert failure.message.startswith(f"IndexError: list index out of range ({here}")
    assert failure.message.endswith("in test_a_crash_names_its_last_frame)")


def test_steps_are_told_where_the_error_knows_them() -> None:
    assert failure_of(StopRequested(7, 5)).step == 7
    assert failure_of(StopRequested(7, 5)).last_checkpoint_step == 5
    assert failure_of(DataError("x")).step is None
    assert failure_of(FIRED) == Failure(42, Reason.GUARDRAIL, "kl 99", 7, 5, FIRED.verdicts)


def test_errors_travel_between_ranks() -> None:
    stopped = pickle.loads(pickle.dumps(StopRequested(7, None)))
    assert (stopped.step, stopped.last_checkpoint_step) == (7, None)
    assert failure_of(pickle.loads(pickle.dumps(FIRED))) == failure_of(FIRED)
    failure = Failure(3, Reason.CRASHED, "elsewhere")
    assert failure_of(pickle.loads(pickle.dumps(RankFailed(failure)))) == failure


def test_the_loss_of_a_peer_is_told_from_other_errors() -> None:
    assert is_peer_loss(errors.PeerLost("rank 1"))
    assert is_peer_loss(RuntimeError(GLOO))
    assert not is_peer_loss(DataError("connection closed by peer"))


def test_the_docstring_draws_every_error() -> None:
    ours = [
        name
        for name, kind in vars(errors).items()
        if isinstance(kind, type)
        and issubclass(kind, RLHFError)
        and kind.__module__ == errors.__name__
    ]
    assert ours
    assert [name for name in ours if f"── {name} " not in str(errors.__doc__)] == []
