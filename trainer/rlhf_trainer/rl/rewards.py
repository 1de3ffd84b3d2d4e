"""From one score a response to one reward a token.

Called by PPO between scoring and advantages. A score is clipped before its moments are updated and
before it is scaled (`moments.running_scale`), so that one outlier does not set the scale.
"""

import torch
from torch import Tensor

from rlhf_trainer.rl._inputs import at_least_float32, require_positive, require_same_shape
from rlhf_trainer.rl.masking import masked, require_lengths, response_mask


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """clip(score, −limit, +limit).

    Shapes: scores Float[batch] -> Float[batch].
    Raises ValueError when the limit is not above 0.
    """
    require_positive(limit=limit)
    return scores.clamp(-limit, limit)


def penalise_missing_eos(
    scores: Tensor, ended: Tensor, penalty: float, *, replaces: bool = False
) -> Tensor:
    """score − penalty where the response was cut off at its maximum length, score elsewhere.

    With `replaces` it is −penalty there, whatever the score. S. Huang et al., "The N+
    Implementation Details of RLHF with PPO", 2024, the "EOS trick" (there −1, which replaces).

    Shapes: scores Float[batch], ended Bool[batch] -> Float[batch].
    Raises ValueError when the shapes differ, `ended` is not boolean or the penalty is negative.
    """
    require_same_shape(scores=scores, ended=ended)
    if ended.dtype != torch.bool:
        raise ValueError(f"ended has dtype {ended.dtype}: it must be torch.bool")
    if not penalty >= 0:
        raise ValueError(f"penalty is {penalty}: it must be 0 or more, and is taken off the score")
    cut_off = torch.full_like(scores, -penalty) if replaces else scores - penalty
    return torch.where(ended, scores, cut_off)


def token_rewards(scores: Tensor, kl: Tensor, response_lengths: Tensor, kl_coef: float) -> Tensor:
    """r_t = −β · kl_t + [t = n − 1] · score for the n actions of a response, 0 after them.

    The score goes to the last action, which is the EOS where there is one: a slot later it would
    land on a value that is never trained. So rewards − placed score = −β · kl at every token.
    L. Ouyang et al., "Training language models to follow instructions", 2022, eq. 2.

    Shapes: scores Float[batch], kl Float[batch, time], response_lengths Int[batch]
    -> Float[batch, time], fp32 or more.
    Raises ValueError when the batch sizes differ or a length is outside [1, time].
    """
    require_same_shape(scores=scores, response_lengths=response_lengths)
    if kl.dim() != 2 or kl.shape[:1] != scores.shape:
        raise ValueError(
            f"scores has shape {list(scores.shape)}, kl {list(kl.shape)}: want [batch], "
            "[batch, time]"
        )
    require_lengths(response_lengths, kl.shape[1])
    if bool((response_lengths < 1).any()):
        raise ValueError(
            f"response_lengths {response_lengths.tolist()} must be 1 or more: "
            "a response without an action has no token to carry its score"
        )
    penalty = -kl_coef * masked(at_least_float32(kl), response_mask(response_lengths, kl.shape[1]))
    last = (response_lengths - 1).unsqueeze(1)
    return penalty.scatter_add(1, last.long(), scores.to(penalty.dtype).unsqueeze(1))
