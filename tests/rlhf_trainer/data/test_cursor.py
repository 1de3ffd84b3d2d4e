import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_api.errors import InputError
from rlhf_trainer.data.cursor import Cursor, rank_slice, total_steps

SIZES = st.integers(1, 40)


def _take(cursor: Cursor, batches: int) -> list[list[int]]:
    return [cursor.next_batch() for _ in range(batches)]


@given(SIZES, SIZES, st.integers(0, 2**31 - 1), st.integers(1, 4))
def test_each_epoch_is_every_row_once(n: int, batch: int, seed: int, epochs: int) -> None:
    cursor = Cursor(n, batch, seed)
    steps = total_steps(n, batch, epochs)

    stream = [row for rows in _take(cursor, steps) for row in rows]

    assert (steps - 1) * batch < epochs * n <= steps * batch == len(stream)
    for epoch in range(epochs):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))
    assert cursor.epoch == steps * batch / n


@given(SIZES, SIZES, st.integers(0, 99), st.integers(0, 20), st.integers(1, 20))
def test_a_resumed_stream_is_the_stream(
    n: int, batch: int, seed: int, before: int, after: int
) -> None:
    whole = Cursor(n, batch, seed)
    _take(whole, before)
    state = json.loads(json.dumps(whole.state_dict()))

    resumed = Cursor(n, batch, seed)
    resumed.next_batch()
    resumed.load_state_dict(state)

    assert resumed.epoch == whole.epoch
    assert _take(resumed, after) == _take(whole, after)


@pytest.mark.parametrize("before", [2, 4])
def test_resuming_at_an_epoch_s_end_starts_the_next_one(before: int) -> None:
    whole = Cursor(10, 5, seed=3)
    stream = _take(whole, 8)
    again = Cursor(10, 5, seed=3)
    _take(again, before)
    assert again.epoch == before / 2

    resumed = Cursor(10, 5, seed=3)
    resumed.load_state_dict(again.state_dict())

    assert _take(resumed, 8 - before) == stream[before:]


def test_orders_differ_by_epoch_and_by_seed() -> None:
    stream = [_take(Cursor(50, 50, seed), 3) for seed in (0, 1)]

    orders = [tuple(batch) for batches in stream for batch in batches]

    assert len(set(orders)) == 6
    assert tuple(range(50)) not in orders


def test_the_order_is_pinned_since_checkpoints_outlive_releases() -> None:
    assert Cursor(8, 8, seed=42).next_batch() == [7, 0, 4, 2, 1, 3, 5, 6]


def test_a_batch_larger_than_the_dataset_repeats_it() -> None:
    batch = Cursor(3, 10, seed=0).next_batch()

    assert len(batch) == 10
    assert sorted(Counter(batch).values()) == [3, 3, 4]


@given(st.integers(1, 6), st.integers(1, 8))
def test_ranks_share_a_batch_evenly(world: int, share: int) -> None:
    batch = list(range(100, 100 + world * share))

    parts = [rank_slice(batch, rank, world) for rank in range(world)]

    assert {len(part) for part in parts} == {share}
    assert sorted(row for part in parts for row in part) == batch


@pytest.mark.parametrize(
    ("n", "batch", "epochs", "steps"),
    [(10, 5, 1, 2), (10, 4, 1, 3), (10, 4, 2, 5), (3, 10, 1, 1), (3, 10, 4, 2), (1, 1, 7, 7)],
)
def test_total_steps(n: int, batch: int, epochs: int, steps: int) -> None:
    assert total_steps(n, batch, epochs) == steps


@pytest.mark.parametrize(
    ("other", "name"), [((11, 4, 7), "n_rows"), ((10, 5, 7), "batch_size"), ((10, 4, 8), "seed")]
)
def test_the_state_of_another_stream_is_refused(other: tuple[int, int, int], name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} \d+, this run has \d+; restore"):
        Cursor(10, 4, 7).load_state_dict(Cursor(*other).state_dict())


@pytest.mark.parametrize(("n", "batch"), [(0, 1), (1, 0), (-1, 1)])
def test_an_empty_stream_is_refused(n: int, batch: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        Cursor(n, batch, 0)
