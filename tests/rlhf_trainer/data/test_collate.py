from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from right_padding import pad_right

from rlhf_trainer.data.collate import Padded, pad_left

PAD = 7
SEQUENCES = [[1, PAD, 3], [4], np.array([5, PAD], dtype=np.int32)]
"""Real tokens with the id of the padding, at a sequence's end too."""


def test_right() -> None:
    found = pad_right(SEQUENCES, PAD)

    assert found.input_ids.tolist() == [[1, 7, 3], [4, 7, 7], [5, 7, 7]]
    assert found.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert found.position_ids.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 1]]
    assert found.lengths.tolist() == [3, 1, 2]


def test_left() -> None:
    found = pad_left(SEQUENCES, PAD)

    assert found.input_ids.tolist() == [[1, 7, 3], [7, 7, 4], [7, 5, 7]]
    assert found.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 1]]
    assert found.position_ids.tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    assert found.lengths.tolist() == [3, 1, 2]


@pytest.mark.parametrize("pad", [pad_right, pad_left])
def test_a_width_may_be_asked_for(pad: Callable[..., Padded]) -> None:
    assert pad(SEQUENCES, PAD, width=5).input_ids.shape == (3, 5)
    with pytest.raises(ValueError, match="3 tokens does not fit in width 2"):
        pad(SEQUENCES, PAD, width=2)


@pytest.mark.parametrize("pad", [pad_right, pad_left])
@pytest.mark.parametrize("sequences", [[], [[1], []]])
def test_nothing_is_refused(pad: Callable[..., Padded], sequences: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="none empty"):
        pad(sequences, PAD)


@given(
    st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=5),
    st.integers(0, 9),
)
def test_the_mask_selects_each_sequence_whatever_its_ids_are(
    sequences: list[list[int]], pad_id: int
) -> None:
    for pad in (pad_right, pad_left):
        found = pad(sequences, pad_id)
        mask = found.attention_mask.bool()
        assert [row[kept].tolist() for row, kept in zip(found.input_ids, mask, strict=True)] == (
            sequences
        )
        assert (found.input_ids[~mask] == pad_id).all()
        assert all(
            torch.equal(row[kept], torch.arange(int(kept.sum())))
            for row, kept in zip(found.position_ids, mask, strict=True)
        )
