"""Batches that are padded on the right, as most tools pad what they train on."""

from collections.abc import Sequence

import numpy as np
import torch

from rlhf_trainer.data.collate import Padded, pad_left
from rlhf_trainer.rl.masking import position_ids


def pad_right(
    sequences: Sequence[Sequence[int] | np.ndarray], pad_id: int, width: int | None = None
) -> Padded:
    """As `pad_left`, with the real tokens first."""
    left = pad_left(sequences, pad_id, width)
    shifts = left.lengths.tolist()
    ids, mask = (
        torch.stack([row.roll(shift) for row, shift in zip(rows, shifts, strict=True)])
        for rows in left[:2]
    )
    return Padded(ids, mask, position_ids(mask), left.lengths)
