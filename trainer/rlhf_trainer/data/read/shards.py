"""Whether the files of a folder or repository are all that it means to hold.

Called by `rows` and `hub`. A shard that is missing, a link that leads nowhere, a subfolder that is
not looked into and data in a format that is not read would each be rows that nobody misses. So
every file has to be read, of another split, or known to hold no rows. What jobs leave in a storage
below it is none of the data.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path, PurePath

from rlhf_api.errors import InputError
from rlhf_api.names import FileName, StageName, WorkdirFile
from rlhf_trainer.data.read.splits import is_of_another_split, split_folders

DESCRIPTIONS = frozenset(
    ("config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json")
)
"""What `datasets` and the hub say about their data, beside it."""
_OF_SYSTEMS = frozenset(("lost+found", "__MACOSX", "__pycache__"))
_WITHOUT_ROWS = re.compile(
    r"(readme|licen[cs]e|copying|copyright|notice|changelog|citation|authors|contributing|terms|"
    r"requirements|makefile|dockerfile|checksums|md5sums|sha\d+sums)([-_ ][\w -]*)?(\.txt)?"
    r"|_success|_metadata|_common_metadata|_(committed|started)_\w+|thumbs\.db|desktop\.ini"
    r"|.*\.(md|rst|pdf|bib|cff|ya?ml|toml|cfg|py|ipynb|sh|html?|log|png|jpe?g|gif|svg|webp|md5|"
    r"sha\d+|lock)",
    re.IGNORECASE,
)
"""Names of documentation, code, settings, logs and checksums, and of what Spark, Databricks and
Windows keep in a folder."""
_ATTEMPT = re.compile(r"attempt-\d+")
_OF_ATTEMPTS = (FileName.EVENTS, FileName.CHECKPOINTS, FileName.ARTIFACT)
_SHARD = re.compile(r"(.*[-._]|)(\d+)([-._]of[-._])(\d+)\D.*")


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to a system or a tool and not to the data."""
    return name.startswith(".") or name in _OF_SYSTEMS


def require_whole(
    folder: Path,
    files: Sequence[Path],
    is_data: Callable[[Path], bool],
    suffixes: tuple[str, ...],
    split: str,
    field: str,
) -> None:
    """Refuse files of a folder that are not all of the split's.

    Args:
        folder: that was asked for.
        files: those of it that are read.
        is_data: whether a file holds rows.
        suffixes: how the names of files end that can be read, for the message.
        split: of the spec.
        field: the dataset's path in the spec, for messages.

    Raises:
        InputError: a link leads nowhere, a shard is missing, or a file is not read that may hold
            rows.
    """
    read = {path.resolve() for path in files}
    # Of the data in these it has been told already whether it is of the split.
    looked_into = {folder, *split_folders(folder, split)}
    for path in _visible_files(folder):
        if path.resolve() in read or path.name in DESCRIPTIONS:
            continue
        if _WITHOUT_ROWS.fullmatch(path.name) or (path.parent in looked_into and is_data(path)):
            continue
        if not is_of_another_split(path.relative_to(folder), split):
            raise InputError(f"{field}.uri: {path} {_why_unread(path, is_data, suffixes)}")
    _require_all_shards(files, field)


def require_whole_repository(
    hub: str, names: Collection[str], read: Collection[str], split: str, field: str
) -> None:
    """Refuse a repository of which `datasets` would pass over files that may hold rows.

    It reads the files of the first pattern that matches any name, and of these the most frequent
    format, and says nothing of the others.

    Args:
        hub: the repository, for the message.
        names: its files, relative to it.
        read: those that are read for any split.
        split: of the spec, which may name a part of one or several: `train[:10%]`, `train+test`.
        field: the dataset's path in the spec, for messages.

    Raises:
        InputError: a file is not read, of no other split, and not known to hold no rows.
    """
    asked = [part.partition("[")[0].strip() for part in split.split("+")]
    for path in map(PurePath, sorted(set(names) - set(read))):
        is_beside = any(map(is_hidden, path.parts)) or path.name in DESCRIPTIONS
        if is_beside or _WITHOUT_ROWS.fullmatch(path.name):
            continue
        if not all(is_of_another_split(Path(path), name) for name in asked):
            raise InputError(
                f"{field}.uri: {hub}: {path} is not read, as its name or its format is another "
                "than that of the files that are, so that its rows would be missing; download the "
                "repository and name a file or folder of it by file://, or let its README.md name "
                "the files by configs"
            )


def _visible_files(folder: Path) -> Iterator[Path]:
    """The files at any depth and links that lead nowhere, but for what is a job's; a loop of links
    is gone through once."""
    seen: set[Path] = set()
    for root, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        place = Path(root)
        if place.resolve() in seen:
            folders.clear()
            continue
        seen.add(place.resolve())
        folders[:] = sorted(
            name for name in folders if not (is_hidden(name) or _is_attempt(place / name))
        )
        of_run = (WorkdirFile.LOCK, WorkdirFile.SUMMARY) if WorkdirFile.STATUS in names else ()
        paths = [place / name for name in sorted(names) if not (is_hidden(name) or name in of_run)]
        yield from (path for path in paths if path.is_file() or path.is_symlink())


def _is_attempt(folder: Path) -> bool:
    """Whether an attempt of a stage writes to it, as this one may while its data are looked at."""
    return (
        _ATTEMPT.fullmatch(folder.name) is not None
        and folder.parent.name in list(StageName)
        and any((folder / name).exists() for name in _OF_ATTEMPTS)
    )


def _raise(error: OSError) -> None:
    raise error


def _why_unread(path: Path, is_data: Callable[[Path], bool], suffixes: tuple[str, ...]) -> str:
    if not path.exists():
        return (
            f"is a link to {path.readlink()}, which is not there; restore that file, or remove the "
            "link"
        )
    if is_data(path):
        return (
            "lies in a subfolder that is not looked into, as its name is not that of a split, so "
            "that its rows would be missing; name that subfolder in uri, move it away, or name the "
            "file in uri"
        )
    return (
        "is in a format that is not read, so that its rows would be missing; convert it to one of "
        f"{', '.join(suffixes)}, move it away, or name a file in uri"
    )


def _require_all_shards(files: Sequence[Path], field: str) -> None:
    """Refuse numbered files of which one is missing; the first has number 0 or 1."""
    series: dict[tuple[Path, str, str, str], dict[int, str]] = defaultdict(dict)
    for path in files:
        if (match := _SHARD.fullmatch(path.name)) is not None:
            before, number, of, total = match.groups()
            # A hash behind the number differs from shard to shard.
            key = (path.parent, before, of + total, path.suffix)
            series[key][int(number)] = number
    for (folder, before, of_total, suffix), numbers in series.items():
        total = int(re.sub(r"\D", "", of_total))
        first = 1 if total in numbers and 0 not in numbers else 0
        width = len(next(iter(numbers.values())))
        missing = next((n for n in range(first, first + total) if n not in numbers), None)
        if missing is not None:
            name = f"{before}{missing:0{width}d}{of_total}{suffix}"
            raise InputError(
                f"{field}.uri: {folder} lacks {name} and holds {len(numbers)} of {total} such "
                "files; add what is missing, or name one file in uri"
            )
