"""What lies in the machine's memory learns and answers as what lies where it computes."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import stage_runs
import tiny
import torch
import worlds
from torch import nn

from rlhf_trainer.models.engine import DTYPES, TrainedModel, freeze, train
from rlhf_trainer.models.heads import Logits
from rlhf_trainer.models.placed import OffloadedModel
from rlhf_trainer.ppo import collection
from rlhf_trainer.ppo.experience import Experience
from rlhf_trainer.run.loop import TrainingLoop

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "engine_cases.py"
cases: Any = worlds.load(PROGRAM)

SHARDED = [1, 2, 3]
META = torch.device("meta")
on = partial(worlds.on, PROGRAM)


# Optimizers


@pytest.mark.parametrize("world_size", [1, 2])
def test_an_offloaded_optimizer_makes_the_same_steps(tmp_path: Path, world_size: int) -> None:
    expected, expected_weights = cases.by_hand(tmp_path)
    settings = {"zero_stages": SHARDED, "micro_batches": [(2, Logits.HEAD)]}
    for found in on(world_size, "steps", folder=tmp_path, offload_optimizer=True, **settings):
        assert len(found) == len(SHARDED)
        for case, (told, weights) in found.items():
            for step, by_hand in zip(told, expected, strict=True):
                assert step == pytest.approx(by_hand, rel=1e-5), case
            for name, weight in weights.items():
                torch.testing.assert_close(weight, expected_weights[name], rtol=0, atol=3e-5)


@pytest.mark.parametrize("world_size", [1, 2])
def test_it_trains_in_bf16(tmp_path: Path, world_size: int) -> None:
    straight = on(world_size, "bf16", folder=tmp_path, zero_stages=SHARDED)
    offloaded = on(world_size, "bf16", folder=tmp_path, zero_stages=SHARDED, offload=True)
    for one, other in zip(straight, offloaded, strict=True):
        for zero_stage in SHARDED:
            (expected, _), (told, dtypes) = one[zero_stage], other[zero_stage]
            assert [loss for loss, _ in told] == pytest.approx(
                [loss for loss, _ in expected], rel=2e-2
            ), zero_stage
            assert told[0][1] == pytest.approx(expected[0][1], rel=1e-5), zero_stage
            assert dtypes == {"torch.bfloat16"}


@pytest.mark.parametrize("zero_stage", SHARDED)
def test_bf16_gradients_are_added_up_in_fp32(tmp_path: Path, zero_stage: int) -> None:
    """In bf16 a sum of 256 stays what it is when 1 is added."""
    settings = {"precision": "BF16", "zero_stage": zero_stage, "offload_optimizer": True}
    spec = tiny.stage_spec("sft", tmp_path, gradient_clipping=0.0, **settings)
    weight = nn.Linear(1, 1, bias=False).to(DTYPES["BF16"])
    model = train(weight, spec, tiny.ranks(), learning_rate=1.0)
    for at in range(300):
        loss = model(torch.ones(1, dtype=DTYPES["BF16"])).float().sum()
        model.accumulate(loss, last=at == 299)
    assert model.step(0.1) == pytest.approx(300.0)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_its_checkpoint_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, world_size: int, precision: str
) -> None:
    settings = {"zero_stages": SHARDED, "precision": precision, "offload": True}
    for found in on(world_size, "resume", folder=tmp_path, **settings):
        for zero_stage, (uninterrupted, resumed, same) in found.items():
            assert resumed == uninterrupted, zero_stage
            assert same, zero_stage


@pytest.mark.field("StageSpec.offload_optimizer")
@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_every_stage_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    found: list[bool] = []
    resume = TrainingLoop.resume

    def look(loop: TrainingLoop) -> Any:
        for model in loop.models.values():
            assert isinstance(model, TrainedModel)
            found.append(bool(model.engine.zero_cpu_offload()))
        return resume(loop)

    monkeypatch.setattr(TrainingLoop, "resume", look)
    settings = {"zero_stage": 1, "offload_optimizer": True, "max_steps": 1}
    stage_runs.run(tiny.stage_config(stage, tmp_path, **settings))
    assert set(found) == {True}


@pytest.mark.parametrize("zero_stage", SHARDED)
def test_what_writes_weights_beside_it_finds_them(tmp_path: Path, zero_stage: int) -> None:
    """PopArt rewrites the critic's head, the average reads all weights of the actor."""
    settings: dict[str, Any] = {"value_normalization": "PopArt", "ema_decay": 0.7}
    settings |= {"zero_stage": zero_stage, "eval_dataset": True}
    told = []
    for offload in (False, True):
        folder = tmp_path / str(offload)
        config = tiny.stage_config("ppo", folder, offload_optimizer=offload, **settings)
        stage_runs.run(config)
        told.append([stage_runs.learned(step) for step in stage_runs.steps(config)])
    straight, offloaded = told
    for one, other in zip(straight, offloaded, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-5)


