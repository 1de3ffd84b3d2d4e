"""A dataset's token arrays, each kind in one piece: hashed, kept in files and mapped into memory.

Made and opened by `run.inputs`. A table gives its rows one at a time, as views: a rank that opens
the files of a table shares their pages with the other ranks of its node.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from rlhf_trainer.data.tokenize.tokenized import PreferencePair, Prompt, SFTExample

T = TypeVar("T", SFTExample, PreferencePair, Prompt)

_PARTS = ("values", "ends")
_TEXT = "text"
"""The column that says to people what the tokens of another one say."""


@dataclass(frozen=True)
class Column:
    """One array of each row, end to end."""

    values: NDArray[Any]
    """[items of all rows]."""
    ends: NDArray[np.int64]
    """Int64[rows], ascending: where each row's items end."""

    @classmethod
    def of(cls, arrays: Sequence[NDArray[Any]]) -> "Column":
        """The column of `arrays`, at least one, all of one type."""
        lengths = [len(array) for array in arrays]
        return cls(np.concatenate(arrays), np.cumsum(lengths, dtype=np.int64))

    def row(self, at: int) -> NDArray[Any]:
        """A view of the items of row `at`."""
        start = int(self.ends[at - 1]) if at else 0
        return self.values[start : int(self.ends[at])]


def _sft_arrays(row: SFTExample) -> dict[str, NDArray[Any]]:
    return {"tokens": row.tokens, "response_mask": row.response_mask}


def _pair_arrays(row: PreferencePair) -> dict[str, NDArray[Any]]:
    margin = [] if row.margin is None else [row.margin]
    return {
        "chosen": row.chosen,
        "rejected": row.rejected,
        "margin": np.array(margin, dtype=np.float64),
    }


def _pair(arrays: Mapping[str, NDArray[Any]]) -> PreferencePair:
    margin = arrays["margin"]
    return PreferencePair(
        arrays["chosen"], arrays["rejected"], float(margin[0]) if len(margin) else None
    )


def _prompt_arrays(row: Prompt) -> dict[str, NDArray[Any]]:
    text = row.text.encode(errors="surrogatepass")
    return {"tokens": row.tokens, _TEXT: np.frombuffer(text, dtype=np.uint8)}


def _prompt(arrays: Mapping[str, NDArray[Any]]) -> Prompt:
    return Prompt(arrays["tokens"], arrays[_TEXT].tobytes().decode(errors="surrogatepass"))


@dataclass(frozen=True)
class _Kind:
    """How rows of one type are taken apart and put together."""

    arrays: Callable[[Any], dict[str, NDArray[Any]]]
    row: Callable[[Mapping[str, NDArray[Any]]], Any]


_KINDS: dict[str, _Kind] = {
    SFTExample.__name__: _Kind(_sft_arrays, lambda arrays: SFTExample(**arrays)),
    PreferencePair.__name__: _Kind(_pair_arrays, _pair),
    Prompt.__name__: _Kind(_prompt_arrays, _prompt),
}


class Table(Sequence[T], Generic[T]):
    """Rows of one type, in columns."""

    def __init__(self, kind: str, columns: Mapping[str, Column]) -> None:
        """Rows of the type called `kind`, from the columns that `save` names."""
        self.kind = kind
        self._columns = dict(columns)
        self._row = _KINDS[kind].row

    @classmethod
    def of(cls, rows: Sequence[T]) -> "Table[T]":
        """The table of `rows`, at least one."""
        kind = type(rows[0]).__name__
        arrays = [_KINDS[kind].arrays(row) for row in rows]
        return cls(kind, {name: Column.of([each[name] for each in arrays]) for name in arrays[0]})

    @classmethod
    def open(cls, folder: Path, kind: str) -> "Table[T]":
        """The table in `folder`, mapped into memory; what is written to it stays in this process.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is not whole.
        """
        names = [path.name.removesuffix(".values.npy") for path in folder.glob("*.values.npy")]
        return cls(
            kind,
            {
                name: Column(*(_mapped(folder / f"{name}.{part}.npy") for part in _PARTS))
                for name in sorted(names)
            },
        )

    def save(self, folder: Path) -> None:
        """Write two files a column into an empty folder."""
        for name, column in self._columns.items():
            for part in _PARTS:
                np.save(folder / f"{name}.{part}.npy", getattr(column, part))

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())).ends)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> list[T]: ...
    def __getitem__(self, at: int | slice) -> T | list[T]:
        if isinstance(at, slice):
            return [self[each] for each in range(*at.indices(len(self)))]
        place = range(len(self))[at]
        row: T = self._row({name: column.row(place) for name, column in self._columns.items()})
        return row

    def digest(self) -> str:
        """`sha256:<hex>` of what is learned from: every array but the texts for people."""
        return self._sha256(name for name in self._columns if name != _TEXT)

    def checksum(self) -> str:
        """`sha256:<hex>` of every array."""
        return self._sha256(self._columns)

    def _sha256(self, names: Iterable[str]) -> str:
        hasher = hashlib.sha256(self.kind.encode())
        for name in sorted(names):
            for part in _PARTS:
                array: NDArray[Any] = getattr(self._columns[name], part)
                # Without their sizes, two columns could be cut in two places.
                hasher.update(f"\n{name} {part} {array.dtype.str} {len(array)}\n".encode())
                hasher.update(array.view(np.uint8).data)
        return f"sha256:{hasher.hexdigest()}"


def _mapped(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    return array
