"""How many rows are decoded together."""

import pytest

from rlhf_trainer.generation.waves import bucket, waves


@pytest.mark.parametrize(
    ("rows", "expected"),
    [(1, 1), (7, 7), (16, 16), (17, 18), (31, 32), (33, 36), (64, 64), (65, 72), (250, 256)],
)
def test_sizes_by_hand(rows: int, expected: int) -> None:
    assert bucket(rows) == expected


def test_sizes_hold_all_rows_and_few_besides() -> None:
    for rows in range(1, 2000):
        assert rows <= bucket(rows) <= rows * 9 / 8
        assert bucket(bucket(rows)) == bucket(rows)
    assert len({bucket(rows) for rows in range(1, 2049)}) == 16 + 7 * 8


@pytest.mark.parametrize(
    ("tokens", "at_least", "expected"),
    [
        pytest.param(10**6, 1, [[1, 3, 0, 2]], id="all at once, the shortest first"),
        pytest.param(0, 3, [[1, 3, 0], [2]], id="at least so many"),
        # 3 + 4, 2 + 4 and so on; the longest of a wave counts for all.
        pytest.param(14, 1, [[1, 3], [0, 2]], id="as many as there is room for"),
        pytest.param(13, 1, [[1, 3], [0], [2]], id="one row less"),
        pytest.param(1, 1, [[1], [3], [0], [2]], id="no room for one"),
    ],
)
def test_waves_by_hand(tokens: int, at_least: int, expected: list[list[int]]) -> None:
    def room(width: int) -> int:
        return tokens // width

    assert waves([3, 1, 3, 2], 4, room=room, at_least=at_least) == expected
