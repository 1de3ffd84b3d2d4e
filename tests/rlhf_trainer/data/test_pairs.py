"""Where each answer of some pairs stands, packed and padded."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_trainer.data import budget
from rlhf_trainer.data.packing import RowLayout
from rlhf_trainer.data.pairs import PairCollator
from rlhf_trainer.data.tokenize.tokenized import PreferencePair

PAD = 0
LENGTHS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=7)


def pairs_of(lengths: list[tuple[int, int]]) -> list[PreferencePair]:
    """With another number in each token, so that none is taken for another."""
    tokens = iter(np.split(np.arange(1, 1 + sum(map(sum, lengths)), dtype=np.int32), cuts(lengths)))
    return [PreferencePair(next(tokens), next(tokens), None) for _ in lengths]


def cuts(lengths: list[tuple[int, int]]) -> np.ndarray:
    return np.cumsum([length for pair in lengths for length in pair])[:-1]


@pytest.mark.parametrize("layout", RowLayout)
@given(lengths=LENGTHS)
def test_each_answer_stands_before_its_end(
    layout: RowLayout, lengths: list[tuple[int, int]]
) -> None:
    pairs = pairs_of(lengths)
    batch = PairCollator(PAD, layout)(pairs)
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    ids, positions = batch.sequences.input_ids, batch.sequences.position_ids
    assert len(batch.rows) == len(batch.columns) == len(answers)
    for answer, row, column in zip(answers, batch.rows, batch.columns, strict=True):
        there = slice(int(column) + 1 - len(answer), int(column) + 1)
        assert ids[row, there].tolist() == answer.tolist()
        assert positions[row, there].tolist() == list(range(len(answer)))
    assert int((ids != PAD).sum()) == sum(map(sum, lengths))


@given(lengths=LENGTHS)
def test_packed_ones_take_no_more_sequences_and_columns(lengths: list[tuple[int, int]]) -> None:
    longest = max(map(max, lengths))
    padded, packed = (
        PairCollator(PAD, layout)(pairs_of(lengths)).sequences.input_ids.shape
        for layout in (RowLayout.PADDED, RowLayout.POSITIONS)
    )
    assert padded == (2 * len(lengths), longest)
    assert packed[0] <= padded[0]
    assert longest <= packed[1] <= 2 * longest
    assert packed[0] * packed[1] <= padded[0] * padded[1]


@pytest.mark.parametrize("layout", RowLayout)
@given(lengths=LENGTHS, tokens=st.integers(18, 60))
def test_a_micro_batch_holds_what_its_budget_does(
    layout: RowLayout, lengths: list[tuple[int, int]], tokens: int
) -> None:
    """The budget is at least that of the longest pair."""
    pairs, collate = pairs_of(lengths), PairCollator(PAD, layout)
    parts = collate.micro_batches(range(len(pairs)), tokens, pairs.__getitem__, torch.device("cpu"))
    assert sorted(row for part in parts for row in part) == list(range(len(pairs)))
    # The fewest passes of padded ones, which nothing is gained by cutting further.
    few = budget.within([(2 * max(pair),) for pair in sorted(lengths, key=max)], tokens, 10**9)
    assert layout is RowLayout.PADDED or len(parts) <= len(few)
    for part in parts:
        assert collate([pairs[row] for row in part]).sequences.input_ids.numel() <= tokens


def test_packed_pairs_take_as_few_passes_as_there_may_be() -> None:
    """Also where some are shorter, which padded ones would be cut for."""
    pairs = pairs_of([(9, 1), (8, 9), (2, 1), (9, 9)] * 8)
    passes = {
        layout: len(
            PairCollator(PAD, layout).micro_batches(
                pairs, 10_000, lambda pair: pair, torch.device("cpu")
            )
        )
        for layout in (RowLayout.POSITIONS, RowLayout.BLOCK_MASK)
    }
    assert set(passes.values()) == {1}


def test_a_short_answer_fills_what_its_neighbour_leaves() -> None:
    batch = PairCollator(PAD, RowLayout.POSITIONS)(pairs_of([(6, 2), (4, 4), (6, 2)]))
    assert batch.sequences.input_ids.shape == (4, 6)
    batch = PairCollator(PAD, RowLayout.POSITIONS)(pairs_of([(5, 3), (5, 3)]))
    assert batch.sequences.input_ids.shape == (2, 8)
