"""The losses of policy and critic: numbers by hand, loops, and what must not change them."""

import math

import pytest
import torch
from loss_cases import ALL, LENGTHS, MASK, TOKENS, assert_close, f64, gradient, numbers, token_batch

from rlhf_trainer.rl.losses import policy_loss, value_loss

# --- policy ---


def test_policy_loss_by_hand() -> None:
    # ρ = 1.5, 1.5, 0.5, 0.5 with A = 2, −2, 2, −2 and a clip of 0.2:
    # A > 0, ρ too large: the clip holds the gain at 1.2, loss −2.4 and no gradient;
    # A < 0, ρ too large: not clipped, loss 2 · 1.5 = 3;
    # A > 0, ρ too small: not clipped, loss −2 · 0.5 = −1;
    # A < 0, ρ too small: clipped at 0.8, loss 2 · 0.8 = 1.6 and no gradient.
    # Sum 1.2, over 4 tokens 0.3. The gradient to log π is −A ρ where not clipped, over 4.
    logprobs = f64([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    old, advantages = f64([0.0, 0.0, 0.0, 0.0]), f64([2.0, -2.0, 2.0, -2.0])
    stats = policy_loss(logprobs, old, advantages, ALL, 0.2, 4.0)
    assert stats.loss.item() == pytest.approx(0.3, rel=1e-12)
    assert_close(gradient(stats.loss, logprobs), f64([0.0, 0.75, -0.25, 0.0]))
    assert (stats.clipped.item(), stats.tokens.item()) == (2, 4)
    assert stats.ratio_sum.item() == pytest.approx(4.0, rel=1e-12)
    # 2 · (0.5 − ln 1.5) + 2 · (−0.5 + ln 2) = 2 ln(2 / 1.5) = 2 ln(4/3) = 0.575364
    assert stats.approx_kl_sum.item() == pytest.approx(0.5753641, abs=1e-7)


def test_policy_loss_equals_a_loop() -> None:
    logprobs, old, advantages = token_batch()
    loss, clipped, approx_kl, ratios = 0.0, 0, 0.0, 0.0
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            log_ratio = logprobs[b, t].item() - old[b, t].item()
            ratio, a = math.exp(log_ratio), advantages[b, t].item()
            held = min(max(ratio, 0.8), 1.2)
            loss -= min(a * ratio, a * held)
            clipped += a * held < a * ratio
            approx_kl += ratio - 1 - log_ratio
            ratios += ratio
    stats = policy_loss(logprobs, old, advantages, MASK, 0.2, TOKENS)
    assert stats.loss.item() == pytest.approx(loss / TOKENS, rel=1e-10)
    assert stats.clipped.item() == clipped > 0
    assert stats.approx_kl_sum.item() == pytest.approx(approx_kl, rel=1e-10)
    assert stats.ratio_sum.item() == pytest.approx(ratios, rel=1e-10)
    assert stats.tokens.item() == TOKENS


def test_at_ratio_one_the_loss_is_minus_the_mean_advantage() -> None:
    # And its gradient is that of REINFORCE, −A / tokens.
    old, _, advantages = token_batch()
    logprobs = old.clone().requires_grad_()
    stats = policy_loss(logprobs, old, advantages, MASK, 0.2, TOKENS)
    assert_close(stats.loss.detach(), -advantages[MASK].mean())
    expected = torch.where(MASK, -advantages / TOKENS, 0.0)
    assert_close(gradient(stats.loss, logprobs), expected)
    assert (stats.clipped.item(), stats.approx_kl_sum.item()) == (0, 0)
    assert stats.ratio_sum.item() == TOKENS


def test_approx_kl_is_never_negative_in_fp32() -> None:
    logprobs = torch.linspace(-1e-3, 1e-3, 101).reshape(1, -1)
    mask, zero = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1)
    for t in range(101):
        stats = policy_loss(logprobs[:, t : t + 1], zero, zero, mask, 0.2, 1.0)
        assert stats.approx_kl_sum.item() >= 0


def test_a_ratio_beyond_reason_gives_numbers() -> None:
    logprobs = torch.tensor([[0.0, -200.0]], requires_grad=True)
    old = torch.tensor([[-200.0, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    stats = policy_loss(logprobs, old, torch.tensor([[-1.0, 1.0]]), mask, 0.2, 2.0)
    # The first ratio is held at e^20, the second at e^−20.
    assert stats.loss.item() == pytest.approx(math.exp(20) / 2, rel=1e-6)
    assert gradient(stats.loss, logprobs).tolist() == [[0.0, 0.0]]
    assert math.isfinite(stats.approx_kl_sum.item())


def test_gradient_is_right_just_inside_of_that_bound() -> None:
    logprobs = f64([19.0]).requires_grad_()
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss = policy_loss(logprobs, f64([0.0]), f64([-1.0]), mask, 0.2, 1.0).loss
    assert gradient(loss, logprobs).item() == pytest.approx(math.exp(19), rel=1e-12)


def test_policy_gradient_goes_to_the_new_logprobs_only() -> None:
    tensors = [torch.zeros(1, 4, requires_grad=True) for _ in range(3)]
    policy_loss(*tensors, ALL, 0.2, 4.0).loss.backward()
    assert [each.grad is None for each in tensors] == [False, True, True]


def test_policy_loss_refuses_a_clip_range_of_zero() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="clip_range is 0"):
        policy_loss(x, x, x, ALL, 0.0, 4.0)


# --- value ---


def test_value_loss_by_hand() -> None:
    # V_old = 0 and a range of 0.5. V = 2, R = 3: (2−3)² = 1 against (0.5−3)² = 6.25, clipped wins,
    # no gradient. V = 2, R = 0: 4 against 0.25, gradient V − R = 2. V = 0.25, R = 1: inside, 0.5625
    # and −0.75. V = −2, R = −1: 1 against (−0.5+1)² = 0.25, gradient −1.
    # ½ (6.25 + 4 + 0.5625 + 1) = 5.90625, over 4 tokens 1.4765625.
    values = f64([2.0, 2.0, 0.25, -2.0]).requires_grad_()
    old, returns = f64([0.0, 0.0, 0.0, 0.0]), f64([3.0, 0.0, 1.0, -1.0])
    stats = value_loss(values, old, returns, ALL, 0.5, 4.0)
    assert stats.loss.item() == 1.4765625
    assert_close(gradient(stats.loss, values), f64([0.0, 0.5, -0.1875, -0.25]))
    assert (stats.clipped.item(), stats.tokens.item()) == (1, 4)
    assert stats.squared_error_sum.item() == 6.5625


def test_value_loss_without_a_clip_by_hand() -> None:
    # ½ (1 + 4 + 0.5625 + 1) / 4
    values, returns = f64([2.0, 2.0, 0.25, -2.0]), f64([3.0, 0.0, 1.0, -1.0])
    stats = value_loss(values, torch.full_like(values, 9.0), returns, ALL, None, 4.0)
    assert stats.loss.item() == 0.8203125
    assert stats.clipped.item() == 0


def test_value_loss_equals_a_loop() -> None:
    values, old, returns = token_batch()
    loss, clipped = 0.0, 0
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            v, o, r = values[b, t].item(), old[b, t].item(), returns[b, t].item()
            near = max(o - 0.2, min(o + 0.2, v))
            loss += 0.5 * max((v - r) ** 2, (near - r) ** 2)
            clipped += near != v and (near - r) ** 2 > (v - r) ** 2
    stats = value_loss(values, old, returns, MASK, 0.2, TOKENS)
    assert stats.loss.item() == pytest.approx(loss / TOKENS, rel=1e-10)
    assert stats.clipped.item() == clipped > 0


def test_a_wide_clip_is_no_clip() -> None:
    values, old, returns = token_batch()
    wide = value_loss(values, old, returns, MASK, 1e6, TOKENS)
    assert_close(wide.loss, value_loss(values, old, returns, MASK, None, TOKENS).loss)
    # Where V_old is large, V_old + (V − V_old) is not V to the last bit.
    x, far = numbers(15, 10, 100).float(), 1e3 * numbers(16, 10, 100).float()
    mask = torch.ones(10, 100, dtype=torch.bool)
    assert value_loss(x, far, torch.zeros(10, 100), mask, 1e6, TOKENS).clipped.item() == 0


def test_value_gradient_goes_to_the_values_only() -> None:
    tensors = [torch.full((1, 4), float(i), requires_grad=True) for i in range(3)]
    value_loss(*tensors, ALL, 0.2, 4.0).loss.backward()
    assert [each.grad is None for each in tensors] == [False, True, True]


def test_value_loss_refuses_a_clip_range_of_zero() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="value_clip_range is 0"):
        value_loss(x, x, x, ALL, 0.0, 4.0)
