"""Rows that the `datasets` library reads: hub repositories and folders of `save_to_disk`.

Called by `rows` only. With HF_HUB_OFFLINE=1 a dataset is taken from the cache: the repository's
files, as `hf download --repo-type dataset` leaves them, or the tables that `datasets` made of them.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import huggingface_hub
from datasets.packaged_modules.cache.cache import Cache  # type: ignore[import-untyped]
from huggingface_hub.errors import LocalEntryNotFoundError

from rlhf_api.errors import DataError, InputError
from rlhf_trainer.data.read.shards import require_whole_repository
from rlhf_trainer.data.read.splits import require_only_split
from rlhf_trainer.data.read.tables import BATCH, TableBatch
from rlhf_trainer.data.read.uris import Hub
from rlhf_trainer.errors import ServiceUnavailable

_CARD = "README.md"


def hub_rows(hub: Hub, subset: str | None, split: str, field: str) -> Iterator[Mapping[str, Any]]:
    """Rows of one split of a hub dataset.

    Raises:
        InputError: not cached and offline, no such dataset, revision, subset or split, or files of
            it would not be read.
        ServiceUnavailable: the hub does not answer.
        DataError: one of its files is not what its name says.
    """
    try:
        is_offline = huggingface_hub.is_offline_mode()
        rows = _cached_files(hub, subset, split, field) if is_offline else None
        if rows is None:
            rows = _loaded(hub, subset, split, field)
    except (ConnectionError, TimeoutError) as error:
        if huggingface_hub.is_offline_mode():
            raise InputError(
                f"{field}.uri: {hub} is not in the cache and HF_HUB_OFFLINE is set: "
                f"{_one_line(error)}; fill the cache, or unset it"
            ) from error
        raise ServiceUnavailable(
            f"{field}.uri: {hub} cannot be reached: {_one_line(error)}; try again later"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"{field}.uri: {hub} (subset {subset or 'default'}, split {split}) cannot be loaded: "
            f"{_one_line(error)}; correct the names, or fill the cache where there is no network"
        ) from error
    except datasets.exceptions.DatasetGenerationError as error:
        raise DataError(
            f"{hub}: a file of it cannot be read: {_one_line(error.__cause__ or error)}; correct it"
        ) from error
    return _rows_of(rows, str(hub))


def saved_rows(folder: Path, split: str, field: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a folder that `save_to_disk` wrote, of one split if it holds several.

    Raises:
        InputError: the folder cannot be read or has no such split.
    """
    try:
        dataset = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
        # Its own files are taken as they are, whatever stands in them.
        raise InputError(
            f"{field}.uri: {folder}: cannot be loaded: {_one_line(error)}; save the dataset anew"
        ) from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(
                f"{field}.split: {split}: {folder} has the splits {', '.join(sorted(dataset))}; "
                "name one of them"
            )
        dataset = dataset[split]
    else:
        require_only_split(folder, split, field, str(dataset.split) if dataset.split else None)
    return _rows_of(dataset, str(folder))


def _rows_of(dataset: Any, file: str) -> Iterator[Mapping[str, Any]]:
    columns = {name: dataset.select_columns(name) for name in dataset.column_names}
    for before in range(0, len(dataset), BATCH):

        def read(name: str, start: int, end: int, before: int = before) -> list[Any]:
            values: list[Any] = columns[name][before + start : before + end][name]
            return values

        count = min(BATCH, len(dataset) - before)
        yield from TableBatch(list(columns), count, read, file=file, before=before).rows()


def _cached_files(hub: Hub, subset: str | None, split: str, field: str) -> Any:
    """The split from the repository's cached files; None where they are not there."""
    try:
        folder = Path(
            huggingface_hub.snapshot_download(
                hub.name, repo_type="dataset", revision=hub.revision, local_files_only=True
            )
        )
        builder = datasets.load_dataset_builder(str(folder), name=subset)
        card = folder / _CARD
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        if not (card.exists() and _names_files(huggingface_hub.metadata_load(card))):
            read = _read_files(builder, f"{folder}/")
            require_whole_repository(str(hub), names, read, split, field)
        return datasets.load_dataset(str(folder), name=subset, split=split)
    except (LocalEntryNotFoundError, datasets.exceptions.DataFilesNotFoundError):
        return None


def _loaded(hub: Hub, subset: str | None, split: str, field: str) -> Any:
    """The split from the hub, or from the tables in the cache.

    Without a word the library takes whatever revision lies there when it does not reach the one
    that it was asked for.
    """
    builder = datasets.load_dataset_builder(hub.name, name=subset, revision=hub.revision)
    if isinstance(builder, Cache):
        if hub.revision not in (None, builder.hash):
            raise FileNotFoundError(f"the cache's newest tables are of revision {builder.hash}")
    else:
        info = huggingface_hub.dataset_info(hub.name, revision=hub.revision)
        if not _names_files(info.card_data):
            read = _read_files(builder, f"hf://datasets/{hub.name}@{info.sha}/")
            names = [each.rfilename for each in info.siblings or ()]
            require_whole_repository(str(hub), names, read, split, field)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _names_files(card: Any) -> bool:
    """Whether the repository itself says which of its files are its data."""
    return bool((card or {}).get("configs"))


def _read_files(builder: Any, root: str) -> Collection[str]:
    """The files that are read for any split, relative to `root`."""
    files = builder.config.data_files or {}
    return {str(path).removeprefix(root) for paths in files.values() for path in paths}


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
