"""Files that Git LFS has not fetched: a few lines of text stand where the content should be.

Called wherever a person's files are opened: rows, weights, tokenizers.
"""

from pathlib import Path

POINTER = b"version https://git-lfs.github.com/spec/"
"""How every pointer begins (github.com/git-lfs/git-lfs, docs/spec.md)."""
REMEDY = "fetch it with git lfs pull, or download the file itself"


def is_pointer(path: Path) -> bool:
    """Whether the file is a pointer of Git LFS in place of what its name says."""
    with path.open("rb") as file:
        return file.read(len(POINTER)) == POINTER
