"""Advantages and returns of responses, masked, and their whitening with moments that are global.

Called by PPO once per rollout (advantages) and once per batch or minibatch (whitening). No gradient
flows through anything here.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_trainer.rl._inputs import at_least_float32, require_mask
from rlhf_trainer.rl.masking import masked

WHITEN_EPSILON = 1e-8


class Advantages(NamedTuple):
    """What GAE gives; both are 0 outside of the mask."""

    advantages: Tensor
    """Float[batch, time], A_t, not whitened."""
    returns: Tensor
    """Float[batch, time], A_t + V_t: what the critic is fitted to."""


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float
) -> Advantages:
    """A_t = δ_t + γλ A_{t+1}, δ_t = r_t + γ V_{t+1} − V_t, return_t = A_t + V_t.

    t + 1 is the next action that the mask selects, wherever that is; after the last one V and A
    are 0, since the response has ended. What lies outside of the mask is never read, NaN included.
    J. Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage
    Estimation", 2015, eq. 16.

    Shapes: rewards, values Float[batch, time], mask Bool[batch, time] -> 2 × Float[batch, time],
    fp32 or more.
    Raises ValueError when the shapes differ, the mask is not boolean, or gamma or gae_lambda is
    outside [0, 1].
    """
    if not (0 <= gamma <= 1 and 0 <= gae_lambda <= 1):
        raise ValueError(f"gamma is {gamma} and gae_lambda {gae_lambda}: both must be in [0, 1]")
    require_mask(mask, rewards=rewards, values=values)
    rewards = at_least_float32(masked(rewards, mask))
    values = at_least_float32(masked(values, mask))
    deltas = masked(rewards + gamma * _next_value(values, mask) - values, mask)
    # What is no action hands on what comes behind it.
    factors = torch.where(mask, deltas.new_full((), gamma * gae_lambda), 1.0)
    advantages = masked(_discounted_sums(deltas, factors), mask)
    return Advantages(advantages, advantages + values)


def _next_value(values: Tensor, mask: Tensor) -> Tensor:
    """V of the next action behind each column, 0 behind the last.

    Shapes: values Float[batch, time], mask Bool[batch, time] -> Float[batch, time].
    """
    time = values.shape[1]
    columns = torch.arange(time, device=values.device)
    following = torch.where(mask, columns, time).flip(1).cummin(dim=1).values.flip(1)
    following = torch.nn.functional.pad(following[:, 1:], (0, 1), value=time)
    return torch.nn.functional.pad(values, (0, 1)).gather(1, following)


def _discounted_sums(deltas: Tensor, factors: Tensor) -> Tensor:
    """A_t = δ_t + f_t A_{t+1}, in log2(time) steps that each double how far a column looks ahead.

    A loop over columns would ask a device for as many kernels as a response has tokens.

    Shapes: deltas, factors Float[batch, time] -> Float[batch, time].
    """
    ahead = 1
    while ahead < deltas.shape[1]:
        shift = (0, ahead)
        deltas = deltas + factors * torch.nn.functional.pad(deltas[:, ahead:], shift)
        factors = factors * torch.nn.functional.pad(factors[:, ahead:], shift)
        ahead *= 2
    return deltas


@torch.no_grad()
def whiten(advantages: Tensor, mask: Tensor, mean: float, variance: float) -> Tensor:
    """(A − mean) / √(variance + 1e-8) where the mask is true, 0 elsewhere.

    The moments are arguments, since a rank knows only its own: `moments.masked_moments` of each
    rank, merged. A minibatch whose advantages are all equal becomes 0, not NaN.

    Shapes: advantages Float[batch, time], mask Bool[batch, time] -> Float[batch, time].
    Raises ValueError when the shapes differ, the mask is not boolean or the variance is negative.
    """
    if not variance >= 0:
        raise ValueError(f"variance is {variance}: it must be 0 or more")
    return masked((advantages - mean) / math.sqrt(variance + WHITEN_EPSILON), mask)
