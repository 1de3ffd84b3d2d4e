"""Rows of JSONL, JSON and Parquet files, of saved `datasets` folders and of the hub, as they stand.

Called by `loading`. Says where a row came from, and nothing about what it means. A file is read as
UTF-8, with or without BOM; lines end by LF or CRLF; blank lines are skipped but counted in line
numbers.
"""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

from rlhf_api.errors import DataError, InputError
from rlhf_api.v1alpha1 import Dataset
from rlhf_trainer.data.read.pointers import REMEDY, is_pointer
from rlhf_trainer.data.read.shards import DESCRIPTIONS, is_hidden, require_whole
from rlhf_trainer.data.read.splits import files_of_split, require_no_subset, require_only_split
from rlhf_trainer.data.read.strict_json import DuplicateKeyError, loads
from rlhf_trainer.data.read.tables import BATCH, TableBatch
from rlhf_trainer.data.read.unreadable import input_errors
from rlhf_trainer.data.read.uris import Hub, locate

SUFFIXES = (".jsonl", ".json", ".parquet")
CLIP = 120
_NAMED = 5
"""How many subfolders a message names."""


@dataclass(frozen=True)
class Source:
    """Where a row stands."""

    file: str
    """Path, or the hub's URI."""
    line: int
    """Line of a text file, number of the row elsewhere; from 1."""
    unit: str = "line"
    """What `line` counts: line or row."""

    def __str__(self) -> str:
        return f"{self.file}: {self.unit} {self.line}"


@dataclass(frozen=True)
class Row:
    """One object of a dataset."""

    source: Source
    values: Mapping[str, Any]


def read_rows(dataset: Dataset, *, claims: Mapping[str, str], field: str) -> Iterator[Row]:
    """The first `maxRows` rows of a dataset's split, in the order of its files' names.

    Args:
        dataset: the spec.
        claims: where each claim of a pvc:// URI is mounted.
        field: the dataset's path in the spec, such as `spec.stages.sft.dataset`, for messages.

    Raises:
        InputError: there is nothing at the URI that can be read; names field, value and remedy.
        DataError: a line that is no JSON object, or not UTF-8; names file, line, value and remedy.
    """
    with input_errors(f"{field}.uri"):
        rows = _all_rows(dataset, claims, field)
    return islice(_readable(rows, field), dataset.max_rows)


def _readable(rows: Iterator[Row], field: str) -> Iterator[Row]:
    with input_errors(f"{field}.uri"):
        yield from rows


