"""Files of one JSON object a line.

Written by the reporter, read by whoever follows a run, and by an attempt that goes on from another.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlhf_trainer.run.files import json_text, storage_errors


def objects_of(path: Path, holding: str) -> Iterator[dict[str, Any]]:
    """The objects in a file whose lines hold a text; none where the file cannot be read."""
    try:
        with path.open("rb") as file:
            for line in file:
                if holding.encode() not in line:
                    continue
                # A killed writer may have left half a line.
                with suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict):
                        yield value
    except OSError:
        return


class JsonLines:
    """A file of one JSON object a line, each written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
            self._drop_torn_line()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append the rows.

        Raises:
            StorageError: the disk is full; the file ends with the last complete line.
        """
        data = "".join(json_text(row) for row in rows).encode(errors="backslashreplace")
        size = os.fstat(self._file.fileno()).st_size
        with storage_errors(self._path):
            try:
                written = self._file.write(data)
                while written < len(data):
                    written += self._file.write(data[written:])
            except OSError:
                self._file.truncate(size)
                raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _drop_torn_line(self) -> None:
        """Cut off what a killed writer left after the last line break."""
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)
