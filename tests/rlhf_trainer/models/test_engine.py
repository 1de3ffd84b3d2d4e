"""Training steps are the same for any number of ranks, micro-batch size and ZeRO stage.

The measure is plain PyTorch: one process, one batch, AdamW and `clip_grad_norm_`.
"""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
from torch import nn

from rlhf_api.errors import InputError
from rlhf_trainer.models.engine import DTYPES, TrainedModel, freeze, train
from rlhf_trainer.models.heads import Logits

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "engine_cases.py"
cases: Any = worlds.load(PROGRAM)

ZERO_STAGES = [0, 1, 2, 3]
MICRO_BATCHES = [(2, Logits.HEAD), (8, Logits.HEAD), (8, Logits.ALL)]
on = partial(worlds.on, PROGRAM)


@pytest.mark.parametrize("world_size", [1, 2])
def test_ranks_and_micro_batches_do_not_change_training(tmp_path: Path, world_size: int) -> None:
    expected, expected_weights = cases.by_hand(tmp_path)
    assert all(norm > 1.2 for _, norm in expected), "clipping at 1 has to matter"

    for found in on(
        world_size, "steps", folder=tmp_path, zero_stages=ZERO_STAGES, micro_batches=MICRO_BATCHES
    ):
        assert len(found) == len(ZERO_STAGES) * len(MICRO_BATCHES)
        for case, (told, weights) in found.items():
            for step, by_hand in zip(told, expected, strict=True):
                assert step == pytest.approx(by_hand, rel=1e-5), case
            assert weights.keys() == expected_weights.keys()
            for name, weight in weights.items():
                # Adam divides by gradients, some of which are as small as their rounding errors.
                torch.testing.assert_close(
                    weight,
                    expected_weights[name],
                    rtol=0,
                    atol=3e-5,
                    msg=lambda text, case=case, name=name: f"{case} {name}: {text}",
                )


def test_the_measure_knows_clipping_and_decay(tmp_path: Path) -> None:
    """Without either, plain PyTorch ends elsewhere by more than the tolerance above."""
    _, weights = cases.by_hand(tmp_path)
    for changed in ({"clip": 1e9}, {"decay": 0.0}):
        _, others = cases.by_hand(tmp_path, **changed)
        assert max(float((weights[n] - others[n]).abs().max()) for n in weights) > 2e-4, changed


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_gradient_checkpointing_computes_the_same_once_more(
    tmp_path: Path, precision: str, world_size: int
) -> None:
    for found in on(
        world_size, "checkpointed", folder=tmp_path, zero_stages=ZERO_STAGES, precision=precision
    ):
        assert list(found) == ZERO_STAGES
        for zero_stage, ((told, weights, calls), (again, same, more)) in found.items():
            assert again == told, zero_stage
            assert more == 2 * calls > 0, zero_stage
            for name, weight in weights.items():
                assert torch.equal(same[name], weight), (zero_stage, name)


@pytest.mark.parametrize("world_size", [1, 2])
def test_bf16_trains(tmp_path: Path, world_size: int) -> None:
    (_, first_norm), *_ = cases.by_hand(tmp_path)[0]
    for found in on(world_size, "bf16", folder=tmp_path, zero_stages=ZERO_STAGES):
        for zero_stage, (told, dtypes) in found.items():
            losses = [loss for loss, _ in told]
            assert losses[-1] < losses[0] - 1, (zero_stage, losses)
            assert told[0][1] == pytest.approx(first_norm, rel=0.05), zero_stage
            assert dtypes == {"torch.bfloat16"}


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_bf16_keeps_what_a_step_is_too_small_to_change(tmp_path: Path, zero_stage: int) -> None:
    """Near 1 bf16 numbers lie 1/256 apart: 80 steps of 1e-4 move the weights only if fp32 copies
    of them are kept."""
    model = line(tmp_path, zero_stage, 0.0, precision="BF16")
    for _ in range(80):
        model.accumulate(model(torch.ones(8, dtype=torch.bfloat16)), last=True)
        model.step(1e-4)
    assert moved(model).float().tolist() == pytest.approx([-0.008] * 18, abs=1 / 256)


@pytest.mark.field("StageSpec.zero_stage")
@pytest.mark.parametrize("zero_stage", [1, 3])
def test_the_optimizer_is_of_the_stage_asked_for(tmp_path: Path, zero_stage: int) -> None:
    model = line(tmp_path, zero_stage, 0.0)
    assert model.engine.zero_optimization_stage() == zero_stage


