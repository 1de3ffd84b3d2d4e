"""Micro-batches by a budget of tokens: every row once, and the least computed in vain."""

from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_trainer.data import budget
from rlhf_trainer.data.budget import micro_batches, within

ROWS = ["a", "bbbb", "cc", "dddd", "e"]
FEW = 1_000_000
"""So dear that there are as few passes as can be."""


@pytest.mark.parametrize(
    ("tokens", "pass_tokens", "expected"),
    [
        (6, FEW, ["a e cc", "bbbb", "dddd"]),
        (5, FEW, ["a e", "cc", "bbbb", "dddd"]),
        (20, FEW, ["a e cc bbbb dddd"]),
        (19, FEW, ["a e", "cc bbbb dddd"]),
        (20, 1, ["a e", "cc", "bbbb dddd"]),
        (7, 1, ["a e", "cc", "bbbb", "dddd"]),
        # One pass less pads 2 tokens more, another one 6.
        (20, 3, ["a e", "cc bbbb dddd"]),
        (3, 1, ["a e", "cc", "bbbb", "dddd"]),
    ],
)
def test_rows_of_like_length_share_what_the_longest_of_them_costs(
    monkeypatch: pytest.MonkeyPatch, tokens: int, pass_tokens: int, expected: list[str]
) -> None:
    monkeypatch.setitem(budget.PASS_TOKENS, "cpu", pass_tokens)
    cpu = torch.device("cpu")
    found = micro_batches(ROWS, tokens, len, cpu)
    assert [" ".join(part) for part in found] == expected
    assert micro_batches([], tokens, len, cpu) == []


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=7),
    st.integers(18, 60),
    st.integers(1, 20),
)
@settings(derandomize=True)
def test_no_other_cut_within_the_budget_costs_less(
    widths: list[tuple[int, int]], tokens: int, pass_tokens: int
) -> None:
    slices = within(widths, tokens, pass_tokens)
    assert [row for part in slices for row in widths[part]] == widths
    count = len(widths)
    allowed = []
    for number in range(count):
        for cuts in combinations(range(1, count), number):
            parts = [_padded(widths[a:b]) for a, b in pairwise((0, *cuts, count))]
            if max(parts) <= tokens:
                allowed.append(sum(parts) + pass_tokens * len(parts))
    padded = [_padded(widths[part]) for part in slices]
    assert max(padded) <= tokens
    assert sum(padded) + pass_tokens * len(padded) == min(allowed)


def _padded(rows: list[tuple[int, int]]) -> int:
    """Each part of a row is padded to the longest of its kind."""
    return len(rows) * (max(row[0] for row in rows) + max(row[1] for row in rows))
