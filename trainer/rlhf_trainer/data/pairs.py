"""Pairs of answers as a reward model reads them: all of a micro-batch in one pass.

Called by the reward stage. Chosen and rejected answers of a pair are of unlike lengths, so that
sorting pairs leaves padding, which is filled with other rows where the model keeps them apart.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from rlhf_trainer.data.budget import micro_batches
from rlhf_trainer.data.packing import PackedBatch, RowLayout, collate_packed, pack
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

        Padded ones as `budget.micro_batches` has them; packed ones in few passes, each with as many
        as fit, since the more there are, the better they fill each other's sequences.
        """
        if self.layout is RowLayout.PADDED:
            # Both are padded to the longer one.
            return micro_batches(items, tokens, lambda each: 2 * longer(pair_of(each)), device)
        ordered = sorted(items, key=lambda each: -longer(pair_of(each)))
        parts = []
        while ordered:
            count = self._fitting([pair_of(each) for each in ordered], tokens)
            parts.append(ordered[:count])
            ordered = ordered[count:]
        return parts

    def _fitting(self, pairs: Sequence[PreferencePair], tokens: int) -> int:
        """How many of `pairs`, the longest first, `tokens` hold when packed; at least one."""
        totals = accumulate(len(pair.chosen) + len(pair.rejected) for pair in pairs)
        count = max(1, sum(total <= tokens for total in totals))
        while count > 1 and (columns := self._columns(pairs[:count])) > tokens:
            # About as many as would fit were all alike.
            count = max(1, min(count - 1, count * tokens // columns))
        return count

    def _columns(self, pairs: Sequence[PreferencePair]) -> int:
        lengths = [len(answer) for answer in _answers(pairs)]
        if self.layout is RowLayout.ONE_SEQUENCE:
            return sum(lengths)
        width = max(lengths)
        return width * len(pack(lengths, width))

    def __call__(self, pairs: Sequence[PreferencePair]) -> PairBatch:
        """No sequence is wider than the longest answer."""
        answers = _answers(pairs)
        lengths = [len(answer) for answer in answers]
        is_packed = self.layout is not RowLayout.PADDED
        groups = pack(lengths, max(lengths)) if is_packed else [[at] for at in range(len(lengths))]
        marked = [[_with_its_end(answers[at]) for at in group] for group in groups]
        sequences = collate_packed(marked, self.pad_id, self.layout)
        rows, columns = sequences.response_mask.nonzero(as_tuple=True)
        order = torch.tensor([at for group in groups for at in group]).argsort()
        return PairBatch(sequences, self.layout, rows[order], columns[order])


def longer(pair: PreferencePair) -> int:
    """Tokens of the longer one of a pair."""
    return max(len(pair.chosen), len(pair.rejected))


def _answers(pairs: Sequence[PreferencePair]) -> list[Tokens]:
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def _with_its_end(answer: Tokens) -> SFTExample:
    is_last = np.zeros(len(answer), dtype=np.bool_)
    is_last[-1] = True
    return SFTExample(answer, is_last)
