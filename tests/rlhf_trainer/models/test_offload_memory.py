"""What lies in the machine's memory is not needed on the GPU, but there."""

import re
from typing import Any

import pytest
import torch

from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import MemoryEstimateError
from rlhf_trainer.models.memory import GIB, ModelSize, check_memory, sharding_bytes
from rlhf_trainer.run.distributed import Ranks

GPU, CPU = (Ranks(0, 0, 1, 1, torch.device(name)) for name in ("cuda", "cpu"))
ACTOR = ModelSize("actor", GIB, trained=True)
REFERENCE = ModelSize("reference", GIB, trained=False)
LEARNING = 5 * GIB - sharding_bytes(ACTOR, precision="BF16", zero_stage=3)
"""With what ZeRO 3 takes beside it, 5 GiB."""


def config(**settings: Any) -> StageConfig:
    spec = {"model": {"uri": "hf://org/a"}, "dataset": {"uri": "file://rows.jsonl"}}
    spec |= {"rewardModel": {"uri": "hf://org/b"}} | settings
    document = {"job": {"name": "j", "uid": "12345678-aaaa"}, "stage": "ppo", "attempt": 1}
    return StageConfig.model_validate(document | {"storage": "/storage", "ppo": spec})


@pytest.mark.parametrize(
    ("settings", "gpu", "machine"),
    [
        # Of the actor 2 weights, 4 gradients, 12 optimizer, and 2 weights of the reference.
        ({}, 20, 0),
        ({"offloadOptimizer": True}, 4, 16),
        ({"offloadFrozenModels": True}, 18, 2),
        ({"offloadOptimizer": True, "offloadFrozenModels": True}, 2, 18),
    ],
)
@pytest.mark.parametrize("scoring", [1, 4, 6])
def test_each_memory_has_to_hold_its_part(
    settings: dict[str, Any], gpu: int, machine: int, scoring: int
) -> None:
    """A frozen model is on the GPU while nothing learns: beside the passes that score."""
    asked = 2 if "offloadFrozenModels" in settings else 0
    needed = (gpu + max(5, scoring + asked)) * GIB

    def check(free: int, kept: int) -> None:
        check_memory(
            config(zeroStage=3, **settings),
            GPU,
            [ACTOR, REFERENCE],
            LEARNING,
            scoring * GIB,
            available=lambda _: (free, "free on cuda:0"),
            machine=lambda _: (kept, "the container's memory limit over 1 processes"),
        )

    check(needed, machine * GIB)
    with pytest.raises(MemoryEstimateError, match="are there \\(free on cuda:0"):
        check(needed - 1, machine * GIB)
    if machine:
        said = f"keeps at least {machine}.00 GiB in the machine's memory .*the container's"
        with pytest.raises(MemoryEstimateError, match=said):
            check(needed, machine * GIB - 1)


@pytest.mark.parametrize(
    ("settings", "offered"),
    [
        ({}, {"offloadOptimizer", "offloadFrozenModels"}),
        ({"offloadOptimizer": True}, {"offloadFrozenModels"}),
        ({"zeroStage": 0}, {"offloadFrozenModels"}),
        ({"offloadOptimizer": True, "offloadFrozenModels": True}, set()),
    ],
)
def test_it_is_a_remedy_for_a_gpu(settings: dict[str, Any], offered: set[str]) -> None:
    for ranks, origin, expected in ((GPU, "free on cuda:0", offered), (CPU, "free", set())):
        with pytest.raises(MemoryEstimateError) as caught:
            check_memory(config(**settings), ranks, [ACTOR], available=lambda _, at=origin: (1, at))
        found = re.findall(r"et spec\.stages\.ppo\.(offload\w+) to true", str(caught.value))
        assert set(found) == expected


@pytest.mark.parametrize(("free", "fits"), [(20 * GIB, True), (20 * GIB - 1, False)])
def test_on_a_cpu_both_are_one(free: int, fits: bool) -> None:
    spec = config(offloadOptimizer=True, offloadFrozenModels=True, zeroStage=1)
    models = [ACTOR, REFERENCE]
    # ZeRO 1 holds the gradients of a step besides.
    free += sharding_bytes(ACTOR, precision="BF16", zero_stage=1)
    try:
        check_memory(spec, CPU, models, available=lambda _: (free, "free"))
    except MemoryEstimateError:
        assert not fits
    else:
        assert fits
