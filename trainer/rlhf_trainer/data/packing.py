"""Batches for the loss on responses: one row a sequence, or several that never see each other.

Called by SFT, by the texts that PPO mixes in, by `pairs` and by rollouts. A packed sequence holds
rows as segments, and positions restart at 0 in each. What keeps the rows apart depends on the
model: see `RowLayout`, which `models.layouts` chooses.
"""

from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from itertools import accumulate, chain
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from rlhf_trainer.data.tokenize.tokenized import SFTExample

T = TypeVar("T")

WINDOW = 512

_WIDTHS = 8
"""How many widths of a sequence are tried beside that of the longest row."""
_MOST_ROWS = 256
"""Of more rows the longest one's width leaves hardly any padding."""
_ATTENTION, _HIDDEN = 6, 1024
"""Attending to one other token is to all else that a token costs as 1 to 6 times the hidden size of
the model, by number of operations. It is not known here: that of a small model is taken, or the
length of the longest row if that is less, so that sequences are rather too narrow."""


class RowLayout(StrEnum):
    """How rows stand in a batch, and what tells a model where each begins and ends."""

    PADDED = "a mask of two dimensions"
    """One row a sequence; the mask says which tokens are real."""
    POSITIONS = "positions that begin again at 0"
    """Several rows a sequence without any mask: transformers finds them by their positions, and
    makes the mask that each layer needs, windows included."""
    ONE_SEQUENCE = "positions that begin again at 0, in one sequence"
    """As POSITIONS, with all rows of a batch in one sequence without padding, since transformers
    looks for them only there when FlashAttention computes."""
    BLOCK_MASK = "a mask of four dimensions"
    """Several rows a sequence, and our own mask in place of the model's: causal in each row."""


