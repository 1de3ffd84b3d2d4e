"""Masks come from lengths, and what they hide cannot be seen."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_trainer.rl.masking import (
    masked,
    masked_mean,
    masked_sum,
    position_ids,
    require_lengths,
    response_mask,
)

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)


def test_response_mask_by_hand() -> None:
    mask = response_mask(torch.tensor([0, 1, 3]), 3)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[False] * 3, [True, False, False], [True] * 3]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(9, 12))
@settings(derandomize=True)
def test_response_mask_equals_a_loop(lengths: list[int], width: int) -> None:
    loop = [[column < length for column in range(width)] for length in lengths]
    assert response_mask(torch.tensor(lengths), width).tolist() == loop


@pytest.mark.parametrize("lengths", [[4], [-1], [1, 5]])
def test_lengths_outside_the_width_are_refused(lengths: list[int]) -> None:
    require_lengths(torch.tensor([0, 3]), 3)
    with pytest.raises(ValueError, match=r"must lie in \[0, 3\]"):
        require_lengths(torch.tensor(lengths), 3)


def test_lengths_that_are_a_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\].*vector"):
        require_lengths(torch.tensor([[1, 2]]), 3)


def test_position_ids_start_at_the_first_real_token() -> None:
    attention = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    positions = position_ids(attention)
    assert positions.dtype == torch.long
    assert positions.tolist()[:2] == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert positions[2, :3].tolist() == [0, 1, 2]
    assert torch.equal(position_ids(attention.bool()), positions)


@given(st.integers(0, 8), st.integers(1, 8))
@settings(derandomize=True)
def test_position_ids_do_not_depend_on_the_padding(padding: int, length: int) -> None:
    positions = position_ids(torch.tensor([[0] * padding + [1] * length]))[0].tolist()
    assert positions[padding:] == list(range(length))
    assert min(positions) >= 0


def test_masked_numbers_by_hand() -> None:
    # The selected values are 1, 2 and 6: sum 9, mean 3. A mean of row means would be 3.75.
    x = torch.tensor([[1.0, 2.0], [6.0, float("nan")]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, False]])
    assert masked(x, mask).tolist() == [[1.0, 2.0], [6.0, 0.0]]
    assert masked_sum(x, mask).item() == 9.0
    assert masked_mean(x, mask).item() == 3.0


def test_masked_mean_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 7, dtype=torch.float64, generator=generator)
    mask = torch.rand(5, 7, generator=generator) < 0.5
    chosen = [x[b, t].item() for b in range(5) for t in range(7) if mask[b, t]]
    assert_close(masked_mean(x, mask).item(), sum(chosen) / len(chosen))


def test_gradient_is_zero_outside_and_finite_beside_nan() -> None:
    x = torch.tensor([1.0, float("nan")], requires_grad=True)
    masked_sum(x, torch.tensor([True, False])).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 0.0]


def test_mean_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="selects nothing"):
        masked_mean(torch.zeros(2), torch.zeros(2, dtype=torch.bool))


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x has shape \[2, 3\], mask has \[1, 3\]"):
        masked_sum(torch.zeros(2, 3), torch.ones(1, 3, dtype=torch.bool))


def test_an_integer_mask_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must be torch\.bool"):
        masked_sum(torch.zeros(2), torch.ones(2, dtype=torch.long))
