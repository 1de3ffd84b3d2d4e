"""What rows alone tell, before torch and the models are imported, which takes seconds on each rank.

Called by `launch`. What needs a tokenizer is told by the ranks, which read all rows once more.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import Dataset, PPOStage, StageConfig
from rlhf_trainer.data.parse import formats
from rlhf_trainer.data.read.rows import read_rows
from rlhf_trainer.data.read.uris import Hub, locate

LOOK_BYTES = 32 << 20
"""Larger datasets are left to the ranks: to read them twice would cost more than it saves."""

Parse = Callable[[Any, Dataset, str], object]


def check_rows(config: StageConfig) -> None:
    """Read and parse every row of the stage's datasets that lie in small files.

    Raises:
        InputError: there is nothing at a URI that can be read.
        DataError: a row that cannot be used, or none at all.
    """
    for dataset, name, parse in _datasets(config):
        field = f"spec.stages.{config.stage}.{name}"
        place = locate(dataset.uri, config.claims, f"{field}.uri")
        if isinstance(place, Hub) or _size(place) > LOOK_BYTES:
            continue
        parse(read_rows(dataset, claims=config.claims, field=field), dataset, field)


def _datasets(config: StageConfig) -> Iterator[tuple[Dataset, str, Parse]]:
    """Each dataset of the stage, its field, and how its rows are parsed."""
    spec = config.spec
    parse = _parse(config.stage, spec.seed)
    yield spec.dataset, "dataset", parse
    if spec.eval_dataset is not None:
        yield spec.eval_dataset, "evalDataset", parse
    if isinstance(spec, PPOStage) and spec.ptx_dataset is not None:
        yield spec.ptx_dataset, "ptxDataset", formats.sft_rows


def _parse(stage: StageName, seed: int) -> Parse:
    if stage is StageName.REWARD:
        return lambda rows, dataset, field: formats.preference_rows(rows, dataset, field, seed)
    return formats.sft_rows if stage is StageName.SFT else formats.prompt_rows


def _size(place: Path) -> int:
    """Bytes of the file, or of all files in the folder; 0 where there is nothing."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(path.stat().st_size for path in files if path.is_file())
