"""Rows of tables, of which a column is converted only when somebody asks for it.

Called by `rows` and `hub`. A table may hold what Python has no value for, such as a date after the
year 9999 or images without a library that opens them; in a column that nobody reads it is no
concern, and embeddings cost nothing.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow  # type: ignore[import-untyped]

from rlhf_api.errors import DataError

BATCH = 1024
_UNREADABLE = (
    pyarrow.ArrowException,
    ArithmeticError,
    ImportError,
    LookupError,
    TypeError,
    ValueError,
)
"""What conversion raises: for values out of range, unknown time zones, missing decoders."""

ReadColumn = Callable[[str, int, int], Sequence[Any]]
"""The values of a column, from one row of the batch to before another."""


class TableBatch:
    """Some rows of a table."""

    def __init__(
        self, names: Sequence[str], count: int, read: ReadColumn, *, file: str, before: int
    ) -> None:
        """Nothing is converted yet.

        Args:
            names: of the columns.
            count: rows of the batch.
            read: converts a column.
            file: for messages.
            before: rows of the table before this batch.
        """
        self.names = tuple(names)
        self._count = count
        self._read = read
        self._file = file
        self._before = before
        self._columns: dict[str, Sequence[Any] | None] = {}

    def rows(self) -> Iterator[Mapping[str, Any]]:
        """The rows of the batch."""
        return (_Values(self, index) for index in range(self._count))

    def value(self, name: str, index: int) -> Any:
        """A value of a column.

        Raises:
            DataError: Python has no value for it.
        """
        if name not in self._columns:
            try:
                self._columns[name] = self._read(name, 0, self._count)
            except _UNREADABLE:
                # Other rows of the column may be readable.
                self._columns[name] = None
        column = self._columns[name]
        return self._cell(name, index) if column is None else column[index]

    def _cell(self, name: str, index: int) -> Any:
        try:
            (value,) = self._read(name, index, index + 1)
        except _UNREADABLE as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                f"{self._file}: row {self._before + index + 1}: {name}: cannot be read: {reason}; "
                "write the column anew as text, numbers or lists of them"
            ) from error
        return value


class _Values(Mapping[str, Any]):
    """A row, as a dictionary shows it."""

    def __init__(self, batch: TableBatch, index: int) -> None:
        self._batch = batch
        self._index = index

    def __getitem__(self, name: str) -> Any:
        if name not in self._batch.names:
            raise KeyError(name)
        return self._batch.value(name, self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._batch.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._batch.names)

    def __len__(self) -> int:
        return len(self._batch.names)
