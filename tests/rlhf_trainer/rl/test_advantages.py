"""Masked GAE and whitening."""

from functools import partial, reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_trainer.rl.advantages import gae, whiten
from rlhf_trainer.rl.masking import response_mask
from rlhf_trainer.rl.moments import Moments, masked_moments

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
NAN = float("nan")


def f64(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def experience(seed: int, lengths: list[int], width: int) -> tuple[torch.Tensor, ...]:
    """Rewards, values and mask, with NaN wherever nobody may look."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(len(lengths), width, dtype=torch.float64, generator=generator)
    values = torch.randn(len(lengths), width, dtype=torch.float64, generator=generator)
    mask = response_mask(torch.tensor(lengths), width)
    return torch.where(mask, rewards, NAN), torch.where(mask, values, NAN), mask


def test_gae_by_hand() -> None:
    # γ = 0.5, λ = 0.5, r = 1, 2, 4 and V = 2, 4, 8.
    # δ_2 = 4 + 0 − 8 = −4, δ_1 = 2 + 4 − 4 = 2, δ_0 = 1 + 2 − 2 = 1.
    # A_2 = −4, A_1 = 2 − 0.25·4 = 1, A_0 = 1 + 0.25·1 = 1.25; returns 3.25, 5, 4.
    # The second row ends a token sooner: δ_1 = 2 + 0 − 4 = −2, A_0 = 1 − 0.25·2 = 0.5.
    rewards, values = f64([1.0, 2.0, 4.0], [1.0, 2.0, NAN]), f64([2.0, 4.0, 8.0], [2.0, 4.0, NAN])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    assert_close(advantages, f64([1.25, 1.0, -4.0], [0.5, -2.0, 0.0]))
    assert_close(returns, f64([3.25, 5.0, 4.0], [2.5, 2.0, 0.0]))


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 1_000),
)
@settings(derandomize=True)
def test_gae_equals_a_loop(lengths: list[int], gamma: float, gae_lambda: float, seed: int) -> None:
    rewards, values, mask = experience(seed, lengths, 6)
    loop = torch.zeros(len(lengths), 6, dtype=torch.float64)
    for b, n in enumerate(lengths):
        for t in range(n):
            # The definition as a sum: A_t = Σ_l (γλ)^l δ_{t+l}.
            for later in range(t, n):
                after = values[b, later + 1].item() if later + 1 < n else 0.0
                delta = rewards[b, later].item() + gamma * after - values[b, later].item()
                loop[b, t] += (gamma * gae_lambda) ** (later - t) * delta
    advantages, returns = gae(rewards, values, mask, gamma, gae_lambda)
    assert_close(advantages, loop)
    assert_close(returns, torch.where(mask, loop + values, 0.0))


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 301])
@pytest.mark.parametrize("gaps", [False, True])
def test_gae_equals_the_recursion_from_the_last_column(width: int, gaps: bool) -> None:
    """In fp32, as it runs, with actions anywhere in a row."""
    generator = torch.Generator().manual_seed(width)
    rewards, values = torch.randn(2, 5, width, generator=generator)
    lengths = torch.randint(0, width + 1, (5,), generator=generator)
    mask = response_mask(lengths, width)
    if gaps:
        mask &= torch.rand(5, width, generator=generator) > 0.3
    loop = torch.zeros(5, width)
    for b in range(5):
        next_value = next_advantage = 0.0
        for t in reversed(range(width)):
            if mask[b, t]:
                delta = float(rewards[b, t]) + 0.99 * next_value - float(values[b, t])
                next_value = float(values[b, t])
                next_advantage = delta + 0.99 * 0.95 * next_advantage
                loop[b, t] = next_advantage
    hidden = [torch.where(mask, x, NAN) for x in (rewards, values)]
    advantages, returns = gae(*hidden, mask, 0.99, 0.95)
    scale = float(loop.abs().max()) + 1
    torch.testing.assert_close(advantages, loop, rtol=0, atol=1e-6 * scale)
    torch.testing.assert_close(
        returns, torch.where(mask, loop + values, 0.0), rtol=0, atol=1e-6 * scale
    )


def test_lambda_one_is_the_discounted_return_less_the_value() -> None:
    rewards, values, mask = experience(0, [4, 1, 3], 4)
    advantages, returns = gae(rewards, values, mask, 0.9, 1.0)
    for b, n in enumerate([4, 1, 3]):
        for t in range(n):
            discounted = sum(0.9 ** (s - t) * rewards[b, s].item() for s in range(t, n))
            assert returns[b, t].item() == pytest.approx(discounted, rel=1e-12)
            assert advantages[b, t].item() == pytest.approx(
                discounted - values[b, t].item(), rel=1e-10
            )


def test_lambda_zero_is_the_one_step_error() -> None:
    rewards, values, mask = experience(1, [3, 3], 3)
    advantages, _ = gae(rewards, values, mask, 0.9, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros(2, 1, dtype=torch.float64)], dim=1)
    assert_close(advantages, rewards + 0.9 * following - values)


def test_values_that_are_right_leave_no_advantage() -> None:
    # r = 1 at each of three tokens and γ = 1: the values 3, 2, 1 foresee it all.
    advantages, returns = gae(
        f64([1.0, 1.0, 1.0]), f64([3.0, 2.0, 1.0]), torch.ones(1, 3, dtype=torch.bool), 1.0, 0.95
    )
    assert_close(advantages, f64([0.0, 0.0, 0.0]))
    assert_close(returns, f64([3.0, 2.0, 1.0]))


@pytest.mark.parametrize(("before", "after"), [(0, 5), (5, 0), (2, 3)])
def test_padding_of_any_amount_and_side_changes_nothing(before: int, after: int) -> None:
    rewards, values, mask = experience(2, [4, 4], 4)
    alone = gae(rewards, values, mask, 0.97, 0.9)

    def padded(x: torch.Tensor, fill: float | bool) -> torch.Tensor:
        return torch.nn.functional.pad(x, (before, after), value=fill)

    wide = gae(padded(rewards, NAN), padded(values, NAN), padded(mask, False), 0.97, 0.9)
    for narrow, result in zip(alone, wide, strict=True):
        assert_close(result, padded(narrow, 0.0))


def test_a_gap_in_the_mask_is_stepped_over() -> None:
    rewards, values, _ = experience(3, [3], 3)
    mask = torch.tensor([[True, False, True]])
    advantages, _ = gae(rewards, values, mask, 0.9, 0.8)
    alone, _ = gae(rewards[:, ::2], values[:, ::2], torch.ones(1, 2, dtype=torch.bool), 0.9, 0.8)
    assert_close(advantages[:, ::2], alone)
    assert advantages[0, 1].item() == 0.0


def test_no_gradient_and_fp32() -> None:
    values = torch.zeros(1, 2, dtype=torch.bfloat16, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages, returns = gae(torch.ones(1, 2), values, mask, 1.0, 1.0)
    assert advantages.dtype == returns.dtype == torch.float32
    assert not advantages.requires_grad
    assert not returns.requires_grad


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.1, 0.5), (0.5, -0.1), (NAN, 0.5)])
def test_gae_refuses_numbers_outside_of_their_range(gamma: float, gae_lambda: float) -> None:
    x = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        gae(x, x, torch.ones(1, 1, dtype=torch.bool), gamma, gae_lambda)


def test_gae_refuses_shapes_that_differ() -> None:
    with pytest.raises(ValueError, match="values has shape"):
        gae(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool), 1.0, 1.0)


def test_whiten_by_hand() -> None:
    # (A − 1) / 2: variance 4 and 1e-8 within the root, which changes the ninth digit.
    x = f64([3.0, 1.0, NAN], [-3.0, NAN, NAN])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    expected = f64([1.0, 0.0, 0.0], [-2.0, 0.0, 0.0])
    torch.testing.assert_close(whiten(x, mask, 1.0, 4.0), expected, rtol=2e-9, atol=0.0)


def test_whitened_over_ranks_has_mean_zero_and_variance_one() -> None:
    # Two ranks with other means and sizes: whitened by the merged moments, they are one batch.
    ranks = []
    for seed, lengths in ((4, [5, 2]), (5, [1, 6])):
        rewards, values, mask = experience(seed, lengths, 6)
        ranks.append((gae(10 * seed + rewards, values, mask, 1.0, 0.95).advantages, mask))
    whole = reduce(Moments.merge, (masked_moments(a, m) for a, m in ranks), Moments())
    white = [whiten(a, m, whole.mean, whole.variance) for a, m in ranks]
    after = masked_moments(torch.cat(white), torch.cat([m for _, m in ranks]))
    assert after.mean == pytest.approx(0.0, abs=1e-9)
    assert after.variance == pytest.approx(1.0, rel=1e-7)
    together = whiten(
        torch.cat([a for a, _ in ranks]), torch.cat([m for _, m in ranks]),
        whole.mean, whole.variance,
    )  # fmt: skip
    assert_close(torch.cat(white), together)


def test_whiten_keeps_order_and_sign_of_differences() -> None:
    x = f64([1.0, 2.0, 5.0])
    white = whiten(x, torch.ones(1, 3, dtype=torch.bool), 2.0, 9.0)[0].tolist()
    assert white[0] < white[1] < white[2]


def test_equal_advantages_whiten_to_zero() -> None:
    x = torch.full((1, 3), 7.0)
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert torch.equal(whiten(x, mask, 7.0, 0.0), torch.zeros(1, 3))


def test_whiten_refuses_a_negative_variance() -> None:
    with pytest.raises(ValueError, match="variance is -1"):
        whiten(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool), 0.0, -1.0)
