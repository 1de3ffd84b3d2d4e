"""Masks, and sums that see nothing outside of them.

Called by the losses, the advantages and the stages. A mask always comes from lengths. It is never
derived from `ids != pad`, since pad and EOS may be the same id, and then the action that ends the
answer would not be trained.
"""

import torch
from torch import Tensor

from rlhf_trainer.rl._inputs import require_mask


def response_mask(lengths: Tensor, width: int) -> Tensor:
    """True where a column is an action of the response: m[b, t] = t < lengths[b].

    The length counts the EOS when the response ended by one, since EOS is an action. The caller
    has looked once, by `require_lengths`, whether lengths lie in [0, width].

    Shapes: lengths Int[batch] -> Bool[batch, width].
    """
    columns = torch.arange(width, device=lengths.device)
    return columns.unsqueeze(0) < lengths.unsqueeze(1)


def require_lengths(lengths: Tensor, width: int) -> None:
    """Raise ValueError when lengths is no vector or one of them is outside [0, width].

    It looks at the values, for which a host waits for its device: to be asked once a rollout.
    """
    if lengths.dim() != 1:
        raise ValueError(f"lengths has shape {list(lengths.shape)}: it must be a vector")
    if bool(((lengths < 0) | (lengths > width)).any()):
        raise ValueError(f"lengths {lengths.tolist()} must lie in [0, {width}], the width")


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions that count real tokens only: p[b, t] = max(0, Σ_{s≤t} mask[b, s] − 1).

    Needed with left padding wherever positions are learned: the first real token is at position 0
    whatever stands before it. Padding gets a position that exists and that nobody reads.

    Shapes: attention_mask Bool or Int[batch, time] -> Long[batch, time].
    """
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """`x` where the mask is true and 0 elsewhere, whatever lies there (NaN times 0 is NaN).

    Shapes: x Float[...], mask Bool[...] -> Float[...].
    Raises ValueError when the shapes differ or the mask is not boolean.
    """
    require_mask(mask, x=x)
    return torch.where(mask, x, torch.zeros_like(x))


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Σ_{mask} x over every dimension.

    Shapes: x Float[...], mask Bool[...] -> Float[].
    Raises ValueError when the shapes differ or the mask is not boolean.
    """
    return masked(x, mask).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Σ_{mask} x / |mask| over every dimension: a token weighs the same in whatever row it is.

    For numbers to look at. A loss is divided by a count that is global, see `losses`.

    Shapes: x Float[...], mask Bool[...] -> Float[].
    Raises ValueError when the shapes differ, the mask is not boolean or selects nothing (this looks
    at the values).
    """
    count = int(mask.sum())
    if count == 0:
        raise ValueError("mask selects nothing: a mean of no values does not exist")
    return masked_sum(x, mask) / count
