"""Tokens of datasets on this node's own disk: made once, then mapped into every rank's memory.

Called by `inputs`, on one rank of a node. Lies in a folder of the node, never below storage, where
an attempt writes into its own folder only. What cannot be kept is no error: each rank then has its
own copy in memory.
"""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from filelock import FileLock

from rlhf_api.names import EnvVar
from rlhf_api.v1alpha1 import RowCounts
from rlhf_trainer.data.tokenize.table import T, Table

logger = logging.getLogger(__name__)

DESCRIPTION = "tokens.json"
LOCK_SECONDS = 3600.0
"""How long one process waits for another that makes the same tokens."""
_DESCRIPTION_KEYS = {"kind", "counts", "digest", "checksum"}
UNUSED_SECONDS = 30 * 24 * 3600.0
"""How long tokens that nobody asks for are kept."""


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where this node keeps tokens: below RLHF_CACHE, or the user's cache folder."""
    given = environment.get(EnvVar.CACHE)
    if given:
        return Path(given) / "tokens"
    home = environment.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "rlhf-operator" / "tokens"


@dataclass(frozen=True)
class Tokens(Generic[T]):
    """A dataset, tokenized.

    Attributes:
        table: its rows.
        counts: what became of those that were read.
        digest: of the table.
    """

    table: Table[T]
    counts: RowCounts
    digest: str

    @classmethod
    def of(cls, rows: list[T], counts: RowCounts) -> "Tokens[T]":
        """The tokens of rows that were just made."""
        table: Table[T] = Table.of(rows)
        return cls(table, counts, table.digest())

    @classmethod
    def open(cls, folder: Path) -> "Tokens[T]":
        """The tokens in a folder, mapped into memory.

        Raises:
            OSError: a file is missing or cannot be read.
            ValueError: a file is not what was written.
        """
        description = _description(folder)
        counts = RowCounts.model_validate(description["counts"])
        table: Table[T] = Table.open(folder, description["kind"])
        return cls(table, counts, description["digest"])

    def save(self, folder: Path) -> None:
        """Write them into an empty folder."""
        self.table.save(folder)
        description = {
            "kind": self.table.kind,
            "counts": self.counts.to_resolved_document(),
            "digest": self.digest,
            "checksum": self.table.checksum(),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")


class TokenCache:
    """Tokens by their key."""

    def __init__(self, folder: Path) -> None:
        """`folder` is made when something is kept in it."""
        self._folder = folder

    def folder_of(self, key: str, make: Callable[[], Tokens[Any]]) -> Path | None:
        """The folder of the tokens under `key`, from `make` unless they are there.

        Another process that makes the same tokens is waited for. None where they could not be kept;
        `make` was called then, and what it raises rises.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            held = FileLock(self._folder / f"{key}.lock").acquire(timeout=LOCK_SECONDS)
        except OSError as error:
            logger.warning("tokens are not kept in %s: %s", self._folder, error)
            make()
            return None
        with held:
            return self._kept_or_made(self._folder / key, make)

    def discard(self, folder: Path) -> None:
        """Remove what `folder_of` gave; whoever has opened it goes on reading."""
        shutil.rmtree(folder, ignore_errors=True)
        # Two that hold locks of one name only do the same work twice.
        folder.with_name(f"{folder.name}.lock").unlink(missing_ok=True)

    def _kept_or_made(self, target: Path, make: Callable[[], Tokens[Any]]) -> Path | None:
        if _is_whole(target):
            target.touch()
            return target
        made = make()
        try:
            self._remove_unused()
            _write(made, target)
        except OSError as error:
            logger.warning("tokens are not kept in %s: %s", self._folder, error)
            return None
        return target

    def _remove_unused(self) -> None:
        oldest = time.time() - UNUSED_SECONDS
        for path in self._folder.iterdir():
            if path.is_dir() and path.stat().st_mtime < oldest:
                self.discard(path)


def _write(tokens: Tokens[Any], target: Path) -> None:
    """Whole or not at all: killed in between, it leaves nothing under the target's name."""
    partial = target.with_name(f".{target.name}.partial")
    for path in (partial, target):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir()
    try:
        tokens.save(partial)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _is_whole(folder: Path) -> bool:
    """Whether the folder holds what was written, bit for bit: power may have failed."""
    if not folder.exists():
        return False
    try:
        tokens: Tokens[Any] = Tokens.open(folder)
        whole = tokens.table.checksum() == str(_description(folder)["checksum"])
    except (OSError, ValueError) as error:
        logger.warning("tokens in %s are made anew: %s", folder, error)
        return False
    if not whole:
        logger.warning("tokens in %s are made anew: they were changed", folder)
    return whole


def _description(folder: Path) -> dict[str, Any]:
    description = json.loads((folder / DESCRIPTION).read_text())
    if not isinstance(description, dict) or not description.keys() >= _DESCRIPTION_KEYS:
        raise ValueError(f"{DESCRIPTION} is not whole")
    return description
