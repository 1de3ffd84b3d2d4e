"""What tests of losses share: numbers, a mask and a batch of tokens of four rows."""

from functools import partial

import torch
from torch import Tensor

from rlhf_trainer.rl.masking import response_mask

assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-12)
NAN = float("nan")

LENGTHS = [5, 1, 3, 4]
MASK = response_mask(torch.tensor(LENGTHS), 5)
TOKENS = 13.0
ALL = torch.ones(1, 4, dtype=torch.bool)


def f64(*rows: object) -> Tensor:
    """A tensor of these numbers, by rows if each is a list."""
    return torch.tensor(rows, dtype=torch.float64)


def numbers(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers that are the same each time."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def token_batch() -> tuple[Tensor, Tensor, Tensor]:
    """What is learned, what it was, and advantages or returns; NaN outside of the mask."""
    old = numbers(0, 4, 5)
    x, fixed = old + 0.3 * numbers(1, 4, 5), numbers(2, 4, 5)
    return tuple(torch.where(MASK, each, NAN) for each in (x, old, fixed))  # type: ignore[return-value]


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    """d loss / dx, of the shape of x."""
    return torch.autograd.grad(loss, x)[0]
