"""Files that are there whole or not at all. Called wherever the local runner writes."""

import os
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` at once: whoever reads it finds the old text or the new, never a part.

    Raises:
        OSError: the disk is full, or the folder is not ours; the old text stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
