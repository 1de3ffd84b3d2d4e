"""Which rows of a batch share a micro-batch: those of like length that a budget of tokens holds.

Called by the stages for rows and pairs, and by a rollout for its sequences. A row costs as many
tokens as its micro-batch is wide, so that sorted rows waste little on padding.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch

from rlhf_api.v1alpha1.stages import PPOStage, StageSpec

T = TypeVar("T")

PASS_TOKENS = {"cpu": 64, "cuda": 1024}
"""What a pass through a model costs beside its tokens, in tokens, by the type of the device: on the
CPU as measured with a small model, on a GPU about what it needs to be busy."""


def token_budget(spec: StageSpec) -> int:
    """Tokens of one forward and backward pass on one rank."""
    return spec.micro_batch_tokens or spec.micro_batch_size * spec.most_row_tokens


def scoring_budget(spec: PPOStage) -> int:
    """Tokens of one pass over a rollout that nothing is learned from."""
    return spec.rollout_micro_batch_size * spec.most_row_tokens


def micro_batches(
    items: Iterable[T], tokens: int, length: Callable[[T], int], device: torch.device
) -> list[list[T]]:
    """Items of like `length`, as `within` puts them together; the same for the same items."""
    ordered = sorted(items, key=length)
    widths = [(length(each),) for each in ordered]
    return [ordered[part] for part in within(widths, tokens, PASS_TOKENS[device.type])]


def within(widths: Sequence[tuple[int, ...]], tokens: int, pass_tokens: int) -> list[slice]:
    """Neighbours that `tokens` hold together, cut where the least is computed in vain.

    A cut saves padding and costs one pass more. A row that is too long stands alone.

    Args:
        widths: of each row the numbers of tokens in its parts, for example prompt and response:
            each part is padded to that of the longest of a slice.
        tokens: that a slice may have with its padding.
        pass_tokens: what a pass costs beside its tokens, in tokens.
    """
    if not widths:
        return []
    count = len(widths)
    parts = np.array(widths, dtype=np.int64).reshape(count, -1)
    totals, rows = parts.sum(axis=1), np.arange(1, count + 1)
    # Of the best cut of the rows from each on: what it costs, and where its first slice ends.
    costs = np.zeros(count + 1, dtype=np.int64)
    ends = np.full(count, count)
    for start in reversed(range(count)):
        # More rows than these would not fit were they all as short as the first.
        at_most = max(1, tokens // max(1, int(totals[start])))
        widest = np.maximum.accumulate(parts[start : start + at_most], axis=0).sum(axis=1)
        padded = rows[: len(widest)] * widest
        # Never less with a row more.
        most = max(1, int(np.searchsorted(padded, tokens, side="right")))
        cost = padded[:most] + pass_tokens + costs[start + 1 : start + 1 + most]
        best = int(cost.argmin())
        costs[start], ends[start] = cost[best], start + 1 + best
    slices: list[slice] = []
    while not slices or slices[-1].stop < count:
        start = slices[-1].stop if slices else 0
        slices.append(slice(start, int(ends[start])))
    return slices
