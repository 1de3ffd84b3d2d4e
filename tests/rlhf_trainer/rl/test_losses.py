"""What must not change any loss over tokens, and the losses of SFT and entropy by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from loss_cases import ALL, MASK, NAN, TOKENS, assert_close, f64, gradient, numbers, token_batch
from torch import Tensor

from rlhf_trainer.rl.losses import entropy_bonus, policy_loss, reward_loss, sft_loss, value_loss
from rlhf_trainer.rl.masking import response_mask

# Each token loss as a function of one learned tensor, three fixed ones, a mask and a normalizer.
TokenLoss = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
TOKEN_LOSSES: dict[str, TokenLoss] = {
    "sft": lambda x, a, b, mask, n: sft_loss(x, mask, n).loss,
    "policy": lambda x, a, b, mask, n: policy_loss(x, a, b, mask, 0.2, n).loss,
    "value": lambda x, a, b, mask, n: value_loss(x, a, b, mask, None, n).loss,
    "clipped value": lambda x, a, b, mask, n: value_loss(x, a, b, mask, 0.2, n).loss,
    "entropy": lambda x, a, b, mask, n: entropy_bonus(x, mask, 0.01, n).loss,
}


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


# --- entropy ---


def test_entropy_bonus_by_hand() -> None:
    # −0.01 · (1 + 2 + 5) / 4 = −0.02, and more entropy is less loss.
    stats = entropy_bonus(f64([1.0, 2.0, 5.0, NAN]), f64([1, 1, 1, 0]).bool(), 0.01, 4.0)
    assert stats.loss.item() == pytest.approx(-0.02, rel=1e-12)
    assert (stats.entropy_sum.item(), stats.tokens.item()) == (8.0, 3)


def test_entropy_bonus_refuses_a_negative_coefficient() -> None:
    with pytest.raises(ValueError, match="entropy_coef is -1"):
        entropy_bonus(torch.zeros(1, 4), ALL, -1.0, 4.0)
