"""Moments merge to those of the whole, and survive JSON."""

import json
import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf_trainer.rl.moments import Moments, explained_variance, masked_moments, running_scale

lists = st.lists(st.floats(-1e3, 1e3), max_size=12)


def moments(values: list[float]) -> Moments:
    return Moments.from_values(torch.tensor(values, dtype=torch.float64))


def assert_same(actual: Moments, expected: Moments) -> None:
    assert actual.count == expected.count
    assert actual.mean == pytest.approx(expected.mean, rel=1e-9, abs=1e-9)
    assert actual.m2 == pytest.approx(expected.m2, rel=1e-9, abs=1e-6)


def test_moments_by_hand() -> None:
    # 2, 4, 4, 10: mean 5, deviations −3, −1, −1, 5, squares 9 + 1 + 1 + 25 = 36; 36 / 3 = 12.
    state = moments([2.0, 4.0, 4.0, 10.0])
    assert (state.count, state.mean, state.m2) == (4, 5.0, 36.0)
    assert state.variance == 12.0
    assert state.std == pytest.approx(3.4641016151377544, rel=1e-14)


def test_merge_by_hand() -> None:
    # {2, 4}: mean 3, M2 2. {10}: mean 10, M2 0. Together δ = 7, mean 3 + 7/3 = 16/3,
    # M2 = 2 + 49 · 2/3 = 104/3 (check: 4 + 16 + 100 − 3 · 256/9 = 120 − 256/3 = 104/3).
    merged = Moments(2, 3.0, 2.0).merge(Moments(1, 10.0, 0.0))
    assert merged.count == 3
    assert merged.mean == pytest.approx(16 / 3, rel=1e-14)
    assert merged.m2 == pytest.approx(104 / 3, rel=1e-14)


@given(lists)
@settings(derandomize=True)
def test_moments_equal_a_loop(values: list[float]) -> None:
    mean = math.fsum(values) / len(values) if values else 0.0
    m2 = math.fsum((value - mean) ** 2 for value in values)
    assert_same(moments(values), Moments(len(values), mean, m2))


@given(lists, lists, lists)
@settings(derandomize=True)
def test_merge_is_associative_and_equals_the_whole(
    a: list[float], b: list[float], c: list[float]
) -> None:
    left = moments(a).merge(moments(b)).merge(moments(c))
    right = moments(a).merge(moments(b).merge(moments(c)))
    assert_same(left, right)
    assert_same(left, moments(a + b + c))
    assert_same(moments(b).merge(moments(a)), moments(a + b))


@given(lists)
@settings(derandomize=True)
def test_nothing_is_the_neutral_element(values: list[float]) -> None:
    assert moments(values).merge(Moments()) == moments(values) == Moments().merge(moments(values))


def test_merge_keeps_digits_far_from_zero() -> None:
    # Σx² − n·mean² has lost every digit here; the values 0, 1, …, 9 have variance 55/6.
    values = [1e9 + i for i in range(10)]
    state = reduce(Moments.merge, (moments([value]) for value in values), Moments())
    assert state.variance == pytest.approx(55 / 6, rel=1e-6)


@given(lists)
@settings(derandomize=True)
def test_json_repeats_them_to_the_last_bit(values: list[float]) -> None:
    state = moments(values)
    assert Moments.from_dict(json.loads(json.dumps(state.to_dict()))) == state


def test_from_dict_names_what_is_missing() -> None:
    with pytest.raises(KeyError, match="m2"):
        Moments.from_dict({"count": 1, "mean": 0.0})


def test_masked_moments_see_the_selected_values_only() -> None:
    x = torch.tensor([[2.0, float("nan")], [4.0, 9.0]])
    mask = torch.tensor([[True, False], [True, False]])
    assert masked_moments(x, mask) == Moments(2, 3.0, 2.0)
    assert masked_moments(x, torch.zeros(2, 2, dtype=torch.bool)) == Moments()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        moments([1.0, bad])


def test_impossible_moments_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Moments(-1, 0.0, 0.0)
    with pytest.raises(ValueError, match="negative"):
        Moments(1, 0.0, -1.0)


@pytest.mark.parametrize(
    ("state", "std"),
    [
        (Moments(), 1.0),
        (Moments(1, 7.0, 0.0), 1.0),
        (Moments(2, 7.0, 0.0), 1.0),
        (Moments(2, 7.0, 0.99e-12), 1.0),
        (Moments(2, 7.0, 4e-12), 2e-6),
        (Moments(3, 7.0, 8.0), 2.0),
    ],
)
def test_std_is_one_until_there_is_a_spread(state: Moments, std: float) -> None:
    assert state.std == pytest.approx(std, rel=1e-12)


def test_scaling_divides_and_does_not_shift() -> None:
    scores = torch.tensor([-4.0, 0.0, 6.0], dtype=torch.float64)
    scaled = scores / running_scale(Moments(3, 100.0, 8.0))
    # σ = 2: −4 / (2 + 1e-8) = −2 + 1e-8 to first order.
    torch.testing.assert_close(
        scaled, torch.tensor([-1.99999999, 0.0, 2.999999985], dtype=torch.float64),
        rtol=1e-14, atol=1e-15,
    )  # fmt: skip


def test_scaling_takes_the_unit_out_of_scores() -> None:
    scores = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    once = scores / running_scale(Moments.from_values(scores))
    thousandfold = 1000 * scores / running_scale(Moments.from_values(1000 * scores))
    torch.testing.assert_close(once, thousandfold, rtol=1e-7, atol=1e-9)
    assert Moments.from_values(once).std == pytest.approx(1.0, rel=1e-7)


# --- explained variance ---

NAN = math.nan
MASK = torch.arange(5) < torch.tensor([[5], [1], [3], [4]])


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def numbers(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def explained(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    return explained_variance(masked_moments(returns - values, mask), masked_moments(returns, mask))


def test_explained_variance_by_hand() -> None:
    # Returns 0, 2, 4: unbiased variance 4. Errors 0, 1, −1 have variance 1: 1 − 1/4.
    returns, values = f64(0.0, 2.0, 4.0, NAN), f64(0.0, 1.0, 5.0, NAN)
    mask = f64(1, 1, 1, 0).bool()
    assert explained(values, returns, mask) == pytest.approx(0.75, rel=1e-12)


def test_explained_variance_of_the_best_a_constant_and_the_opposite() -> None:
    returns = numbers(13, 4, 5)
    assert explained(returns + 3, returns, MASK) == pytest.approx(1.0, abs=1e-12)
    assert explained(torch.zeros(4, 5), returns, MASK) == pytest.approx(0.0, abs=1e-12)
    # The error of −R is 2R, with four times the variance.
    assert explained(-returns, returns, MASK) == pytest.approx(-3.0, rel=1e-12)


def test_explained_variance_of_constant_returns_does_not_exist() -> None:
    assert math.isnan(explained(numbers(14, 4, 5), torch.ones(4, 5), MASK))
