"""What the tests of checkpoints share: a small stage, its store, and what it writes."""

import errno
from pathlib import Path

import torch

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import (
    CheckpointPolicy,
    Dataset,
    JobReference,
    ModelSource,
    SFTStage,
    StageConfig,
)
from rlhf_trainer.run.checkpoint import CheckpointStore
from rlhf_trainer.run.distributed import Ranks

ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))


def make_config(storage: Path, attempt: int = 1, keep: int = 2, seed: int = 1) -> StageConfig:
    return StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.SFT,
        attempt=attempt,
        storage=str(storage),
        sft=SFTStage(
            model=ModelSource(uri="hf://a/b"),
            dataset=Dataset(uri="hf://a/c"),
            checkpoint=CheckpointPolicy(keep=keep),
            seed=seed,
        ),
    ).with_digest()


def make_store(storage: Path, attempt: int = 1, keep: int = 2, seed: int = 1) -> CheckpointStore:
    return CheckpointStore(make_config(storage, attempt, keep, seed), ALONE)


def checkpoints(storage: Path, attempt: int = 1) -> Path:
    return Path(make_config(storage, attempt).attempt_folder) / "checkpoints"


def names(storage: Path, attempt: int = 1) -> list[str]:
    return sorted(path.name for path in checkpoints(storage, attempt).iterdir())


def write(folder: Path) -> None:
    (folder / "actor").mkdir()
    (folder / "actor" / "weights.pt").write_bytes(b"weights")


def fail(folder: Path) -> None:
    write(folder)
    raise OSError(errno.ENOSPC, "No space left on device", str(folder / "actor" / "weights.pt"))


def save(store: CheckpointStore, step: int) -> None:
    store.save(step, write, {"cursor": step}, {"draws": [step]})