# Frozen models


def test_a_frozen_model_is_on_the_device_while_it_is_asked_alone() -> None:
    """A device that keeps no numbers shows where the weights are; buffers are always there."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3)).eval()
    module[1].weight = module[0].weight
    before = {name: weight.clone() for name, weight in module.named_parameters()}

    def places() -> set[str]:
        return {weight.device.type for weight in module.parameters()}

    model = OffloadedModel(module, META)
    assert {buffer.device for buffer in module.buffers()} == {META}
    assert places() == {"cpu"}
    with model.resident():
        assert places() == {"meta"}
        assert module[1].weight is module[0].weight
        with model.chosen():
            assert places() == {"meta"}
        assert model(torch.zeros(4, 3, device=META)).shape == (4, 3)
        assert places() == {"meta"}
    assert places() == {"cpu"}
    assert model(torch.zeros(4, 3, device=META)).device == META
    assert places() == {"cpu"}
    assert all(torch.equal(weight, before[name]) for name, weight in module.named_parameters())


def test_it_comes_back_from_a_pass_that_fails() -> None:
    module = nn.Linear(3, 2)
    model = OffloadedModel(module, META)
    with pytest.raises(RuntimeError), model.resident():
        model(torch.zeros(4, 5, device=META))
    assert module.weight.device.type == "cpu"


def test_frozen_models_are_left_where_they_were_loaded(tmp_path: Path) -> None:
    spec = tiny.stage_spec("ppo", tmp_path)
    kept = freeze(nn.Linear(2, 2), spec, tiny.ranks(), offload=True)
    assert isinstance(kept, OffloadedModel)
    assert not any(each.requires_grad for each in kept.module.parameters())


@pytest.mark.field("PPOStage.offload_frozen_models")
def test_they_come_once_for_each_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[torch.device | None] = []
    asked: list[int] = []
    place, collect = OffloadedModel._place, collection.collect

    def watched(model: OffloadedModel, device: torch.device | None) -> None:
        moves.append(device)
        place(model, device)

    def watch(*arguments: Any, **settings: Any) -> Experience:
        moves.clear()
        found = collect(*arguments, **settings)
        asked.append(len(moves))
        return found

    monkeypatch.setattr(OffloadedModel, "_place", watched)
    monkeypatch.setattr(collection, "collect", watch)
    config = tiny.stage_config("ppo", tmp_path, offload_frozen_models=True, max_steps=2)
    stage_runs.run(config)
    assert asked == [0, 0], "within an evaluation they stay where they are"
    assert moves == [None, None], "and afterwards reference and reward model go"


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_two_ranks_learn_the_same_by_them(tmp_path: Path, zero_stage: int) -> None:
    told = []
    for offload in (False, True):
        config = tiny.stage_config(
            "ppo",
            tmp_path / str(offload),
            world_size=2,
            zero_stage=zero_stage,
            eval_dataset=True,
            offload_frozen_models=offload,
        )
        (first, _) = stage_runs.run_on_pair(config)
        assert "error" not in first
        told.append(stage_runs.told(config))
    assert told[0] == told[1]
