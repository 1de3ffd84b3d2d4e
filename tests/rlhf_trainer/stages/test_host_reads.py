"""A host does not wait for its device inside of a micro-batch: numbers are read once a step."""

import sys
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}
"""What a device would have to finish all its work for."""
OURS, NOT_OURS = "/rlhf_trainer/", ("/transformers/", "/rlhf_trainer/data/")
"""What stands in `data` was never on a device; transformers looks at masks as it likes."""


class HostReads(TorchDispatchMode):
    """Counts how often the trainer takes a number out of a tensor."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count += func in READS and _asked_by_us()
        return func(*args, **kwargs or {})


def _asked_by_us() -> bool:
    frame = sys._getframe(2)
    while frame.f_back is not None:
        name = frame.f_code.co_filename
        if any(part in name for part in NOT_OURS):
            return False
        if OURS in name and "/tests/" not in name:
            return True
        frame = frame.f_back
    return False


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_reads_do_not_grow_with_micro_batches(stage: str, tmp_path: Path) -> None:
    found = []
    for size in (8, 1):
        settings: dict[str, Any] = {"batch_size": 8, "micro_batch_size": size, "max_steps": 2}
        if stage == "ppo":
            settings |= {"ptx_dataset": True, "entropy_coef": 0.01}
        config = tiny.stage_config(stage, tmp_path / str(size), **settings)
        with HostReads() as reads:
            stage_runs.run(config)
        found.append(reads.count)
    assert found[0] == found[1] > 0
