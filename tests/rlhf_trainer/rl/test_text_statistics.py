"""Distinct-n on sets small enough to count."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_trainer.rl.text_statistics import distinct_n


def test_by_hand() -> None:
    # Bigrams: 12 23 31 12 | 12 — five of them, three different; none spans the two answers.
    sequences = [[1, 2, 3, 1, 2], [1, 2]]
    assert distinct_n(sequences, 2) == 3 / 5
    # Tokens: seven, three different.
    assert distinct_n(sequences, 1) == 3 / 7


def test_characters_count_as_tokens() -> None:
    assert distinct_n(["好好好好"], 2) == 1 / 3


def test_collapse_and_variety() -> None:
    assert distinct_n([[1, 2, 3, 4]] * 10, 2) == 1 / 10
    assert distinct_n([[i, i + 100] for i in range(10)], 2) == 1.0


def test_too_short_for_an_n_gram() -> None:
    assert distinct_n([[], [1]], 2) == 0.0
    assert distinct_n([], 1) == 0.0


@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=5), st.integers(1, 3))
@settings(derandomize=True)
def test_equals_a_loop(sequences: list[list[int]], n: int) -> None:
    seen: list[tuple[int, ...]] = []
    total = 0
    for sequence in sequences:
        window: tuple[int, ...] = ()
        for token in sequence:
            window = (*window, token)[-n:]
            if len(window) == n:
                total += 1
                if window not in seen:
                    seen.append(window)
    assert distinct_n(sequences, n) == (len(seen) / total if total else 0.0)


def test_n_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        distinct_n([[1]], 0)
