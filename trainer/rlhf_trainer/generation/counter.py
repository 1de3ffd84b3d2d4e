"""Random numbers by counter: each is a function of where it is used, and of no state.

Called by the samplers. A row's numbers depend neither on the rows beside it nor on the order of
rows or the number of ranks, and nothing of them is kept in a checkpoint.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


class Purpose(IntEnum):
    """What responses are sampled for: each draws from a stream of its own."""

    TRAINING = 0
    EVALUATION = 1
    CHECK = 2


@dataclass(frozen=True)
class RowSeeds:
    """What determines the random numbers of some rows.

    Attributes:
        seed: of the stage.
        rows: the number of each row among those of all ranks.
        update: of the stage; 0 where all updates shall draw the same.
        purpose: keeps the streams of different uses apart.
    """

    seed: int
    rows: Sequence[int]
    update: int = 0
    purpose: Purpose = Purpose.TRAINING

    def __getitem__(self, at: Sequence[int]) -> "RowSeeds":
        """Those of some of the rows."""
        return replace(self, rows=[self.rows[each] for each in at])

    def uniforms(self, count: int, device: torch.device) -> Tensor:
        """Double[rows, count] in [0, 1): one number for each token of each row."""
        counter = (
            torch.arange(count, device=device).unsqueeze(0),
            torch.tensor(list(self.rows), dtype=torch.long, device=device).unsqueeze(1) & _WORD,
            torch.tensor(self.update & _WORD, device=device),
            torch.tensor(int(self.purpose), device=device),
        )
        first, second, *_ = philox(counter, (self.seed & _WORD, self.seed >> 32 & _WORD))
        # 53 bits are what a double has.
        return ((first << 21) | (second >> 11)).double() * 2.0**-53


def philox(counter: Sequence[Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011).

    Args:
        counter: four Long tensors that broadcast, each of 32 bits.
        key: two numbers of 32 bits.

    Returns:
        Four Long tensors of 32 random bits each.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def _product(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of two numbers of 32 bits, without 64 bits overflowing."""
    low = x * (by & 0xFFFF)
    high = x * (by >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
