"""What rows alone tell, before torch and the models are imported, which takes seconds on each rank.

Called by `launch` and `check_rows`. What needs a tokenizer is told by the ranks, which read
all rows once more.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import Dataset, PPOStage, StageConfig
from rlhf_trainer.data.parse import formats
from rlhf_trainer.data.parse.formats import PreferenceRow
from rlhf_trainer.data.parse.losses import identical_pairs
from rlhf_trainer.data.read.rows import Row, data_files, is_saved, read_rows
from rlhf_trainer.data.read.unreadable import input_errors
from rlhf_trainer.data.read.uris import Hub, locate

LOOK_BYTES = 32 << 20
"""Smaller datasets are read as a whole, in a second."""
LOOK_SECONDS = 2.0
"""How long rows of a larger one are looked at; the ranks read all of them. To read them all twice
would cost more than it saves, at each attempt, and take several times their size in memory."""

Parse = Callable[[Any, Dataset, str], Sequence[Any]]


@dataclass(frozen=True)
class StageDataset:
    """A dataset of a stage, its field in the spec, and how its rows are parsed."""

    dataset: Dataset
    field: str
    parse: Parse


def check_rows(config: StageConfig) -> None:
    """Read and parse the rows of the stage's datasets that lie in files.

    Raises:
        InputError: there is nothing at a URI that can be read.
        DataError: a row that cannot be used, or none at all.
    """
    for asked in datasets_of(config):
        count_rows(asked, config)


def datasets_of(config: StageConfig) -> Iterator[StageDataset]:
    """Each dataset of the stage."""
    spec, path = config.spec, f"spec.stages.{config.stage}"
    parse = _parse(config.stage, spec.seed)
    yield StageDataset(spec.dataset, f"{path}.dataset", parse)
    if spec.eval_dataset is not None:
        yield StageDataset(spec.eval_dataset, f"{path}.evalDataset", parse)
    if isinstance(spec, PPOStage) and spec.ptx_dataset is not None:
        yield StageDataset(spec.ptx_dataset, f"{path}.ptxDataset", formats.sft_rows)


@dataclass(frozen=True)
class Seen:
    """The rows of a dataset, and those of them that are pairs of one and the same response.

    Attributes:
        rows: those that were looked at.
        identical: pairs of one and the same response; 0 where `whole` is false.
        whole: whether there are no more.
    """

    rows: int
    identical: int = 0
    whole: bool = True


class _TimeIsUpError(Exception):
    """So many rows were looked at, and there may be more."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


def count_rows(asked: StageDataset, config: StageConfig) -> Seen | None:
    """Read and parse the rows of a dataset in files, the first ones where they are many.

    None for what is not looked into: a hub's, and what is large and cannot be read row by row. How
    long rows are only a tokenizer can say.

    Raises: as `check_rows`.
    """
    dataset, field = asked.dataset, asked.field
    place = locate(dataset.uri, config.claims, f"{field}.uri")
    if isinstance(place, Hub):
        return None
    with input_errors(f"{field}.uri"):
        is_large = _size(place) > LOOK_BYTES
    if is_large and is_saved(place):
        return None
    rows = read_rows(dataset, claims=config.claims, field=field)
    if is_large:
        # A list in a .json file has no first row before it is read whole.
        if any(path.suffix.lower() == ".json" for path in data_files(place, dataset, field)):
            return None
        rows = _for_a_while(rows)
    try:
        parsed = asked.parse(rows, dataset, field)
    except _TimeIsUpError as seen:
        return Seen(seen.rows, whole=False)
    pairs = [row for row in parsed if isinstance(row, PreferenceRow)]
    return Seen(len(parsed), identical_pairs(pairs, dataset, field) if pairs else 0)


def _parse(stage: StageName, seed: int) -> Parse:
    if stage is StageName.REWARD:
        return lambda rows, dataset, field: formats.preference_rows(rows, dataset, field, seed)[0]
    return formats.sft_rows if stage is StageName.SFT else formats.prompt_rows


def _for_a_while(rows: Iterable[Row]) -> Iterator[Row]:
    """The rows that can be read and parsed in `LOOK_SECONDS`, one at least.

    Raises:
        _TimeIsUpError: behind them. An end would say that there are no more, of which the parser
            might tell.
    """
    end = time.monotonic() + LOOK_SECONDS
    for number, row in enumerate(rows, 1):
        yield row
        if time.monotonic() >= end:
            raise _TimeIsUpError(number)


def _size(place: Path) -> int:
    """Bytes of the file, or of all files in the folder; 0 where there is nothing."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(path.stat().st_size for path in files if path.is_file())
