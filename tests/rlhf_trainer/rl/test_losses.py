"""Losses: numbers by hand, loops, and what must not change them."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from rlhf_trainer.rl.losses import (
    entropy_bonus,
    policy_loss,
    reward_loss,
    sft_loss,
    value_loss,
)
from rlhf_trainer.rl.masking import response_mask

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
NAN = float("nan")


def f64(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def numbers(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


LENGTHS = [5, 1, 3, 4]
MASK = response_mask(torch.tensor(LENGTHS), 5)
TOKENS = 13.0

# Each token loss as a function of one learned tensor, three fixed ones, a mask and a normalizer.
TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
TOKEN_LOSSES: dict[str, TokenLoss] = {
    "sft": lambda x, a, b, mask, n: sft_loss(x, mask, n).loss,
    "policy": lambda x, a, b, mask, n: policy_loss(x, a, b, mask, 0.2, n).loss,
    "value": lambda x, a, b, mask, n: value_loss(x, a, b, mask, None, n).loss,
    "clipped value": lambda x, a, b, mask, n: value_loss(x, a, b, mask, 0.2, n).loss,
    "entropy": lambda x, a, b, mask, n: entropy_bonus(x, mask, 0.01, n).loss,
}


def token_batch() -> tuple[Tensor, Tensor, Tensor]:
    """What is learned, what it was, and advantages or returns; NaN outside of the mask."""
    old = numbers(0, 4, 5)
    x, fixed = old + 0.3 * numbers(1, 4, 5), numbers(2, 4, 5)
    return tuple(torch.where(MASK, each, NAN) for each in (x, old, fixed))  # type: ignore[return-value]


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(loss, x)[0]


# --- what holds for every loss over tokens ---


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_gradient_equals_finite_differences(name: str) -> None:
    x, old, fixed = (torch.where(MASK, each, 0.0) for each in token_batch())
    assert torch.autograd.gradcheck(
        lambda z: TOKEN_LOSSES[name](z, old, fixed, MASK, TOKENS), (x.requires_grad_(),)
    )


@pytest.mark.parametrize("name", TOKEN_LOSSES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_add_up_to_the_batch(name: str, size: int) -> None:
    x, old, fixed = token_batch()
    x.requires_grad_()
    whole = TOKEN_LOSSES[name](x, old, fixed, MASK, TOKENS)
    parts = [
        TOKEN_LOSSES[name](*(each[i : i + size] for each in (x, old, fixed, MASK)), TOKENS)
        for i in range(0, 4, size)
    ]
    total = torch.stack(parts).sum()
    assert_close(total, whole)
    assert_close(gradient(total, x), gradient(whole, x))
    assert whole.abs().item() > 1e-3


@pytest.mark.parametrize("name", TOKEN_LOSSES)
@pytest.mark.parametrize(("before", "after"), [(0, 4), (4, 0), (1, 2)])
def test_padding_of_any_amount_and_side_changes_nothing(name: str, before: int, after: int) -> None:
    x, old, fixed = token_batch()
    x.requires_grad_()

    def padded(each: Tensor, fill: float | bool) -> Tensor:
        return torch.nn.functional.pad(each, (before, after), value=fill)

    alone = TOKEN_LOSSES[name](x, old, fixed, MASK, TOKENS)
    wide = TOKEN_LOSSES[name](
        padded(x, NAN), padded(old, NAN), padded(fixed, NAN), padded(MASK, False), TOKENS
    )
    assert_close(wide, alone)
    assert_close(gradient(wide, x), gradient(alone, x))


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_outside_of_the_mask_the_gradient_is_zero(name: str) -> None:
    x, old, fixed = token_batch()
    x.requires_grad_()
    inside = gradient(TOKEN_LOSSES[name](x, old, fixed, MASK, TOKENS), x)
    assert inside[~MASK].abs().max().item() == 0.0
    assert inside[MASK].abs().max().item() > 0.0


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_the_normalizer_divides(name: str) -> None:
    x, old, fixed = token_batch()
    once = TOKEN_LOSSES[name](x, old, fixed, MASK, 1.0)
    assert_close(TOKEN_LOSSES[name](x, old, fixed, MASK, 8.0), once / 8)
    with pytest.raises(ValueError, match="normalizer is 0"):
        TOKEN_LOSSES[name](x, old, fixed, MASK, 0.0)


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_an_empty_mask_is_a_loss_of_zero_with_a_gradient_of_zero(name: str) -> None:
    # A rank whose rows are all padding must still take part in the backward pass.
    x, old, fixed = (each[:1].clone() for each in token_batch())
    x.requires_grad_()
    loss = TOKEN_LOSSES[name](x, old, fixed, torch.zeros(1, 5, dtype=torch.bool), 4.0)
    assert loss.item() == 0.0
    assert gradient(loss, x).abs().max().item() == 0.0


@pytest.mark.parametrize("name", TOKEN_LOSSES)
def test_shapes_that_would_broadcast_are_refused(name: str) -> None:
    x, old, fixed = token_batch()
    with pytest.raises(ValueError, match="must be equal"):
        TOKEN_LOSSES[name](x, old, fixed, MASK[:1], TOKENS)


def test_bf16_inputs_give_fp32_losses_and_fp64_sums() -> None:
    x = torch.zeros(4, 5, dtype=torch.bfloat16)
    for stats in (
        sft_loss(x, MASK, TOKENS),
        policy_loss(x, x, x, MASK, 0.2, TOKENS),
        value_loss(x, x, x, MASK, 0.2, TOKENS),
        entropy_bonus(x, MASK, 0.01, TOKENS),
        reward_loss(x[0], x[1], 0.0, 0.0, 5.0),
    ):
        assert stats.loss.dtype == torch.float32
        assert {each.dtype for each in stats[1:]} == {torch.float64}
        assert all(each.shape == () for each in stats)


def test_sums_carry_no_gradient() -> None:
    x = torch.zeros(4, 5, requires_grad=True)
    other = torch.zeros(4, 5)
    for stats in (
        sft_loss(x, MASK, TOKENS),
        policy_loss(x, other, other, MASK, 0.2, TOKENS),
        value_loss(x, other, other, MASK, 0.2, TOKENS),
        entropy_bonus(x, MASK, 0.01, TOKENS),
        reward_loss(x[0], other[0], 0.0, 0.0, 5.0),
    ):
        assert stats.loss.requires_grad
        assert not any(each.requires_grad for each in stats[1:])


# --- supervised fine-tuning ---


def test_sft_loss_by_hand() -> None:
    # Tokens of probability 1/2, 1/4 and 1/8: ln 2 + ln 4 + ln 8 = 6 ln 2, a mean of 2 ln 2 and
    # so a perplexity of 4.
    logprobs = f64([0.5, 0.25, NAN], [0.125, NAN, NAN]).log()
    mask = response_mask(torch.tensor([2, 1]), 3)
    loss, nll_sum, tokens = sft_loss(logprobs, mask, 3.0)
    assert loss.item() == pytest.approx(2 * 0.6931471805599453, rel=1e-12)
    assert nll_sum.item() == pytest.approx(6 * 0.6931471805599453, rel=1e-12)
    assert tokens.item() == 3
    assert math.exp(nll_sum / tokens) == pytest.approx(4.0, rel=1e-12)


def test_sft_loss_equals_cross_entropy() -> None:
    logits, tokens = numbers(3, 4, 5, 6), torch.arange(20).reshape(4, 5) % 6
    logprobs = torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]
    reference = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.where(MASK, tokens, -100).flatten()
    )
    assert_close(sft_loss(logprobs, MASK, TOKENS).loss, reference)


# --- reward model ---


def test_reward_loss_by_hand() -> None:
    # c − r = ln 3: σ = 3/4, −ln σ = ln(4/3); c − r = −ln 7: σ = 1/8, ln 8; equal: ln 2.
    # Sum ln(64/3) = 4.1588831 − 1.0986123 = 3.0602708, over 3: 1.0200903. One pair is right.
    ln3, ln7 = 1.0986122886681098, 1.9459101490553132
    stats = reward_loss(f64(2 + ln3, 0.0, 1.0), f64(2.0, ln7, 1.0), 0.0, 0.0, 3.0)
    assert stats.loss.item() == pytest.approx(1.0200903, abs=1e-7)
    assert stats.chosen_sum.item() == pytest.approx(3 + ln3)
    assert stats.rejected_sum.item() == pytest.approx(3 + ln7)
    assert (stats.correct.item(), stats.pairs.item()) == (1, 3)


def test_margin_and_centering_by_hand() -> None:
    # c = 1 + ln 3, r = 0, margin 1: the same ln(4/3) as a difference of ln 3.
    # Centering 0.01 · (1 + ln 3)² = 0.01 · 4.404174 = 0.044042.
    ln3 = 1.0986122886681098
    by_number = reward_loss(f64(1 + ln3), f64(0.0), 1.0, 0.01, 1.0)
    assert by_number.loss.item() == pytest.approx(0.2876821 + 0.0440417, abs=1e-7)
    by_pair = reward_loss(f64(1 + ln3), f64(0.0), f64(1.0), 0.01, 1.0)
    assert_close(by_pair.loss, by_number.loss)


def test_reward_loss_equals_a_loop() -> None:
    chosen, rejected, margin = numbers(4, 6), numbers(5, 6), numbers(6, 6).abs()
    loop = 0.0
    for c, r, m in zip(chosen.tolist(), rejected.tolist(), margin.tolist(), strict=True):
        loop += math.log(1 + math.exp(-(c - r - m))) + 0.3 * (c + r) ** 2
    assert reward_loss(chosen, rejected, margin, 0.3, 7.0).loss.item() == pytest.approx(
        loop / 7, rel=1e-12
    )


def test_a_common_shift_matters_to_centering_only() -> None:
    chosen, rejected = numbers(7, 6), numbers(8, 6)

    def loss(shift: float, centering_coef: float) -> Tensor:
        return reward_loss(chosen + shift, rejected + shift, 0.0, centering_coef, 6.0).loss

    assert_close(loss(40.0, 0.0), loss(0.0, 0.0))
    assert loss(40.0, 0.01).item() > loss(0.0, 0.01).item() + 1


def test_reward_loss_pushes_chosen_up_and_rejected_down() -> None:
    chosen, rejected = numbers(9, 6).requires_grad_(), numbers(10, 6).requires_grad_()
    loss = reward_loss(chosen, rejected, 0.0, 0.0, 6.0).loss
    up, down = torch.autograd.grad(loss, (chosen, rejected))
    # d/dc −log σ(c − r) = −σ(r − c)
    assert_close(up, -torch.sigmoid(rejected - chosen).detach() / 6)
    assert_close(down, -up)


def test_reward_loss_and_its_gradient_stay_finite_far_out() -> None:
    chosen = torch.tensor([-300.0], dtype=torch.bfloat16, requires_grad=True)
    loss = reward_loss(chosen, torch.tensor([300.0]), 0.0, 0.0, 1.0).loss
    assert loss.dtype == torch.float32
    assert loss.item() == 600.0
    assert gradient(loss, chosen).item() == -1.0


def test_reward_micro_batches_add_up() -> None:
    chosen, rejected = numbers(11, 8).requires_grad_(), numbers(12, 8)
    whole = reward_loss(chosen, rejected, 0.1, 0.01, 8.0).loss
    parts = [
        reward_loss(chosen[i : i + 3], rejected[i : i + 3], 0.1, 0.01, 8.0).loss
        for i in range(0, 8, 3)
    ]
    assert_close(torch.stack(parts).sum(), whole)
    assert_close(gradient(torch.stack(parts).sum(), chosen), gradient(whole, chosen))


def test_reward_loss_refuses() -> None:
    with pytest.raises(ValueError, match="rejected has shape"):
        reward_loss(torch.zeros(2), torch.zeros(1), 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="margin has shape"):
        reward_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1), 0.0, 1.0)
    with pytest.raises(ValueError, match="centering_coef is -1"):
        reward_loss(torch.zeros(2), torch.zeros(2), 0.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="normalizer is 0"):
        reward_loss(torch.zeros(2), torch.zeros(2), 0.0, 0.0, 0.0)


# --- policy ---

ALL = torch.ones(1, 4, dtype=torch.bool)


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


# --- entropy ---


def test_entropy_bonus_by_hand() -> None:
    # −0.01 · (1 + 2 + 5) / 4 = −0.02, and more entropy is less loss.
    stats = entropy_bonus(f64([1.0, 2.0, 5.0, NAN]), f64([1, 1, 1, 0]).bool(), 0.01, 4.0)
    assert stats.loss.item() == pytest.approx(-0.02, rel=1e-12)
    assert (stats.entropy_sum.item(), stats.tokens.item()) == (8.0, 3)


def test_entropy_bonus_refuses_a_negative_coefficient() -> None:
    with pytest.raises(ValueError, match="entropy_coef is -1"):
        entropy_bonus(torch.zeros(1, 4), ALL, -1.0, 4.0)
