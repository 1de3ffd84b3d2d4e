"""Whether the files of a folder are all that it means to hold.

Called by `rows`. A shard that is missing, a link that leads nowhere and data in a format that is
not read would each be rows that nobody misses.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rlhf_api.errors import InputError
from rlhf_trainer.data.read.splits import names_another_split

OTHER_FORMATS = (
    ".jsonl.gz",
    ".json.gz",
    ".jsonl.zst",
    ".json.zst",
    ".jsonl.bz2",
    ".jsonl.xz",
    ".csv",
    ".csv.gz",
    ".tsv",
    ".arrow",
)
"""Rows as other programs write them."""
_SHARD = re.compile(r"(.*[-._]|)(\d+)([-._]of[-._])(\d+)\D.*")


def require_whole(
    folder: Path, files: Sequence[Path], suffixes: tuple[str, ...], split: str, field: str
) -> None:
    """Refuse files of a folder that are not all of the split's.

    Args:
        folder: that was asked for.
        files: those of it that are read.
        suffixes: how the names of files end that can be read.
        split: of the spec.
        field: the dataset's path in the spec, for messages.

    Raises:
        InputError: a link leads nowhere, a shard is missing, or rows stand in another format.
    """
    for inside in sorted({folder, *(path.parent for path in files)}):
        for path in sorted(inside.iterdir()):
            if path.name.startswith(".") or names_another_split(path.name.split(".")[0], split):
                continue
            if path.suffix in suffixes and path.is_symlink() and not path.exists():
                raise InputError(
                    f"{field}.uri: {path} is a link to {path.readlink()}, which is not there; "
                    "restore that file, or remove the link"
                )
            if path.name.endswith(OTHER_FORMATS) and path.is_file():
                raise InputError(
                    f"{field}.uri: {path} is in a format that is not read, so that its rows would "
                    f"be missing; convert it to one of {', '.join(suffixes)}, move it away, or "
                    "name a file in uri"
                )
    _require_all_shards(files, field)


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
