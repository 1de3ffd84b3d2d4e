"""Tables of token arrays: what comes out is what went in, from memory and from files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_trainer.data.tokenize.table import Table
from rlhf_trainer.data.tokenize.tokenized import PreferencePair, Prompt, SFTExample


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def sft(*rows: tuple[Sequence[int], Sequence[bool]]) -> list[SFTExample]:
    return [SFTExample(ids(*tokens), np.array(mask, dtype=np.bool_)) for tokens, mask in rows]


SFT = sft(([5, 6, 7], [False, True, True]), ([8], [False]), ([2, 3], [False, True]))
PAIRS = [
    PreferencePair(ids(1, 2), ids(1, 3, 4), None),
    PreferencePair(ids(5), ids(6), 0.5),
    PreferencePair(ids(7), ids(8), 0.0),
]
PROMPTS = [Prompt(ids(1, 2), "好a"), Prompt(ids(3), "\ud800"), Prompt(ids(4), "")]
KINDS: list[list[Any]] = [SFT, PAIRS, PROMPTS]


def plain(row: Any) -> dict[str, Any]:
    return {
        name: (value.dtype.str, value.tolist()) if isinstance(value, np.ndarray) else value
        for name, value in vars(row).items()
    }


@pytest.mark.parametrize("rows", KINDS)
def test_rows_come_back_from_memory_and_from_files(tmp_path: Path, rows: list[Any]) -> None:
    made: Table[Any] = Table.of(rows)
    made.save(tmp_path)
    opened: Table[Any] = Table.open(tmp_path, made.kind)
    for table in (made, opened):
        assert [plain(row) for row in table] == [plain(row) for row in rows]
        assert plain(table[-1]) == plain(rows[-1])
        assert [plain(row) for row in table[1:]] == [plain(row) for row in rows[1:]]
        with pytest.raises(IndexError):
            table[len(rows)]
    assert (opened.digest(), opened.checksum()) == (made.digest(), made.checksum())


def test_files_are_mapped_and_never_written_to(tmp_path: Path) -> None:
    Table.of(SFT).save(tmp_path)
    opened: Table[SFTExample] = Table.open(tmp_path, "SFTExample")
    array: Any = opened[0].tokens
    while isinstance(array.base, np.ndarray):
        array = array.base
    assert isinstance(array, np.memmap)
    opened[0].tokens[0] = 99
    again: Table[SFTExample] = Table.open(tmp_path, "SFTExample")
    assert again[0].tokens.tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    "other",
    [
        sft(([5, 6, 9], [False, True, True]), *[([8], [False]), ([2, 3], [False, True])]),
        sft(([5, 6, 7], [False, False, True]), *[([8], [False]), ([2, 3], [False, True])]),
        sft(([5, 6], [False, True]), *[([7, 8], [True, False]), ([2, 3], [False, True])]),
        SFT[::-1],
        SFT[:2],
    ],
)
def test_other_tokens_masks_cuts_and_orders_have_another_digest(other: list[SFTExample]) -> None:
    assert Table.of(other).digest() != Table.of(SFT).digest()


def test_a_margin_counts_and_a_text_for_people_does_not() -> None:
    pairs = [PAIRS[0], PAIRS[1], PreferencePair(ids(7), ids(8), None)]
    assert Table.of(pairs).digest() != Table.of(PAIRS).digest()
    prompts = [Prompt(prompt.tokens, "x") for prompt in PROMPTS]
    assert Table.of(prompts).digest() == Table.of(PROMPTS).digest()
    assert Table.of(prompts).checksum() != Table.of(PROMPTS).checksum()


def test_the_digest_is_the_same_in_every_release() -> None:
    """Where this fails, running stages are refused their checkpoints."""
    golden = "sha256:f194bd7e6d88ea534231a373d70ccc1b0ce1609b2219e1512e4629c03f647aa6"
    assert Table.of(SFT).digest() == golden


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1), min_size=1))
def test_any_rows_come_back(rows: list[list[int]]) -> None:
    table = Table.of([Prompt(ids(*row), str(row)) for row in rows])
    assert [(row.tokens.tolist(), row.text) for row in table] == [(row, str(row)) for row in rows]
