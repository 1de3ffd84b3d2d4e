"""Batches of equal width from token sequences of any length.

Called by the sampler and by `layouts`. A mask comes from lengths and never from the ids, since a
real token may have the id of the padding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf_trainer.rl.masking import position_ids


class Padded(NamedTuple):
    """A batch of padded sequences."""

    input_ids: Tensor
    """Long[batch, time]."""
    attention_mask: Tensor
    """Long[batch, time], 1 at a real token."""
    position_ids: Tensor
    """Long[batch, time], from 0 at the first real token; some position that exists at padding."""
    lengths: Tensor
    """Long[batch], number of real tokens."""


def pad_left(
    sequences: Sequence[Sequence[int] | np.ndarray], pad_id: int, width: int | None = None
) -> Padded:
    """Padding first, then real tokens, so that all end in the last column: what sampling reads.

    Args:
        sequences: token ids, none of them empty.
        pad_id: id that fills the rest.
        width: number of columns; the longest sequence's length when None.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or min(lengths) == 0:
        raise ValueError(f"sequences of lengths {lengths}: there must be some, and none empty")
    columns = max(lengths) if width is None else width
    if max(lengths) > columns:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit in width {columns}")
    ids = torch.full((len(lengths), columns), pad_id, dtype=torch.long)
    mask = torch.zeros((len(lengths), columns), dtype=torch.long)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        ids[row, columns - length :] = torch.as_tensor(np.asarray(sequence, dtype=np.int64))
        mask[row, columns - length :] = 1
    return Padded(ids, mask, position_ids(mask), torch.tensor(lengths))
