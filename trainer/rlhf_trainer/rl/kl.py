"""How far the actor is from the reference, and the controller that holds it there.

Called by PPO when it turns scores into rewards, and once an update for the coefficient. The drift
of the actor inside an update is not here but a statistic of the policy loss (`approx_kl_sum`).
"""

import math
from typing import Literal

import torch
from torch import Tensor

from rlhf_trainer.rl._inputs import at_least_float32, require_positive, require_same_shape

KLEstimator = Literal["K1", "K2", "K3"]

# e^20 nats is far beyond any answer that means something, and is still a number in fp32.
LARGEST_EXPONENT = 20.0
# One update moves the coefficient by at most this share of samples / horizon.
LARGEST_ERROR = 0.2


def token_kl(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimate KL(π ‖ π_ref) from the tokens that π drew, with k1 = log π(a) − log π_ref(a).

    K1 = k1: unbiased, may be negative. K2 = k1² / 2: biased, little variance.
    K3 = exp(−k1) − 1 + k1: unbiased and never negative (the exponent is held below 20, so that one
    token cannot make the batch infinite).
    J. Schulman, "Approximating KL divergence", 2020, http://joschu.net/blog/kl-approx.html.

    Shapes: logprobs, ref_logprobs Float[batch, time] -> Float[batch, time], fp32 or more.
    Raises ValueError when the shapes differ or the estimator has another name.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    k1 = at_least_float32(logprobs) - at_least_float32(ref_logprobs)
    if estimator == "K1":
        return k1
    if estimator == "K2":
        return k1.square() / 2
    if estimator == "K3":
        return torch.expm1((-k1).clamp(max=LARGEST_EXPONENT)) + k1
    raise ValueError(f"estimator is {estimator!r}: it must be K1, K2 or K3")


def adapted_kl_coef(
    kl_coef: float, kl: float, target: float, horizon: float, samples: int
) -> float:
    """β ← β · (1 + clip(kl / target − 1, ±0.2) · samples / horizon).

    `kl` and `target` are nats an answer, `horizon` and `samples` are counted in answers.
    D. Ziegler et al., "Fine-Tuning Language Models from Human Preferences", 2019.

    Raises ValueError when target, horizon or samples is not above 0, or samples reaches
    5 · horizon, where the coefficient could become 0 or negative; FloatingPointError when kl is not
    finite.
    """
    require_positive(target=target, horizon=horizon, samples=samples)
    if samples * LARGEST_ERROR >= horizon:
        raise ValueError(
            f"samples is {samples} and horizon {horizon}: samples must be below 5 * horizon, "
            "or one update could turn the sign of the coefficient"
        )
    if not math.isfinite(kl):
        raise FloatingPointError(f"kl is {kl}: the coefficient cannot follow it")
    error = min(max(kl / target - 1, -LARGEST_ERROR), LARGEST_ERROR)
    return kl_coef * (1 + error * samples / horizon)
