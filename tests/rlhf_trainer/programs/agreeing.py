"""A rank that tries everything ranks do together, and leaves what it saw as JSON.

`agreeing.py stage.json folder`, in torchrun's environment.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import StorageError, failure_of
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.distributed import (
    Ranks,
    agree_on_failure,
    any_rank,
    barrier,
    gather_objects,
    on_first_rank_of_node,
    reduce_max,
    reduce_sum,
    start_ranks,
    stop_ranks,
)


class OddError(StorageError):
    """An error of ours that cannot travel."""

    def __init__(self, name: str, *, size: int) -> None:
        super().__init__(f"{name} of {size}")


def raised(work: Callable[[], object]) -> list[object]:
    """Class, exit code and message of what `work` raises."""
    try:
        work()
    except Exception as error:  # noqa: BLE001 - that is what is looked at
        failure = failure_of(error)
        return [type(error).__name__, failure.exit_code, failure.message]
    return []


def fail(ranks: Ranks, *errors: Exception | None) -> list[object]:
    return raised(lambda: agree_on_failure(ranks, errors[ranks.rank]))


def download(ranks: Ranks, folder: Path) -> str:
    """Slow work on one rank, which the other must not pass."""
    (folder / f"worked-{ranks.rank}").touch()
    time.sleep(0.3)
    return f"by rank {ranks.rank}"


def refuse() -> None:
    raise DataError("hub: no such model")


def together(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """Everything that works, and every failure that both ranks survive."""
    stop = StopFlag()
    seen: dict[str, Any] = {
        "sum": reduce_sum([0.1, float(ranks.rank), 2.0**53 - 1], ranks),
        "max": reduce_max([-5.0 + ranks.rank, 1.0 - ranks.rank], ranks),
        "objects": gather_objects(ranks, {"rank": ranks.rank}),
        "on first": on_first_rank_of_node(ranks, lambda: download(ranks, folder)),
        "on first, refused": raised(lambda: on_first_rank_of_node(ranks, refuse)),
        "nobody failed": fail(ranks, None, None),
        "rank 1 failed": fail(ranks, None, StorageError("disk full")),
        "both failed": fail(ranks, DataError("first"), StorageError("second")),
        "a foreign error": fail(ranks, None, ZeroDivisionError("x")),
        "cannot travel": fail(ranks, None, OddError("disk", size=3)),
        "stop before": any_rank(ranks, stop.is_set),
    }
    if ranks.rank == 1:
        stop.ask()
    seen["stop, own"] = stop.is_set
    seen["stop, agreed"] = any_rank(ranks, stop.is_set)
    if ranks.rank == 0:
        time.sleep(0.3)
    # The clock is that of the machine, and so the same on both ranks.
    seen["entered"] = time.monotonic()
    barrier(ranks)
    seen["left"] = time.monotonic()
    return seen


def lose_peer(ranks: Ranks) -> list[object]:
    """Rank 1 leaves; rank 0 finds out in time and does not wait for an agreement."""
    if ranks.rank == 1:
        os._exit(0)
    error = raised(lambda: barrier(ranks))
    lost = dist.DistNetworkError("failed to recv")
    return [*error, *raised(lambda: agree_on_failure(ranks, lost))]


def main() -> None:
    """One rank."""
    config = StageConfig.from_json(Path(sys.argv[1]).read_text())
    folder = Path(sys.argv[2])
    ranks = start_ranks(config, timedelta(seconds=20))
    assert ranks.device == torch.device("cpu")
    own = folder / f"rank-{ranks.rank}.json"
    seen = together(ranks, folder)
    own.write_text(json.dumps(seen))
    own.write_text(json.dumps(seen | {"lost": lose_peer(ranks)}))
    stop_ranks()


if __name__ == "__main__":
    main()
