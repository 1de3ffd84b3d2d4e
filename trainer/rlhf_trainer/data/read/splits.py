"""Which files of a folder hold the split that is asked for.

Called by `rows`. A file or subfolder names its split as those of the hub do: train.jsonl,
test-00000-of-00001.parquet, reviews_validation.json, train/0.parquet. A whole name less its shard
numbers, such as train_prefs, is a split too. Nothing is guessed: where some files name a split and
others do not, none names the one that is asked for, or several names are of it, that is an error.
"""

import re
from collections.abc import Callable, Mapping, Sequence
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
    "trainset": "train",
    "devset": "validation",
    "valset": "validation",
    "testset": "test",
    "evalset": "test",
    "tests": "test",
    "evals": "test",
    "heldout": "test",
    "holdout": "test",
}
"""Words that name a split: those of `datasets`, those with set behind them, and those of rows that
are kept out of training."""
_KEPT_OUT = re.compile(r"(?<![a-z])(held|hold)[-_. ]out(?![a-z])", re.IGNORECASE)
"""The last of them in two words."""
_BETWEEN = r"[-._\s]+"
"""What stands between the words of a name; digits do as well."""
_SHARD = re.compile(r"[-._\s]\d+([-._]of[-._]\d+(-[0-9a-f]{16})?)?$")
"""Behind a split's name, as `datasets` numbers files; older files end by a hash as well."""


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
    whole, of_file = _split_names(folder, is_data, split)
    exact = [path for path, name in whole.items() if split in (name, path.stem)]
    if exact and split not in NAMES:
        return exact
    wanted = NAMES.get(split, split)
    names = sorted({whole[path] for path, name in of_file.items() if name is not None})
    if not names and wanted == DEFAULT:
        return list(of_file)
    unnamed = [path.name for path, name in of_file.items() if name is None]
    if names and unnamed:
        raise InputError(
            f"{field}.uri: {folder} holds files of the splits {', '.join(names)} and "
            f"{', '.join(unnamed[:3])}, which names none; name that file itself, or move it away"
        )
    files = [path for path, name in of_file.items() if name == wanted]
    if of_file and not files:
        raise InputError(
            f"{field}.split: {split}: the files in {folder} are of {_listed(names)}; name one of "
            "them, or the file itself in uri"
        )
    return exact or _of_one_name(files, whole, folder, f"{field}.split: {split}")


def _less_shard(stem: str) -> str:
    """A file's name less its number: that of a shard, or digits behind a split's word."""
    name = _SHARD.sub("", stem)
    bare = name.rstrip("0123456789")
    return bare if re.split(_BETWEEN, bare)[-1].lower() in NAMES else name


def _split_names(
    folder: Path, is_data: Callable[[Path], bool], split: str
) -> tuple[dict[Path, str], dict[Path, str | None]]:
    """Of each file its whole name less shard numbers, or its subfolder's; and the split's word."""
    files = sorted(path for path in folder.iterdir() if is_data(path))
    whole = {path: _less_shard(path.stem) for path in files}
    of_file = {path: _named(name, split) for path, name in whole.items()}
    for inner, word in split_folders(folder, split).items():
        inside = sorted(path for path in inner.iterdir() if is_data(path))
        of_file |= dict.fromkeys(inside, word)
        whole |= dict.fromkeys(inside, inner.name)
    return whole, of_file


def split_folders(folder: Path, split: str) -> dict[Path, str]:
    """The subfolders whose name is that of a split, and its word."""
    named = {
        inner: _own_name(inner.name, split) or NAMES.get(_joined(_less_shard(inner.name)).lower())
        for inner in sorted(path for path in folder.iterdir() if path.is_dir())
    }
    return {inner: word for inner, word in named.items() if word is not None}


def _of_one_name(
    files: list[Path], whole: Mapping[Path, str], folder: Path, asked: str
) -> list[Path]:
    """`files`, unless their names say that they are of several splits, such as train_prefs and
    train_sft.
    """
    names = sorted({whole[path] for path in files})
    if len({name.casefold() for name in names}) > 1:
        raise InputError(
            f"{asked}: {folder} holds {' and '.join(names)}, which may all be of it; name one of "
            "them in split, or the file itself in uri"
        )
    return files


def is_of_another_split(path: Path, split: str) -> bool:
    """Whether a path says that it is of another split than the one that is asked for.

    Args:
        path: relative to the folder of the dataset; its first part that names a split decides.
        split: `split` of the spec. Beside one by a name of its own all others are another one.
    """
    parts = (*path.parent.parts, path.stem)
    names = [_named(part, split) for part in parts]
    if split not in NAMES:
        return not any(split in (part, _less_shard(part), *names) for part in parts)
    name = next((name for name in names if name is not None), None)
    return name is not None and name != NAMES[split]


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
    stem = _joined(stem)
    words: Sequence[str] = [*re.split(_BETWEEN, stem), *re.split(r"[-._\s\d]+", stem)]
    names = [name for word in words if (name := _own_name(word, split)) is not None]
    return names[0] if names else None


def _joined(name: str) -> str:
    return _KEPT_OUT.sub("heldout", name)


def _own_name(word: str, split: str) -> str | None:
    return split if word == split and split not in NAMES else NAMES.get(word.lower())


def _listed(names: Sequence[str]) -> str:
    return f"the splits {', '.join(names)}" if names else "no split by name"
