"""One of two ranks that save together: `checkpoint_rank.py rank rendezvous stage-json`.

Tells what it saw as JSON on stdout.
"""

import errno
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import StorageError
from rlhf_trainer.run.checkpoint import CheckpointStore
from rlhf_trainer.run.distributed import Ranks

RANK = int(sys.argv[1])


def write(folder: Path) -> None:
    (folder / f"shard-{RANK}.pt").write_text(str(RANK))


def fail_on_1(folder: Path) -> None:
    write(folder)
    if RANK == 1:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "shard-1.pt"))


def fail_on_0(folder: Path) -> None:
    write(folder)
    if RANK == 0:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")


def main() -> None:
    config = StageConfig.from_json(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=RANK, world_size=2)
    store = CheckpointStore(config, Ranks(RANK, RANK, 2, 2, torch.device("cpu")))
    told: dict[str, Any] = {}
    store.save(10, write, {"cursor": 10}, {"own": RANK})
    for step, failing in ((20, fail_on_1), (30, fail_on_0)):
        try:
            store.save(step, failing, {}, {})
        except StorageError as error:
            told[f"error at {step}"] = str(error)
    if RANK == 1:
        # Only rank 0 looks at the files; the others take its word.
        setattr(store, "_find", None)  # noqa: B010 - mypy refuses to replace a method
    found = store.newest()
    assert found is not None
    told["step"] = found.step
    told["own"] = store.load_rank_state(found)["own"]
    told["other"] = store.load_rank_state(found, 1 - RANK)["own"]
    sys.stdout.write(json.dumps(told))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
