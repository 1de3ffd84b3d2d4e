"""Keeps step 10, then waits in the middle of step 20: `checkpoint_killed.py stage-json flag`."""

import sys
import time
from pathlib import Path

import torch

from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.run.checkpoint import CheckpointStore
from rlhf_trainer.run.distributed import Ranks


def quick(folder: Path) -> None:
    (folder / "weights.pt").write_text("w")


def slow(folder: Path) -> None:
    quick(folder)
    Path(sys.argv[2]).touch()
    time.sleep(600)


if __name__ == "__main__":
    alone = Ranks(0, 0, 1, 1, torch.device("cpu"))
    store = CheckpointStore(StageConfig.from_json(sys.argv[1]), alone)
    store.save(10, quick, {"cursor": 10}, {})
    store.save(20, slow, {"cursor": 20}, {})
