"""Losses, each a sum over tokens or pairs divided by a count that the caller knows to be global.

Called by the stages, once a micro-batch. With one `normalizer` for all micro-batches and ranks (the
tokens or pairs that one optimizer step sees), the sum of their losses and gradients does not depend
on how the batch was split; a mean of means would give a short response more weight. An engine that
averages gradients over R ranks needs R times the loss, and one that divides by accumulation steps
needs that factor too. Statistics are sums as well: detached 0-dimensional fp64 tensors that may be
added, and divided by their count at the end.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_trainer.rl._inputs import (
    at_least_float32,
    require_mask,
    require_positive,
    require_same_shape,
)
from rlhf_trainer.rl.masking import masked, masked_sum

# e^20 is far outside of any clip range and is still a number in fp32, squared too.
LARGEST_LOG_RATIO = 20.0


class SFTLoss(NamedTuple):
    """The loss of a micro-batch, and sums over its response tokens."""

    loss: Tensor
    nll_sum: Tensor
    """−Σ log π; exp(nll_sum / tokens) is the perplexity."""
    tokens: Tensor


class RewardLoss(NamedTuple):
    """The loss of a micro-batch, and sums over its pairs."""

    loss: Tensor
    chosen_sum: Tensor
    rejected_sum: Tensor
    correct: Tensor
    """Pairs whose chosen score is the higher one; a tie is not."""
    pairs: Tensor


class PolicyLoss(NamedTuple):
    """The loss of a micro-batch, and sums over its response tokens."""

    loss: Tensor
    clipped: Tensor
    """Tokens whose gradient the clip has cut off."""
    approx_kl_sum: Tensor
    """Σ (ρ − 1) − log ρ: the drift since the rollout, never negative."""
    ratio_sum: Tensor
    tokens: Tensor


class ValueLoss(NamedTuple):
    """The loss of a micro-batch, and sums over its response tokens."""

    loss: Tensor
    clipped: Tensor
    """Tokens whose gradient the clip has cut off."""
    squared_error_sum: Tensor
    """Σ (V − return)², not clipped."""
    tokens: Tensor


class EntropyBonus(NamedTuple):
    """The loss of a micro-batch, and sums over its response tokens."""

    loss: Tensor
    entropy_sum: Tensor
    tokens: Tensor


def sft_loss(logprobs: Tensor, mask: Tensor, normalizer: float) -> SFTLoss:
    """L = −Σ_{mask} log π(a_t) / normalizer: cross-entropy of the responses.

    Shapes: logprobs Float[...], mask Bool[...] -> Float[].
    Raises ValueError when the shapes differ, the mask is not boolean or the normalizer is not
    above 0.
    """
    require_positive(normalizer=normalizer)
    nll = -masked_sum(at_least_float32(logprobs), mask)
    return SFTLoss(nll / normalizer, _total(nll), _total(mask))


def reward_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | float,
    centering_coef: float,
    normalizer: float,
) -> RewardLoss:
    """L = Σ (−log σ(c − r − margin) + centering_coef · (c + r)²) / normalizer, in fp32.

    `logsigmoid` and not log of sigmoid, which is −inf from a difference of −104 on. Margin: H.
    Touvron et al., "Llama 2", 2023, eq. 2. Centering, so that scores keep a mean near 0: J.
    Eisenstein et al., "Helping or Herding?", 2023. The base: N. Stiennon et al., "Learning to
    summarize from human feedback", 2020.

    Shapes: chosen, rejected Float[pairs], margin Float[pairs] or a number -> Float[].
    Raises ValueError when the shapes differ, centering_coef is negative or the normalizer is not
    above 0.
    """
    require_positive(normalizer=normalizer)
    if not centering_coef >= 0:
        raise ValueError(f"centering_coef is {centering_coef}: it must be 0 or more")
    require_same_shape(chosen=chosen, rejected=rejected)
    if isinstance(margin, Tensor):
        require_same_shape(chosen=chosen, margin=margin)
        margin = at_least_float32(margin)
    chosen, rejected = at_least_float32(chosen), at_least_float32(rejected)
    ranking = -logsigmoid(chosen - rejected - margin)
    centering = centering_coef * (chosen + rejected).square()
    return RewardLoss(
        loss=(ranking + centering).sum() / normalizer,
        chosen_sum=_total(chosen),
        rejected_sum=_total(rejected),
        correct=_total(chosen > rejected),
        pairs=_total(torch.ones_like(chosen)),
    )


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float,
    normalizer: float,
) -> PolicyLoss:
    """L = Σ_{mask} max(−A ρ, −A clip(ρ, 1 ± clip_range)) / normalizer, ρ = exp(log π − log π_old).

    log ρ is held within ±20, beyond which no gradient flows. approx_kl is K3 of `kl.token_kl`.
    J. Schulman et al., "Proximal Policy Optimization Algorithms", 2017, eq. 7.

    Shapes: logprobs, old_logprobs, advantages Float[batch, time], mask Bool[batch, time]
    -> Float[]. Gradient to logprobs only.
    Raises ValueError when the shapes differ, the mask is not boolean, or clip_range or the
    normalizer is not above 0.
    """
    require_positive(clip_range=clip_range, normalizer=normalizer)
    require_mask(mask, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    new, old = at_least_float32(logprobs), at_least_float32(old_logprobs).detach()
    log_ratio = (masked(new, mask) - masked(old, mask)).clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    ratio = log_ratio.exp()
    gain = masked(advantages.detach(), mask)
    unclipped = -gain * ratio
    clipped = -gain * ratio.clamp(1 - clip_range, 1 + clip_range)
    return PolicyLoss(
        loss=torch.maximum(unclipped, clipped).sum() / normalizer,
        clipped=_total(clipped > unclipped),
        approx_kl_sum=_total(torch.expm1(log_ratio) - log_ratio),
        ratio_sum=_total(masked(ratio, mask)),
        tokens=_total(mask),
    )


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    value_clip_range: float | None,
    normalizer: float,
) -> ValueLoss:
    """L = ½ Σ_{mask} max((V − R)², (V_old + clip(V − V_old, ±c) − R)²) / normalizer.

    c is value_clip_range; None leaves the clip and the maximum out. M. Andrychowicz et al., "What
    Matters In On-Policy Reinforcement Learning?", 2020, find no gain in the clip; it is as in
    OpenAI's baselines.

    Shapes: values, old_values, returns Float[batch, time], mask Bool[batch, time] -> Float[].
    Gradient to values only.
    Raises ValueError when the shapes differ, the mask is not boolean, or value_clip_range or the
    normalizer is not above 0.
    """
    require_positive(normalizer=normalizer)
    require_mask(mask, values=values, old_values=old_values, returns=returns)
    now, target = masked(at_least_float32(values), mask), masked(returns.detach(), mask)
    error = (now - target).square()
    worst, cut = error, torch.zeros_like(mask)
    if value_clip_range is not None:
        require_positive(value_clip_range=value_clip_range)
        old = masked(old_values.detach(), mask)
        near = old + (now - old).clamp(-value_clip_range, value_clip_range)
        worst = torch.maximum(error, (near - target).square())
        # Inside the range `near` may differ from `now` by a rounding error: that is no clip.
        cut = ((now - old).abs() > value_clip_range) & (worst > error)
    return ValueLoss(worst.sum() / (2 * normalizer), _total(cut), _total(error), _total(mask))


def entropy_bonus(
    entropy: Tensor, mask: Tensor, entropy_coef: float, normalizer: float
) -> EntropyBonus:
    """L = −entropy_coef · Σ_{mask} H_t / normalizer: to be added, and more entropy makes it less.

    V. Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016.

    Shapes: entropy Float[batch, time], mask Bool[batch, time] -> Float[].
    Raises ValueError when the shapes differ, the mask is not boolean, entropy_coef is negative or
    the normalizer is not above 0.
    """
    require_positive(normalizer=normalizer)
    if not entropy_coef >= 0:
        raise ValueError(f"entropy_coef is {entropy_coef}: it must be 0 or more")
    total = masked_sum(at_least_float32(entropy), mask)
    return EntropyBonus(-entropy_coef * total / normalizer, _total(total), _total(mask))


def _total(x: Tensor) -> Tensor:
    return x.detach().sum(dtype=torch.float64)
