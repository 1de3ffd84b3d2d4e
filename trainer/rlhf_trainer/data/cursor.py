"""The order in which rows are seen: an endless stream of shuffled epochs.

Called by the stages. Every rank has the same cursor, takes the same global batch and its own slice
of it, so all have equal work and the order does not depend on how many there are.
"""

from typing import TypedDict

import numpy as np

from rlhf_api.errors import InputError


class CursorState(TypedDict):
    """What a checkpoint keeps of a cursor."""

    position: int
    """Rows taken since the start of training."""
    n_rows: int
    batch_size: int
    seed: int


class Cursor:
    """Indices of rows in global batches; where an epoch ends, a batch goes on into the next one."""

    def __init__(self, n_rows: int, batch_size: int, seed: int) -> None:
        """Start before the first row.

        Args:
            n_rows: rows of the dataset, at least 1.
            batch_size: rows of one global batch, at least 1; may exceed n_rows.
            seed: with the epoch's number it decides the epoch's order.
        """
        if n_rows < 1 or batch_size < 1:
            raise ValueError(f"n_rows {n_rows} and batch_size {batch_size} must be at least 1")
        self.n_rows = n_rows
        self.batch_size = batch_size
        self.seed = seed
        self._position = 0
        self._cached: tuple[int, list[int]] = (-1, [])

    @property
    def epoch(self) -> float:
        """Passes over the dataset so far, with their fraction."""
        return self._position / self.n_rows

    def next_batch(self) -> list[int]:
        """The next global batch; always `batch_size` indices."""
        batch: list[int] = []
        while len(batch) < self.batch_size:
            epoch, offset = divmod(self._position, self.n_rows)
            taken = self._order(epoch)[offset : offset + self.batch_size - len(batch)]
            batch += taken
            self._position += len(taken)
        return batch

    def state_dict(self) -> CursorState:
        """What `load_state_dict` needs to go on with the next batch."""
        return CursorState(
            position=self._position,
            n_rows=self.n_rows,
            batch_size=self.batch_size,
            seed=self.seed,
        )

    def load_state_dict(self, state: CursorState) -> None:
        """Go on where `state` was taken.

        Raises:
            InputError: it was taken over other rows, so that the order would be another one.
        """
        mine = self.state_dict()
        for name in ("n_rows", "batch_size", "seed"):
            if state[name] != mine[name]:
                raise InputError(
                    f"checkpoint: data cursor has {name} {state[name]}, this run has "
                    f"{mine[name]}; restore the data it was made with, or start another job"
                )
        self._position = state["position"]

    def _order(self, epoch: int) -> list[int]:
        if self._cached[0] != epoch:
            key = np.array([self.seed, epoch], dtype=np.uint64)
            order = np.random.Generator(np.random.Philox(key=key)).permutation(self.n_rows)
            self._cached = (epoch, order.tolist())
        return self._cached[1]


def rank_slice(batch: list[int], rank: int, world_size: int) -> list[int]:
    """The part of a global batch that one rank works on; equal in size where world_size divides."""
    return batch[rank::world_size]


def total_steps(n_rows: int, batch_size: int, epochs: int) -> int:
    """Steps after which every row was seen `epochs` times: ⌈epochs · n_rows / batch_size⌉.

    The last batch is full, so that up to batch_size - 1 rows are seen once more.
    """
    return -(-epochs * n_rows // batch_size)
