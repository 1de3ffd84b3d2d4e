"""What lies in the machine's memory is not needed on the GPU, but there."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch

from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.errors import MemoryEstimateError
from rlhf_trainer.models.memory import (
    GIB,
    ModelSize,
    check_memory,
    sharding_bytes,
)
from rlhf_trainer.run.distributed import Ranks

GPU, CPU = (Ranks(0, 0, 1, 1, torch.device(name)) for name in ("cuda", "cpu"))
ACTOR = ModelSize("actor", GIB, trained=True)
REFERENCE = ModelSize("reference", GIB, trained=False)
OPTIMIZER, FROZEN = {"offloadOptimizer": True}, {"offloadFrozenModels": True}


def config(**settings: Any) -> StageConfig:
    spec = {"model": {"uri": "hf://org/a"}, "dataset": {"uri": "file://rows.jsonl"}}
    spec |= {"rewardModel": {"uri": "hf://org/b"}} | settings
    document = {"job": {"name": "j", "uid": "12345678-aaaa"}, "stage": "ppo", "attempt": 1}
    return StageConfig.model_validate(document | {"storage": "/storage", "ppo": spec})


def fits(stage: StageConfig, models: list[ModelSize], gpu: int, machine: int, **work: int) -> str:
    """Which memory is too small, or none."""
    try:
        check_memory(
            stage,
            GPU,
            models,
            **work,
            available=lambda _: (gpu, "free on cuda:0"),
            machine=lambda _: (machine, "the container's memory limit over 1 processes"),
        )
    except MemoryEstimateError as error:
        return "machine" if "in the machine's memory (offload" in str(error) else "gpu"
    return "none"


@pytest.mark.parametrize(
    ("settings", "gpu", "machine"),
    [
        # Of the actor 2 weights, 4 gradients, 12 optimizer, and 2 weights of the reference.
        ({"zeroStage": 3}, 20, 0),
        ({"zeroStage": 3} | FROZEN, 18, 2),
        # 12 of the optimizer, and a partition's gradients twice.
        ({"zeroStage": 3} | OPTIMIZER, 4, 20),
        ({"zeroStage": 3} | OPTIMIZER | FROZEN, 2, 22),
        # Gradients are added up on the GPU; here they are once, beside the partition's weights.
        ({"zeroStage": 2} | OPTIMIZER, 8, 18),
        # All gradients, and those of a partition.
        ({"zeroStage": 1} | OPTIMIZER, 12, 18),
        # In FP32 4 weights, 4 gradients, 12 optimizer, and 4 weights of the reference.
        ({"zeroStage": 2, "precision": "FP32"} | OPTIMIZER, 8, 20),
        ({"zeroStage": 1, "precision": "FP32"} | OPTIMIZER, 12, 20),
    ],
)
@pytest.mark.parametrize("scoring", [1, 4, 6])
def test_each_memory_has_to_hold_its_part(
    settings: dict[str, Any], gpu: int, machine: int, scoring: int
) -> None:
    """A frozen model is on the GPU while nothing learns: beside the passes that score."""
    stage = config(**settings)
    asked = 2 if "offloadFrozenModels" in settings else 0
    sharding = sharding_bytes(
        ACTOR,
        precision=stage.spec.precision,
        zero_stage=stage.spec.zero_stage,
        offload=stage.spec.offload_optimizer,
    )
    work = {"activations": 5 * GIB - sharding, "scoring": scoring * GIB}
    needed, held = (gpu + max(5, scoring + asked)) * GIB, machine * GIB
    models = [ACTOR, REFERENCE]
    assert fits(stage, models, needed, held, **work) == "none"
    assert fits(stage, models, needed - 1, held, **work) == "gpu"
    if machine:
        assert fits(stage, models, needed, held - 1, **work) == "machine"


def test_a_moving_average_lies_with_the_optimizer() -> None:
    models = [ModelSize("actor", GIB, trained=True, averaged=True)]
    stage = config(zeroStage=3, **OPTIMIZER)
    gathered = sharding_bytes(ACTOR, precision="BF16", zero_stage=3)
    assert fits(stage, models, 2 * GIB + gathered, 24 * GIB) == "none"
    assert fits(stage, models, 2 * GIB + gathered - 1, 24 * GIB) == "gpu"
    assert fits(stage, models, 2 * GIB + gathered, 24 * GIB - 1) == "machine"


def test_who_answers_is_whole_beside_the_answers() -> None:
    """They take what any other pass may take: the reference's, when it comes, and those of an actor
    that ZeRO 3 has cut."""
    actor, reference = (replace(each, answers=True) for each in (ACTOR, REFERENCE))
    work = {"activations": 5 * GIB, "scoring": 1 * GIB}
    stage = config(zeroStage=0, **FROZEN)
    assert fits(stage, [actor, reference], (18 + 5 + 2) * GIB, 2 * GIB, **work) == "none"
    assert fits(stage, [actor, reference], (18 + 5 + 2) * GIB - 1, 2 * GIB, **work) == "gpu"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("parameters", "whole"), [(GIB // 2, 1), (GIB, 0)])
def test_who_is_cut_answers_with_whole_weights_while_they_are_few(
    processes: int, parameters: int, whole: int
) -> None:
    """Of more than `LIVE_NUMBERS` each layer comes alone."""
    reference = replace(REFERENCE, answers=True, parameters=parameters)
    models = [replace(ACTOR, answers=True, parameters=parameters), reference]
    work = {"activations": 0, "scoring": 9 * GIB}
    stage = config(zeroStage=3).model_copy(update={"processes_per_node": processes})
    needed = 20 * parameters // processes + (9 + whole) * GIB
    assert fits(stage, models, needed, 0, **work) == "none"
    assert fits(stage, models, needed - 1, 0, **work) == "gpu"


def test_frozen_models_that_are_cut_score_layer_by_layer() -> None:
    stage = config(zeroStage=3, **FROZEN).model_copy(update={"processes_per_node": 2})
    # Of the actor half of 18, and a pass that scores.
    work = {"activations": 0, "scoring": 9 * GIB}
    assert fits(stage, [ACTOR, REFERENCE], 18 * GIB, GIB, **work) == "none"
    assert fits(stage, [ACTOR, REFERENCE], 18 * GIB - 1, GIB, **work) == "gpu"
    assert fits(stage, [ACTOR, REFERENCE], 18 * GIB, GIB - 1, **work) == "machine"


@pytest.mark.parametrize("settings", [OPTIMIZER, FROZEN, OPTIMIZER | FROZEN])
def test_the_machines_memory_is_refused_by_what_fills_it(settings: dict[str, Any]) -> None:
    with pytest.raises(MemoryEstimateError) as caught:
        check_memory(
            config(**settings),
            GPU,
            [ACTOR, REFERENCE],
            available=lambda _: (100 * GIB, ""),
            machine=lambda _: (0, ""),
        )
    assert f"machine's memory ({' and '.join(settings)}), and 0.00 GiB" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "offered"),
    [
        ({}, {"offloadOptimizer", "offloadFrozenModels"}),
        (OPTIMIZER, {"offloadFrozenModels"}),
        ({"zeroStage": 0}, {"offloadFrozenModels"}),
        (OPTIMIZER | FROZEN, set()),
    ],
)
def test_it_is_a_remedy_for_a_gpu(settings: dict[str, Any], offered: set[str]) -> None:
    for ranks, origin, expected in ((GPU, "free on cuda:0", offered), (CPU, "free", set())):
        with pytest.raises(MemoryEstimateError) as caught:
            check_memory(
                config(**settings),
                ranks,
                [ACTOR, REFERENCE],
                available=lambda _, at=origin: (1, at),
            )
        found = re.findall(r"et spec\.stages\.ppo\.(offload\w+) to true", str(caught.value))
        assert set(found) == expected


def test_where_nothing_is_frozen_nothing_of_it_is_offered() -> None:
    with pytest.raises(MemoryEstimateError) as caught:
        check_memory(config(), GPU, [ACTOR], available=lambda _: (1, ""))
    assert "offloadOptimizer to true" in str(caught.value)
    assert "offloadFrozenModels" not in str(caught.value)


@pytest.mark.parametrize(("short", "enough"), [(0, True), (1, False)])
def test_on_a_cpu_both_are_one(short: int, enough: bool) -> None:
    stage = config(zeroStage=2, **OPTIMIZER | FROZEN)
    free = 20 * GIB + sharding_bytes(ACTOR, precision="BF16", zero_stage=2)

    def check() -> None:
        check_memory(stage, CPU, [ACTOR, REFERENCE], available=lambda _: (free - short, ""))

    if enough:
        check()
    else:
        with pytest.raises(MemoryEstimateError):
            check()