class PackedBatch(NamedTuple):
    """Sequences of rows, padded on the right to one width."""

    input_ids: Tensor
    """Long[batch, time]."""
    position_ids: Tensor
    """Long[batch, time], from 0 in each segment; 0 at padding."""
    segment_ids: Tensor
    """Long[batch, time], 1, 2, ... for the rows of a sequence; 0 at padding."""
    response_mask: Tensor
    """Bool[batch, time], true at tokens whose loss counts, none of them a segment's first; of pairs
    at the ends of answers."""

    def attention_mask(self, layout: RowLayout, dtype: torch.dtype) -> Tensor | None:
        """What a model is given as its mask: Long[batch, time], dtype[batch, 1, time, time] or
        nothing."""
        if layout is RowLayout.PADDED:
            return (self.segment_ids > 0).long()
        if layout is RowLayout.BLOCK_MASK:
            return block_causal_mask(self.segment_ids, dtype)
        return None

    def inputs(
        self, layout: RowLayout, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Ids, mask and positions for a forward pass on a device, as `attention_mask`."""
        there = self.to(device)
        return there.input_ids, there.attention_mask(layout, dtype), there.position_ids

    def response_columns(self) -> tuple[Tensor, Tensor]:
        """The columns whose loss counts, in order, and which of them are no filling.

        Rows with fewer of them than the one with most are filled with columns that exist. Looks at
        the values, so that it is to be asked before the batch is on a device.

        Shapes: -> Long[batch, n] from 1, Bool[batch, n].
        """
        counts = self.response_mask.sum(dim=1)
        n = max(1, int(counts.max()))
        columns = self.response_mask.int().argsort(dim=1, descending=True, stable=True)[:, :n]
        return columns.clamp(min=1), torch.arange(n, device=counts.device) < counts.unsqueeze(1)

    def to(self, device: torch.device) -> "PackedBatch":
        """The same on another device."""
        return PackedBatch(*(on_device(each, device) for each in self))


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, of the CPU, on a device.

    To a GPU it goes from pinned memory: other memory is copied only when all is done that the GPU
    was asked for before.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def pack(lengths: Sequence[int], capacity: int, window: int = WINDOW) -> list[list[int]]:
    """Groups of rows whose lengths add up to at most `capacity`.

    First fit decreasing inside each window of `window` rows, so that the order of the rows (their
    shuffle) survives at that scale. The same input gives the same groups.

    Args:
        lengths: number of tokens of each row, each in [1, capacity].
        capacity: number of tokens of a packed sequence.
        window: how many neighbouring rows are packed together.

    Returns:
        Indices into `lengths`, each exactly once, ascending inside a group; groups are in the order
        of their first row.
    """
    if lengths and not 1 <= min(lengths) <= max(lengths) <= capacity:
        raise ValueError(f"lengths {min(lengths)}..{max(lengths)} must lie in [1, {capacity}]")
    starts = range(0, len(lengths), window)
    return [
        group
        for start in starts
        for group in _first_fit(lengths, range(start, min(start + window, len(lengths))), capacity)
    ]


def _first_fit(lengths: Sequence[int], rows: range, capacity: int) -> list[list[int]]:
    groups: list[list[int]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        at = next((i for i, left in enumerate(room) if left >= lengths[row]), None)
        if at is None:
            groups.append([row])
            room.append(capacity - lengths[row])
        else:
            groups[at].append(row)
            room[at] -= lengths[row]
    return sorted(sorted(group) for group in groups)


def fullest_passes(items: Sequence[Sequence[int]], tokens: int, layout: RowLayout) -> list[slice]:
    """Neighbours whose rows take at most `tokens` together when they are packed, padding included.

    Each time about as many as fit, since the more there are, the better they fill each other's
    sequences. An item that is too long stands alone.

    Args:
        items: the numbers of tokens of each item's rows, which stay together; the longest first.
        tokens: of one pass.
        layout: one with several rows a sequence.
    """
    slices: list[slice] = []
    start = 0
    while start < len(items):
        end = start + _fitting(items[start:], tokens, layout)
        slices.append(slice(start, end))
        start = end
    return slices


def packed_micro_batches(
    items: Iterable[T], tokens: int, lengths: Callable[[T], Sequence[int]], layout: RowLayout
) -> list[list[T]]:
    """Items in few passes of at most `tokens` each, as `fullest_passes`; those with the longest row
    first.

    Args:
        items: in any order.
        tokens: of one pass.
        lengths: the numbers of tokens of an item's rows, which stay together.
        layout: one with several rows a sequence.
    """
    ordered = sorted(items, key=lambda each: -max(lengths(each)))
    passes = fullest_passes([lengths(each) for each in ordered], tokens, layout)
    return [ordered[part] for part in passes]


def _fitting(items: Sequence[Sequence[int]], tokens: int, layout: RowLayout) -> int:
    """How many of `items`, from the first on, `tokens` hold; at least one."""
    count = max(1, sum(total <= tokens for total in accumulate(map(sum, items))))
    while count > 1 and (columns := _packed_columns(items[:count], layout)) > tokens:
        # About as many as would fit were all alike.
        count = max(1, min(count - 1, count * tokens // columns))
    return count


def _packed_columns(items: Sequence[Sequence[int]], layout: RowLayout) -> int:
    lengths = list(chain(*items))
    groups = groups_of(lengths, layout)
    return len(groups) * _width(lengths, groups)


def groups_of(lengths: Sequence[int], layout: RowLayout) -> list[list[int]]:
    """Which rows share a sequence, so that about the least is computed.

    A sequence is at least as wide as the longest row, and at most twice that but for ONE_SEQUENCE.

    Args:
        lengths: number of tokens of each row, each at least 1.
        layout: how rows stand in a batch.
    """
    if layout is RowLayout.PADDED:
        return [[row] for row in range(len(lengths))]
    if layout is RowLayout.ONE_SEQUENCE:
        return [list(range(len(lengths)))]
    longest = max(lengths)
    steps = range(_WIDTHS + 1) if len(lengths) <= _MOST_ROWS else range(1)
    capacities = {longest + longest * step // _WIDTHS for step in steps}
    # All rows at once, so that groups do not depend on their order.
    tried = [pack(lengths, capacity, window=len(lengths)) for capacity in sorted(capacities)]

    def cost(groups: list[list[int]]) -> float:
        width = _width(lengths, groups)
        return len(groups) * width * (1 + width / (_ATTENTION * min(longest, _HIDDEN)))

    return min(tried, key=cost)


def _width(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> int:
    return max(sum(lengths[row] for row in group) for group in groups)


def collate_packed(
    groups: Sequence[Sequence[SFTExample]],
    pad_id: int,
    layout: RowLayout = RowLayout.PADDED,
    width: int | None = None,
) -> PackedBatch:
    """One sequence for each group of rows, or one for all of them.

    Args:
        groups: the rows of each sequence, as `pack` groups them.
        pad_id: id that fills the rest.
        layout: whether all groups become one sequence.
        width: number of columns; those of the fullest group when None.
    """
    if layout is RowLayout.ONE_SEQUENCE:
        groups = [[row for group in groups for row in group]]
    totals = [sum(len(row.tokens) for row in group) for group in groups]
    columns = max(totals) if width is None else width
    if max(totals) > columns:
        raise ValueError(f"a group of {max(totals)} tokens does not fit in width {columns}")
    shape = (len(groups), columns)
    ids = torch.full(shape, pad_id, dtype=torch.long)
    positions = torch.zeros(shape, dtype=torch.long)
    segments = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.bool)
    for index, group in enumerate(groups):
        start = 0
        for number, row in enumerate(group, 1):
            end = start + len(row.tokens)
            ids[index, start:end] = torch.as_tensor(row.tokens.astype("int64"))
            positions[index, start:end] = torch.arange(end - start)
            segments[index, start:end] = number
            mask[index, start:end] = torch.as_tensor(row.response_mask)
            start = end
    return PackedBatch(ids, positions, segments, mask)


def block_causal_mask(segment_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """`additive` of `block_causal`.

    Shapes: segment_ids Long[batch, time] -> dtype[batch, 1, time, time].
    """
    return additive(block_causal(segment_ids), dtype)


def block_causal(segment_ids: Tensor) -> Tensor:
    """Which tokens a token looks at: itself, and those before it in its segment.

    Shapes: segment_ids Long[batch, time] -> Bool[batch, 1, time, time].
    """
    time = segment_ids.shape[1]
    same = segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)
    causal = torch.ones(time, time, dtype=torch.bool, device=segment_ids.device).tril()
    return (same & causal).unsqueeze(1)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as 0 where a token may look, and the least number of `dtype` elsewhere.

    A boolean mask serves SDPA only: eager attention adds the mask to its scores, and then false and
    true differ by 1.
    """
    shut = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, shut.new_zeros(()), shut)
