"""Pairs of answers as a reward model reads them: all of a micro-batch in one pass.

Called by the reward stage. Chosen and rejected answers of a pair are of unlike lengths, so that
sorting pairs leaves padding, which is filled with other rows where the model keeps them apart.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from rlhf_trainer.data.budget import micro_batches
from rlhf_trainer.data.packing import (
    PackedBatch,
    RowLayout,
    collate_packed,
    groups_of,
    packed_micro_batches,
)
from rlhf_trainer.data.tokenize.tokenized import PreferencePair, SFTExample, Tokens

T = TypeVar("T")


class PairBatch(NamedTuple):
    """Sequences with the answers of some pairs, and where each answer ends."""

    sequences: PackedBatch
    layout: RowLayout
    rows: Tensor
    """Long[2 x pairs], the sequence of each answer: the chosen ones, then the rejected ones."""
    columns: Tensor
    """Long[2 x pairs], the column of its last token."""


@dataclass(frozen=True)
class PairCollator:
    """Puts pairs together.

    Attributes:
        pad_id: id that fills the rest.
        layout: whether several answers share a sequence, and what keeps them apart.
    """

    pad_id: int
    layout: RowLayout = RowLayout.PADDED

    def micro_batches(
        self,
        items: Iterable[T],
        tokens: int,
        pair_of: Callable[[T], PreferencePair],
        device: torch.device,
    ) -> list[list[T]]:
        """Items of like length whose pairs take at most `tokens` together, padding included; a pair
        that is too long stands alone.

        Padded ones as `budget.micro_batches` has them; packed ones in few passes, each with about
        as many as fit, since the more there are, the better they fill each other's sequences.
        """
        if self.layout is RowLayout.PADDED:
            # Both are padded to the longer one.
            return micro_batches(items, tokens, lambda each: 2 * longer(pair_of(each)), device)

        def lengths(each: T) -> tuple[int, int]:
            pair = pair_of(each)
            return len(pair.chosen), len(pair.rejected)

        return packed_micro_batches(items, tokens, lengths, self.layout)

    def __call__(self, pairs: Sequence[PreferencePair]) -> PairBatch:
        """Sequences of answers as `groups_of` packs them."""
        answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        groups = groups_of([len(answer) for answer in answers], self.layout)
        marked = [[_with_its_end(answers[at]) for at in group] for group in groups]
        sequences = collate_packed(marked, self.pad_id, self.layout)
        rows, columns = sequences.response_mask.nonzero(as_tuple=True)
        order = torch.tensor([at for group in groups for at in group]).argsort()
        return PairBatch(sequences, self.layout, rows[order], columns[order])


def longer(pair: PreferencePair) -> int:
    """Tokens of the longer one of a pair."""
    return max(len(pair.chosen), len(pair.rejected))


def _with_its_end(answer: Tokens) -> SFTExample:
    is_last = np.zeros(len(answer), dtype=np.bool_)
    is_last[-1] = True
    return SFTExample(answer, is_last)
