"""What the formulas ask of their inputs before they compute.

Called by the other modules of this package. Shapes that differ are refused, because PyTorch would
broadcast them and give a number without a word. Nothing here looks at the values of a tensor on a
device, except where a function says so.
"""

import torch
from torch import Tensor


def require_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError, naming both tensors, unless all have one shape."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor.shape != first.shape:
            raise ValueError(
                f"{name} has shape {list(tensor.shape)}, {first_name} has {list(first.shape)}: "
                "they must be equal"
            )


def require_mask(mask: Tensor, **tensors: Tensor) -> None:
    """Raise ValueError unless `mask` is boolean and has the shape of every other tensor."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask has dtype {mask.dtype}: it must be torch.bool")
    require_same_shape(mask=mask, **tensors)


def require_positive(**numbers: float) -> None:
    """Raise ValueError, naming the number, unless each is above zero (NaN is not)."""
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} is {number}: it must be above 0")


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in fp32, or in fp64 where it already is: bf16 has 8 bits, too few to sum with."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
