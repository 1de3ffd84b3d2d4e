"""Which files of a folder hold the split that is asked for.

Called by `rows`. A file or subfolder names its split as those of the hub do: train.jsonl,
test-00000-of-00001.parquet, reviews_validation.json, train/0.parquet. Nothing is guessed: where
some files name a split and others do not, or none names the one that is asked for, that is an
error.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf_api.errors import InputError

DEFAULT = "train"
NAMES = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words that name a split, as `datasets` reads them."""


def files_of_split(
    folder: Path, is_data: Callable[[Path], bool], split: str, field: str
) -> list[Path]:
    """The files of a split, in the order of their names; none in a folder without data.

    Args:
        folder: what to look into, and into its subfolders that are named by a split.
        is_data: whether a file holds rows.
        split: `split` of the spec.
        field: the dataset's path in the spec, such as `spec.stages.sft.dataset`, for messages.

    Raises:
        InputError: no file is of that split, or it cannot be told which ones are.
    """
    files = sorted(path for path in folder.iterdir() if is_data(path))
    of_file = {path: _named(path.stem, split) for path in files}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if (name := _own_name(inner.name, split)) is not None:
            inside = sorted(path for path in inner.iterdir() if is_data(path))
            of_file |= dict.fromkeys(inside, name)
    names = sorted({name for name in of_file.values() if name is not None})
    wanted = NAMES.get(split, split)
    if not names and wanted == DEFAULT:
        return files
    unnamed = [path.name for path, name in of_file.items() if name is None]
    if names and unnamed:
        raise InputError(
            f"{field}.uri: {folder} holds files of the splits {', '.join(names)} and "
            f"{', '.join(unnamed[:3])}, which names none; name that file itself, or move it away"
        )
    if of_file and wanted not in names:
        raise InputError(
            f"{field}.split: {split}: the files in {folder} are of {_told(names)}; name one of "
            "them, or the file itself in uri"
        )
    return [path for path, name in of_file.items() if name == wanted]


def require_only_split(place: Path, split: str, field: str, own: str | None = None) -> None:
    """Refuse a split of what has only one.

    Args: as `files_of_split`, and
        place: a file or a saved dataset.
        own: its split's name, where it keeps one.

    Raises:
        InputError: another split than the default or its own is asked for.
    """
    if split not in (DEFAULT, own):
        raise InputError(
            f"{field}.split: {split}: {place} has only one split; leave split out, or name the "
            "file or folder of that split in uri"
        )


def require_no_subset(place: Path, subset: str | None, field: str) -> None:
    """Refuse a subset of files, which have none.

    Raises:
        InputError: one is asked for.
    """
    if subset is not None:
        raise InputError(
            f"{field}.subset: {subset}: {place} has no subsets, a dataset of the hub has; leave "
            "subset out and name the subset's file or folder in uri"
        )


def _named(stem: str, split: str) -> str | None:
    """The split that a file's name names; `split` itself may be any word."""
    words: Sequence[str] = re.split(r"[-._\s]+", stem)
    found = [name for word in words if (name := _own_name(word, split)) is not None]
    return found[0] if found else None


def _own_name(word: str, split: str) -> str | None:
    return split if word == split and split not in NAMES else NAMES.get(word.lower())


def _told(names: Sequence[str]) -> str:
    return f"the splits {', '.join(names)}" if names else "no split by name"
