"""One of two ranks that write one artifact: `artifact_rank.py rank rendezvous stage-json`.

Tells the artifact as JSON on stdout.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.run.artifact import write_artifact
from rlhf_trainer.run.distributed import Ranks

RANK = int(sys.argv[1])


def write(folder: Path) -> None:
    (folder / f"model-{RANK}.safetensors").write_text(str(RANK))


def main() -> None:
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=RANK, world_size=2)
    ranks = Ranks(RANK, RANK, 2, 2, torch.device("cpu"))
    artifact = write_artifact(StageConfig.from_json(sys.argv[3]), ranks, 3, write)
    sys.stdout.write(artifact.model_dump_json())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