@pytest.mark.parametrize(("world_size", "precision"), [(1, "FP32"), (2, "FP32"), (2, "BF16")])
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, world_size: int, precision: str
) -> None:
    for found in on(
        world_size, "resume", folder=tmp_path, zero_stages=ZERO_STAGES, precision=precision
    ):
        assert list(found) == ZERO_STAGES
        for zero_stage, (uninterrupted, resumed, same) in found.items():
            assert resumed == uninterrupted, zero_stage
            assert same, zero_stage


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_weight_of_another_precision_learns_in_that_of_the_stage(
    tmp_path: Path, world_size: int
) -> None:
    """As transformers loads some of a router in fp32."""
    for found in on(world_size, "one_weight_in_fp32", folder=tmp_path, zero_stages=[1, 2, 3]):
        assert found == {stage: {"torch.bfloat16"} for stage in (1, 2, 3)}


def test_no_device_ever_holds_the_whole_of_a_partitioned_model(tmp_path: Path) -> None:
    """Each of its weights comes alone."""
    for found in worlds.pair()(PROGRAM, "moved_whole", folder=tmp_path, zero_stages=ZERO_STAGES):
        assert found == {0: [True] * 2, 1: [True] * 2, 2: [True] * 2, 3: [False] * 2}
    assert on(1, "moved_whole", folder=tmp_path, zero_stages=[3]) == [{3: [True] * 2}]


def test_partitioned_models_are_whole_where_they_are_read(tmp_path: Path) -> None:
    plain = cases.actor(tmp_path)
    shapes = {name: tuple(value.shape) for name, value in plain.model.state_dict().items()}
    alone = on(1, "steps", folder=tmp_path, zero_stages=[0], micro_batches=[(2, Logits.ALL)])

    for found in worlds.pair()(PROGRAM, "partitioned", folder=tmp_path):
        assert found["outside"] == 0, "parameters that are not sharded prove nothing"
        assert found["after"] == 0
        assert found["whole"]
        assert found["shapes"] == shapes
        # Reading leaves the model fit for training.
        assert found["step"] == pytest.approx(alone[0][0, 2, Logits.ALL][0][0], rel=1e-5)
        for name in ("logprobs", "scores"):
            expected, frozen = found[name]
            torch.testing.assert_close(frozen, expected, rtol=0, atol=1e-6)
        assert not found["learns"]


def test_a_frozen_model_is_itself_where_nothing_is_sharded(tmp_path: Path) -> None:
    for zero_stage in (2, 3):
        model = cases.actor(tmp_path)
        model.train()
        frozen = freeze(model, cases.spec(tmp_path, zero_stage=zero_stage), tiny.ranks())
        assert frozen.engine is frozen.module is model
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("world_size", "precision", "value"),
    [(1, "FP32", math.inf), (1, "BF16", math.nan), (2, "FP32", math.nan), (2, "BF16", math.inf)],
)
def test_a_gradient_that_is_not_finite_has_no_norm(
    tmp_path: Path, world_size: int, precision: str, value: float
) -> None:
    """DeepSpeed skips such a step; the norm that it tells must not be that of the step before."""
    for found in on(
        world_size,
        "spoilt",
        folder=tmp_path,
        zero_stages=ZERO_STAGES,
        precision=precision,
        value=value,
    ):
        for stage, ((norm, weights), (spoilt, _)) in found.items():
            assert (math.isfinite(norm), weights) == (True, []), stage
            assert norm > 0, stage
            assert not math.isfinite(spoilt), stage


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, zero_stage: int) -> None:
    """The gradient is finite, and the step leads beyond the largest number."""
    model = line(tmp_path, zero_stage, clip=1.0, start=-3.3e38)
    assert model.spoilt_weights() == []
    model.accumulate(model(torch.ones(8)), last=True)
    assert math.isfinite(model.step(3e37))
    assert model.spoilt_weights() == ["weight", "bias"]


