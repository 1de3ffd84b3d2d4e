"""The ranks of one stage: how they start, add up, agree and end.

Called by `__main__` (start, stop) and by everything that all ranks do together. Numbers and objects
go over gloo on the CPU, also where tensors go over NCCL: agreeing never waits for the GPU. In a
world of one every function works without a process group.
"""

import logging
import os
import pickle
import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from rlhf_api.errors import RLHFError, UsageError
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import Failure, RankFailed, failure_of, is_peer_loss
from rlhf_trainer.process.device import settle_device

logger = logging.getLogger(__name__)

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others in one collective before it takes them for lost."""
LONG_WORK_TIMEOUT = timedelta(hours=6)
"""How long ranks wait while one of them downloads a model or asks a reward."""
TEARDOWN_SECONDS = 10.0

_ENVIRONMENT = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        rank: its number, from 0.
        local_rank: its number on this node, from 0.
        world_size: number of ranks.
        local_world_size: number of ranks on this node.
        device: where its tensors live.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device


def start_ranks(config: StageConfig, timeout: timedelta = COLLECTIVE_TIMEOUT) -> Ranks:
    """Join the process group, which DeepSpeed then uses as well.

    Raises:
        UsageError: not started by the launcher, or by one of another configuration.
        ConfigError: the node lacks GPUs that the stage asks for.
    """
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise UsageError(
            f"environment: {', '.join(missing)} not set; start the stage with "
            "python -m rlhf_trainer.launch stage.json"
        )
    rank, local_rank, world_size, local_world_size = (int(os.environ[n]) for n in _ENVIRONMENT[:4])
    if world_size != config.world_size:
        raise UsageError(
            f"environment: WORLD_SIZE is {world_size}, but stage.json asks for {config.nodes} "
            f"nodes of {config.processes_per_node} processes; start as many"
        )
    device = torch.device(settle_device(config, local_world_size, os.environ))
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timeout)
    return Ranks(rank, local_rank, world_size, local_world_size, device)


def stop_ranks(seconds: float = TEARDOWN_SECONDS) -> None:
    """Leave the process group, or give up: a lost peer must not keep a finished rank alive."""
    if not dist.is_initialized():
        return
    thread = threading.Thread(target=dist.destroy_process_group, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        logger.warning("the process group did not end within %.0f s; leaving it", seconds)


def seed_everything(seed: int, rank: int) -> None:
    """Seed Python, numpy and torch; different ranks and seeds never share a stream."""
    own = int(np.random.SeedSequence((seed, rank)).generate_state(1, np.uint32)[0])
    random.seed(own)
    np.random.seed(own)
    torch.manual_seed(own)


def reduce_sum(values: Sequence[float], ranks: Ranks) -> list[float]:
    """Sum of each value over all ranks, in float64."""
    return _reduce(values, ranks, dist.ReduceOp.SUM)


def reduce_max(values: Sequence[float], ranks: Ranks) -> list[float]:
    """Largest of each value over all ranks."""
    return _reduce(values, ranks, dist.ReduceOp.MAX)


def filled(parts: Sequence[T], filling: T, ranks: Ranks) -> list[tuple[T, bool]]:
    """As many parts as the rank with most has, and which of them count.

    Ranks pass together through a model whose weights or gradients they share. One that has fewer
    parts takes `filling`, which must add nothing: its loss is taken times 0. All ranks call this
    together.
    """
    (most,) = reduce_max([float(len(parts))], ranks)
    return [(part, True) for part in parts] + [(filling, False)] * (int(most) - len(parts))


def any_rank(ranks: Ranks, holds: bool) -> bool:
    """Whether `holds` on any rank; all ranks call this together and get the same answer."""
    return reduce_max([float(holds)], ranks)[0] > 0


def gather_objects(ranks: Ranks, value: T) -> list[T]:
    """Every rank's value, by rank, on every rank; values must be picklable."""
    return _gather(ranks, value, None)


def barrier(ranks: Ranks) -> None:
    """Wait for all ranks."""
    reduce_max([0.0], ranks)


def on_first_rank_of_node(ranks: Ranks, work: Callable[[], T]) -> T:
    """Run `work` on local rank 0 of each node while the others wait; its result on all of the node.

    Raises:
        RLHFError: on every rank, what `work` raised on the first node where it failed.
    """
    result: T | None = None
    error: Exception | None = None
    if ranks.local_rank == 0:
        try:
            result = work()
        except Exception as raised:  # noqa: BLE001 - raised again by _raise_first, on every rank
            error = raised
    if ranks.world_size == 1:
        _raise_first(ranks, error, None)
        return result  # type: ignore[return-value]
    patient = patient_group(ranks)
    try:
        _raise_first(ranks, error, patient)
        results = _gather(ranks, result, patient)
    finally:
        dist.destroy_process_group(patient)
    return results[ranks.rank - ranks.local_rank]  # type: ignore[return-value]


def patient_group(ranks: Ranks) -> Any:
    """A group of all ranks that waits for `LONG_WORK_TIMEOUT`; None in a world of one.

    All ranks call this together. It ends by `dist.destroy_process_group` or by `stop_ranks`.
    """
    if ranks.world_size == 1:
        return None
    return dist.new_group(backend="gloo", timeout=LONG_WORK_TIMEOUT)


def agree_on_failure(ranks: Ranks, error: BaseException | None, group: Any = None) -> None:
    """Raise on every rank if any has an error: that of the lowest rank with one.

    All ranks call this together, with a `patient_group` after work that may take long. On other
    ranks an error of ours arrives as itself, any other as `RankFailed`. The loss of a peer is
    raised at once, since nothing can be agreed on without it.
    """
    _raise_first(ranks, error, group)


def _raise_first(ranks: Ranks, error: BaseException | None, group: Any) -> None:
    if error is not None and (ranks.world_size == 1 or is_peer_loss(error)):
        raise error
    failure = None if error is None else (failure_of(error), _packed(error))
    for rank, failed in enumerate(_gather(ranks, failure, group)):
        if failed is None:
            continue
        if rank == ranks.rank and error is not None:
            raise error
        raise _unpacked(*failed)


def _packed(error: BaseException) -> bytes | None:
    """The error for another process, if it can travel."""
    if not isinstance(error, RLHFError):
        return None
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except (pickle.PickleError, TypeError, AttributeError):
        return None
    return packed


def _unpacked(failure: Failure, packed: bytes | None) -> BaseException:
    if packed is None:
        return RankFailed(failure)
    error: BaseException = pickle.loads(packed)
    return error


def _reduce(values: Sequence[float], ranks: Ranks, operation: Any) -> list[float]:
    if ranks.world_size == 1:
        return [float(value) for value in values]
    tensor = torch.tensor(list(values), dtype=torch.float64)
    dist.all_reduce(tensor, op=operation)
    reduced: list[float] = tensor.tolist()
    return reduced


def _gather(ranks: Ranks, value: T, group: Any) -> list[T]:
    if ranks.world_size == 1:
        return [value]
    gathered: list[Any] = [None] * ranks.world_size
    dist.all_gather_object(gathered, value, group=group)
    return gathered
