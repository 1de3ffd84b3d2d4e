"""Rows that a stage reads, on every rank.

Called by the stages.
"""

from collections.abc import Callable
from typing import TypeVar

from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.run.distributed import Ranks, on_first_rank_of_node

T = TypeVar("T")


def read_data(dataset: Dataset, ranks: Ranks, load: Callable[[], T]) -> T:
    """What `load` reads from `dataset`, on every rank."""
    if dataset.uri.startswith("hf://"):

        def fill_cache() -> None:
            load()

        on_first_rank_of_node(ranks, fill_cache)
    return load()