class Line(nn.Module):
    """y = w · x + b."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 8), start))
        self.bias = nn.Parameter(torch.full((2,), start))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.weight @ x + self.bias).sum()


def line(
    folder: Path, zero_stage: int, clip: float, start: float = 1.0, **settings: Any
) -> TrainedModel:
    found = tiny.stage_spec(
        "sft", folder, zero_stage=zero_stage, gradient_clipping=clip, **settings
    )
    module = Line(start).to(DTYPES[found.precision])
    return train(module, found, tiny.ranks(), learning_rate=0.5)


def moved(model: TrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: Any = model.module
        return torch.cat([(found.weight - 1).flatten(), found.bias - 1])


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_clipping_bounds_the_step_and_not_the_norm_that_is_told(
    tmp_path: Path, zero_stage: int
) -> None:
    # With eps 1 the first step of Adam is at most learning rate · gradient: clipping shows in it.
    x = torch.full((8,), 3.0)
    gradient_norm = (2 * 8 * 9.0 + 2) ** 0.5
    steps = {}
    for clip in (0.0, 0.01):
        model = line(tmp_path, zero_stage, clip, adam_eps=1.0)
        model.accumulate(model(x), last=True)
        assert model.step(0.1) == pytest.approx(gradient_norm, rel=1e-5)
        steps[clip] = float(moved(model).norm())
    assert 0 < steps[0.01] <= 0.1 * 0.01 * 1.001
    assert steps[0.0] > 0.1


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_decay_takes_from_matrices_only_at_the_rate_of_the_step(
    tmp_path: Path, zero_stage: int
) -> None:
    model = line(tmp_path, zero_stage, 1.0, weight_decay=0.5)
    for rate in (0.1, 0.2, 0.0):
        model.accumulate(0.0 * model(torch.ones(8)), last=True)
        assert model.step(rate) == 0
    weight, bias = moved(model)[:16] + 1, moved(model)[16:] + 1
    torch.testing.assert_close(weight, torch.full((16,), (1 - 0.05) * (1 - 0.1)))
    assert bias.tolist() == [1.0, 1.0]


def test_a_full_disk_on_one_rank_is_a_storage_error_and_keeps_nobody_waiting(
    tmp_path: Path,
) -> None:
    found = worlds.pair()(PROGRAM, "full_disk", folder=tmp_path, zero_stages=ZERO_STAGES)
    for rank, told in enumerate(found):
        for zero_stage, (direct, stored) in told.items():
            # Under ZeRO 0 rank 0 alone writes.
            fails = rank == 1 and zero_stage > 0
            assert (direct == "StorageError") == fails, (rank, zero_stage, direct)
            assert (direct == "nothing") != fails, (rank, zero_stage, direct)
            # Through the store all ranks hear of it, and the good checkpoint stays.
            expected = ("StorageError", 1) if zero_stage > 0 else ("nothing", 2)
            assert stored == expected, (rank, zero_stage)


class Call:
    """What a pickle of it does when it is loaded: make a folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._path,)


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
@pytest.mark.parametrize("precision", ["FP32", "BF16"])
def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, zero_stage: int, precision: str
) -> None:
    model = line(tmp_path, zero_stage, 1.0, precision=precision)
    model.accumulate(model(torch.ones(8, dtype=DTYPES[precision])), last=True)
    model.step(0.1)
    model.save(tmp_path, "model")
    model.load(tmp_path, "model")
    ran = tmp_path / "ran"
    files = sorted((tmp_path / "model").glob("*.pt"))
    assert len(files) == (1 if zero_stage == 0 else 2)
    for file in files:
        good = file.read_bytes()
        state = torch.load(file, weights_only=False)
        # First proof that it would run, then that it does not.
        torch.save(state | {"more": Call(ran)}, file)
        torch.load(file, weights_only=False)
        ran.rmdir()
        with pytest.raises(InputError) as caught:
            model.load(tmp_path, "model")
        assert not ran.exists()
        assert str(file) in str(caught.value)
        assert "it calls posix.mkdir" in str(caught.value)
        file.write_bytes(good)
    model.load(tmp_path, "model")


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, zero_stage: int) -> None:
    model = line(tmp_path, zero_stage, 1.0)
    model.save(tmp_path, "model")
    for file in sorted((tmp_path / "model").glob("*.pt")):
        good = file.read_bytes()
        file.write_bytes(good[: len(good) // 2])
        with pytest.raises(InputError, match="damaged") as caught:
            model.load(tmp_path, "model")
        assert str(file) in str(caught.value)
        file.write_bytes(good)
    model.load(tmp_path, "model")
