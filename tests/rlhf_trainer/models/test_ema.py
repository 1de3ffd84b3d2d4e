"""The moving average of weights is the formula on whole weights, however they are cut."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
from torch import nn

from rlhf_api.errors import InputError
from rlhf_trainer.models.ema import MovingAverage
from rlhf_trainer.models.engine import train

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "actor_cases.py"
cases: Any = worlds.load(PROGRAM)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("world_size", "precision"), [(1, "FP32"), (2, "FP32"), (2, "BF16")])
def test_it_is_the_formula_also_after_a_resume(
    tmp_path: Path, world_size: int, zero_stage: int, precision: str
) -> None:
    arguments = {"folder": tmp_path, "zero_stage": zero_stage, "precision": precision}
    found = (
        [cases.averages(tiny.ranks(), **arguments)]
        if world_size == 1
        else worlds.pair()(PROGRAM, "averages", **arguments)
    )
    bf16 = precision == "BF16"
    for expected, averaged, last in found:
        assert averaged.keys() == expected.keys()
        for name, weight in expected.items():
            rounded = weight.bfloat16().float() if bf16 else weight
            # Where fp32 numbers stand at a border of bf16, the next one is 1/128 away.
            torch.testing.assert_close(
                averaged[name],
                rounded,
                rtol=2**-7 if bf16 else 1e-6,
                atol=1e-6,
                msg=lambda text, name=name: f"{name}: {text}",
            )
        # The last weights are elsewhere by far more than that.
        assert max(float((last[name] - averaged[name]).abs().max()) for name in last) > 0.01


def test_only_what_is_cut_is_kept_by_every_rank(tmp_path: Path) -> None:
    for zero_stage, files in ((0, {"average-0.pt"}), (2, {"average-0.pt", "average-1.pt"})):
        worlds.pair()(PROGRAM, "averages", folder=tmp_path, zero_stage=zero_stage, precision="FP32")
        kept = tmp_path / f"kept-{zero_stage}-FP32-2" / "average"
        assert {path.name for path in kept.iterdir()} == files


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_a_damaged_average_is_refused(tmp_path: Path, zero_stage: int) -> None:
    spec = tiny.stage_spec("sft", tmp_path, zero_stage=zero_stage)
    model = train(nn.Linear(300, 300), spec, tiny.ranks(), learning_rate=0.5)
    average = MovingAverage(model, 0.5, rank=0)
    average.save(tmp_path, "average")
    (file,) = (tmp_path / "average").iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:-1000])
    with pytest.raises(InputError, match="damaged") as caught:
        average.load(tmp_path, "average")
    assert str(file) in str(caught.value)
    file.write_bytes(good)
    average.load(tmp_path, "average")
