"""The loss of reward models: numbers by hand, loops, and what must not change it."""

import math

import pytest
import torch
from loss_cases import assert_close, f64, gradient, numbers
from torch import Tensor

from rlhf_trainer.rl.losses import reward_loss


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
