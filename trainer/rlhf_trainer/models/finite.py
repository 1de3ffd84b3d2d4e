"""Whether weights are numbers: asked of every model after each step.

Called by `engine` and `ema`.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def spoilt_weights(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold a NaN or an infinity; none, in one look, where all is well.

    Args:
        weights: by name; of parameters that ZeRO 3 has cut this rank's part is read.
    """
    parts = {name: part for name, each in weights.items() if (part := _own_part(each)).numel()}
    if math.isfinite(_largest(list(parts.values()))):
        return []
    return [name for name, part in parts.items() if not math.isfinite(_largest([part]))]


def _largest(tensors: list[Tensor]) -> float:
    """The largest absolute value; NaN where there is one."""
    return float(torch.nn.utils.get_total_norm(tensors, norm_type=math.inf))


def _own_part(weight: Any) -> Tensor:
    whole: Tensor = weight.detach()
    part: Tensor | None = getattr(weight, "ds_tensor", None)
    if part is None:
        return whole
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    # What fills the last part up is never written.
    real = max(0, min(part.numel(), weight.ds_numel - rank * part.numel()))
    return part.detach().flatten()[:real]