def clipped(value: object) -> str:
    """`value` as JSON in at most `CLIP` characters, for a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    # A lone surrogate, which JSON allows as an escape, could not be printed.
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= CLIP else text[: CLIP - 3] + "..."


def _all_rows(dataset: Dataset, claims: Mapping[str, str], field: str) -> Iterator[Row]:
    place = locate(dataset.uri, claims, f"{field}.uri")
    # Here, since `datasets` takes longer to import than most files to read.
    if isinstance(place, Hub):
        from rlhf_trainer.data.read.hub import hub_rows

        rows = hub_rows(place, dataset.subset, dataset.split, field)
        return _numbered(str(place), rows)
    require_no_subset(place, dataset.subset, field)
    if place.is_dir() and is_saved(place):
        from rlhf_trainer.data.read.hub import saved_rows

        return _numbered(str(place), saved_rows(place, dataset.split, field))
    return (row for path in data_files(place, dataset, field) for row in _file_rows(path, field))


def _file_rows(path: Path, field: str) -> Iterator[Row]:
    if is_pointer(path):
        raise InputError(
            f"{field}.uri: {path} is a pointer of Git LFS and not the file itself; {REMEDY}"
        )
    return _READERS[path.suffix.lower()](path)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / "dataset_dict.json").exists() or (folder / "state.json").exists()


def _numbered(file: str, rows: Iterator[Mapping[str, Any]]) -> Iterator[Row]:
    return (Row(Source(file, number, "row"), row) for number, row in enumerate(rows, 1))


def data_files(place: Path, dataset: Dataset, field: str) -> list[Path]:
    """The file at `place`, or those of the folder there that are of the dataset's split, by name.

    Raises:
        InputError: there is none.
    """
    known = ", ".join(SUFFIXES)
    uri = dataset.uri
    if place.is_dir():
        files = files_of_split(place, _is_data, dataset.split, field)
        if not files:
            inner = _folders_with_data(place)
            remedy = (
                f"its subfolders {', '.join(inner[:_NAMED])} do; name one of them in uri"
                if inner
                else "put the data there or name another folder"
            )
            raise InputError(
                f"{field}.uri: {uri}: folder {place} holds no file that ends by {known}; {remedy}"
            )
        require_whole(place, files, _is_data, SUFFIXES, dataset.split, field)
        return files
    if not place.exists():
        raise InputError(f"{field}.uri: {uri}: there is no file {place}; correct the path")
    if place.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{field}.uri: {uri}: {place.name} does not end by one of {known}; convert or rename it"
        )
    require_only_split(place, dataset.split, field)
    return [place]


def _is_data(path: Path) -> bool:
    is_beside = is_hidden(path.name) or path.name in DESCRIPTIONS
    return path.suffix.lower() in SUFFIXES and not is_beside and path.is_file()


def _folders_with_data(place: Path) -> list[str]:
    """Subfolders at any depth that hold data, relative to `place`, in the order of their names."""
    folders = {path.parent.relative_to(place) for path in place.rglob("*") if _is_data(path)}
    return [str(folder) for folder in sorted(folders) if not str(folder).startswith(".")]


def _json_lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        # Only LF ends a line: JSON strings may hold U+2028 and its like as they are.
        for number, raw in enumerate(file, 1):
            source = Source(str(path), number)
            text = _decoded(raw.removeprefix(BOM_UTF8) if number == 1 else raw, source).strip()
            if text:
                yield _row(_parsed(text, source), source)


def _json_document(path: Path) -> Iterator[Row]:
    """A list of objects, or JSON Lines under the name .json."""
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(BOM_UTF8).lstrip()
    if not start.startswith(b"["):
        yield from _json_lines(path)
        return
    top = Source(str(path), 1)
    values = _parsed(_decoded(path.read_bytes().removeprefix(BOM_UTF8), top), top)
    for number, value in enumerate(values, 1):
        source = Source(str(path), number, "row")
        yield _row(value, source)


def _decoded(raw: bytes, top: Source) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        source = replace(top, line=top.line + raw.count(b"\n", 0, error.start))
        around = raw[max(0, error.start - 20) : error.start + 20]
        raise DataError(f"{source}: not UTF-8: {around!r}; save the file as UTF-8") from error


def _parsed(text: str, top: Source) -> Any:
    try:
        return loads(text)
    except DuplicateKeyError as error:
        raise DataError(
            f"{top}: {error}: {clipped(text)}; of two values only one would be read, remove the "
            "other"
        ) from error
    except json.JSONDecodeError as error:
        source = replace(top, line=top.line + error.lineno - 1)
        around = text[max(0, error.pos - CLIP // 2) : error.pos + CLIP // 2].strip()
        # Some of json's messages end with the "at" that its own text goes on with.
        reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
    # A number of thousands of digits, or brackets nested too deeply.
    except (ValueError, RecursionError) as error:
        source, around, reason = top, text, str(error)
    raise DataError(f"{source}: not JSON ({reason}): {clipped(around)}; write one object a line")


def _row(value: Any, source: Source) -> Row:
    if not isinstance(value, dict):
        raise DataError(
            f"{source}: not a JSON object: {clipped(value)}; write one object with named columns"
        )
    return Row(source, value)


def _parquet(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH):
                for values in _table_batch(batch, path, number).rows():
                    number += 1
                    yield Row(Source(str(path), number, "row"), values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet after row {number}: {error}; write it anew"
        ) from error


def _table_batch(batch: pyarrow.RecordBatch, path: Path, before: int) -> TableBatch:
    def read(name: str, start: int, end: int) -> list[Any]:
        values: list[Any] = batch.column(name).slice(start, end - start).to_pylist()
        return values

    return TableBatch(batch.schema.names, batch.num_rows, read, file=str(path), before=before)


_READERS = {".jsonl": _json_lines, ".json": _json_document, ".parquet": _parquet}
