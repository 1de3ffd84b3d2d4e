"""A critic's values do not change when its units do, whatever holds its weights."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import worlds
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_trainer.ppo.popart import BETA, SMALLEST_SCALE, ReturnScale
from rlhf_trainer.rl import Moments

PROGRAM = Path(__file__).parents[1] / "programs_engine" / "popart_cases.py"


@pytest.fixture(scope="module")
def cases() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        # The program reads its neighbour, as a program that is started does.
        patch.syspath_prepend(str(PROGRAM.parent))
        return worlds.load(PROGRAM)


def moments(values: list[float]) -> Moments:
    return Moments.from_values(torch.tensor(values, dtype=torch.float64))


rollouts = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=6), min_size=1, max_size=8)


# The scale


def test_the_first_rollout_counts_whole_and_the_next_a_share() -> None:
    first = ReturnScale().updated(moments([1.0, 3.0]))
    assert (first.mean, first.variance, first.std) == pytest.approx((2.0, 1.0, 1.0))
    # Weights 0.9 · 0.1 and 0.1: shares 9/19 and 10/19. Mean (9 · 2 + 10 · 6) / 19 = 78/19; squares
    # (9 · 5 + 10 · 40) / 19 = 445/19 with 40 the mean of 4 and 64 and 52; less (78/19)².
    second = first.updated(moments([2.0, 8.0, math.sqrt(52.0)]))
    mean = (9 * 2 + 10 * (10 + math.sqrt(52.0)) / 3) / 19
    assert second.mean == pytest.approx(mean)
    assert second.variance == pytest.approx((9 * 5 + 10 * 40) / 19 - mean**2)
    assert second.weight == pytest.approx(0.19)


@given(rollouts)
@settings(derandomize=True)
def test_it_is_the_average_of_first_and_second_moments_with_its_bias_corrected(
    returns: list[list[float]],
) -> None:
    scale, first, second = ReturnScale(), 0.0, 0.0
    for values in returns:
        scale = scale.updated(moments(values))
        first += BETA * (sum(values) / len(values) - first)
        second += BETA * (sum(value * value for value in values) / len(values) - second)
    correction = 1 - (1 - BETA) ** len(returns)
    assert scale.weight == pytest.approx(correction)
    assert scale.mean == pytest.approx(first / correction, rel=1e-9, abs=1e-9)
    variance = second / correction - (first / correction) ** 2
    assert scale.variance == pytest.approx(variance, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("returns", "std"),
    [
        ([[5.0]], 1.0),
        ([[5.0, 5.0, 5.0]], 1.0),
        ([[5.0], [5.0]], 1.0),
        ([[]], 1.0),
        ([[5.0, 5.0 + 1e-4]], SMALLEST_SCALE),
        ([[1.0, 3.0]], 1.0),
        ([[-4.0, 4.0]], 4.0),
    ],
)
def test_few_and_equal_returns_blow_nothing_up(returns: list[list[float]], std: float) -> None:
    scale = ReturnScale()
    for values in returns:
        scale = scale.updated(moments(values))
    assert scale.std == pytest.approx(std)


def test_far_from_0_the_variance_does_not_cancel() -> None:
    scale = ReturnScale()
    for _ in range(5):
        scale = scale.updated(moments([1e9 - 1.0, 1e9 + 1.0]))
    assert scale.std == pytest.approx(1.0, rel=1e-6)


def test_it_follows_returns_that_grow() -> None:
    scale, everything = ReturnScale(), Moments()
    for update in range(100):
        seen = moments([0.2 * update, 0.4 * update])
        scale, everything = scale.updated(seen), everything.merge(seen)
    # 9 updates behind the mean of the newest, which is 29.7; all of them lie 50 behind.
    assert scale.mean == pytest.approx(29.7 - 0.3 * 9, rel=0.01)
    assert everything.mean == pytest.approx(29.7 / 2)


@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e6), st.lists(st.floats(-1e3, 1e3), max_size=5))
@settings(derandomize=True)
def test_units_go_back_and_forth(mean: float, variance: float, values: list[float]) -> None:
    scale = ReturnScale(1.0, mean, variance)
    there = torch.tensor(values, dtype=torch.float64)
    torch.testing.assert_close(
        scale.denormalized(scale.normalized(there)), there, rtol=1e-9, atol=1e-9
    )
    assert ReturnScale.from_dict(scale.to_dict()) == scale


def test_before_any_returns_values_are_as_they_are() -> None:
    values = torch.randn(20)
    assert torch.equal(ReturnScale().normalized(values), values)
    assert torch.equal(ReturnScale().denormalized(values), values)


# The rewrite

ZERO_STAGES = [0, 1, 2, 3]


@pytest.mark.parametrize("world_size", [1, 2])
def test_values_stay_over_the_next_step_and_learn_as_plain_torch(
    tmp_path: Path, cases: Any, world_size: int
) -> None:
    stepped, rewritten, kept, learned = cases.by_hand(tmp_path)
    torch.testing.assert_close(rewritten, stepped, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kept, stepped, rtol=1e-5, atol=1e-5)
    assert float((learned - kept).abs().max()) > 1, "a step that is seen"

    arguments: Any = {
        "folder": tmp_path,
        "zero_stages": ZERO_STAGES,
        "precisions": ["FP32", "BF16"],
    }
    every = (
        [cases.rewritten(tiny.ranks(), **arguments)]
        if world_size == 1
        else worlds.pair()(PROGRAM, "rewritten", **arguments)
    )
    for found in every:
        assert len(found) == 8
        for (zero_stage, precision), (told, resumed) in found.items():
            # A bf16 number is known to 1/256 of itself, and 10 times a shift of 3.2 is taken.
            close = partial(
                torch.testing.assert_close,
                rtol=0,
                atol=1e-4 if precision == "FP32" else 0.2,
                msg=lambda text, at=(zero_stage, precision): f"{at}: {text}",
            )
            close(told[1], told[0])
            close(told[0], stepped)
            close(told[3], learned)
            assert torch.equal(told[2], told[1]), (zero_stage, precision)
            assert torch.equal(resumed, told[3]), (zero_stage, precision)


def test_ranks_follow_the_returns_of_all(tmp_path: Path, cases: Any) -> None:
    expected, before, after = cases.followed(tiny.ranks(), tmp_path)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert expected[-1].mean > 5
    for scales, own_before, own_after in worlds.pair()(PROGRAM, "followed", folder=tmp_path):
        torch.testing.assert_close(own_after, own_before, rtol=1e-4, atol=1e-4)
        for one, other in zip(scales, expected, strict=True):
            assert (one.weight, one.mean, one.variance) == pytest.approx(
                (other.weight, other.mean, other.variance)
            )
