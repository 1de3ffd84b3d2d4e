"""Several rows in one sequence that never see each other.

Called by SFT. A packed sequence holds rows as segments; positions restart at 0 in each, and the
attention mask is causal inside a segment and shut between them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from rlhf_trainer.data.tokenize.tokenized import SFTExample

WINDOW = 512


class PackedBatch(NamedTuple):
    """Packed sequences, padded on the right to one width."""

    input_ids: Tensor
    """Long[batch, time]."""
    position_ids: Tensor
    """Long[batch, time], from 0 in each segment; 0 at padding."""
    segment_ids: Tensor
    """Long[batch, time], 1, 2, ... for the rows of a sequence; 0 at padding."""
    response_mask: Tensor
    """Bool[batch, time], true at tokens whose loss counts; false at each segment's first token."""


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


def collate_packed(
    groups: Sequence[Sequence[SFTExample]], pad_id: int, width: int | None = None
) -> PackedBatch:
    """One packed sequence for each group of rows.

    Args:
        groups: the rows of each sequence, as `pack` groups them.
        pad_id: id that fills the rest.
        width: number of columns; those of the fullest group when None.
    """
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
    """Additive attention mask: 0 where a token may look, the least number of `dtype` elsewhere.

    A token looks at itself and at what stands before it in its segment. A boolean mask would serve
    SDPA only: eager attention adds the mask to its scores, and then false and true differ by 1.

    Shapes: segment_ids Long[batch, time] -> dtype[batch, 1, time, time].
    """
    time = segment_ids.shape[1]
    same = segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)
    causal = torch.ones(time, time, dtype=torch.bool, device=segment_ids.device).tril()
    shut = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=segment_ids.device)
    return torch.where(same & causal, shut.new_zeros(()), shut).unsqueeze(1)


def supports_packing(model: PreTrainedModel, capacity: int) -> bool:
    """Whether rows in one sequence of `capacity` tokens give the logits that they give alone.

    With SDPA and eager attention Llama, Mistral, Mixtral, Qwen2, Qwen3, GPT-2, GPT-J, GPT-NeoX,
    Phi and OPT can, as far as a sliding window is not shorter than `capacity`. Not: BLOOM, MPT and
    Falcon with ALiBi, which want a mask of two dimensions; Mamba and others with a recurrent state;
    FlashAttention, which takes no such mask. Beyond these rules a forward pass of seven tokens
    decides, so an architecture that nobody listed is judged too. All ranks must call this together,
    since weights may be partitioned; the model comes back as it was.
    """
    config = model.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        return False
    if any(window < capacity for window in _windows(config)):
        return False
    try:
        return _keeps_rows_apart(model)
    except (ValueError, TypeError, IndexError, RuntimeError):
        # What refuses the mask or the positions cannot pack.
        return False


def _windows(config: PreTrainedConfig) -> list[int]:
    """How far back each kind of layer looks that does not see everything.

    A model takes a mask of four dimensions as it is, so the window would be lost.
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and set(kinds) == {"full_attention"}:
        return []
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return [window for window in found if window is not None]


@torch.no_grad()
def _keeps_rows_apart(model: PreTrainedModel) -> bool:
    parameter = next(model.parameters())
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(10, device=parameter.device) * 7 % vocabulary
    row, one, other = ids[:4], ids[4:7], ids[7:]
    was_training = model.training
    model.train(False)
    try:
        alone = model(input_ids=row.unsqueeze(0), use_cache=False).logits[0].float()
        behind_one, behind_other = (
            _logits_behind(model, before, row, parameter.dtype) for before in (one, other)
        )
    finally:
        model.train(was_training)
    scale = alone.abs().max()
    # The same shapes give the same rounding, so any more than that is a leak; against the row
    # alone, in other shapes, bf16 may differ by some per cent, a wrong position by far more.
    leak = (behind_one - behind_other).abs().max() / scale
    shift = (behind_one - alone).abs().max() / scale
    return bool(leak <= 4 * torch.finfo(parameter.dtype).eps) and bool(shift <= 0.05)


def _logits_behind(
    model: PreTrainedModel, before: Tensor, row: Tensor, dtype: torch.dtype
) -> Tensor:
    """Float[len(row), vocab]: the row's logits where another one stands before it."""
    lengths = torch.tensor([len(before), len(row)], device=row.device)
    segments = torch.repeat_interleave(torch.tensor([1, 2], device=row.device), lengths)
    positions = torch.cat([torch.arange(len(part), device=row.device) for part in (before, row)])
    logits: Tensor = model(
        input_ids=torch.cat([before, row]).unsqueeze(0),
        position_ids=positions.unsqueeze(0),
        attention_mask=block_causal_mask(segments.unsqueeze(0), dtype),
        use_cache=False,
    ).logits
    return logits[0, len(before) :].float()
