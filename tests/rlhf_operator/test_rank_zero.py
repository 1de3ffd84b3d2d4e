"""The page that tests play for rank 0."""

import random

import pytest
import rank_zero
from rank_zero import RankZero


def test_two_pages_never_share_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where the second one would take the first one's, as another run of the tests."""
    monkeypatch.setattr(rank_zero, "random", random.Random(1))
    with RankZero(1) as first:
        monkeypatch.setattr(rank_zero, "random", random.Random(1))
        with RankZero(1) as second:
            assert first.address != second.address
