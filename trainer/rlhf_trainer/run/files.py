"""Files that are whole or not there: atomic writes, digests, folders published at once.

Called by `artifact`, `checkpoint`, `report` and the models. The one place that knows which failures
mean "the storage is full, broken or closed to us"; decides nothing about what is kept.
"""

import errno
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from rlhf_api.errors import InputError, RLHFError
from rlhf_trainer.errors import CLOSED, FULL_OR_BROKEN, PermissionDenied, StorageError
from rlhf_trainer.run.distributed import Ranks, agree_on_failure

# What libraries that write by themselves say in place of an OSError: safetensors gives the number
# in its text, torch's legacy writer the text, and torch's zip writer only that it lost its place.
_TORCH_ZIP_WRITER = ("inline_container.cc", "iostream error", "PytorchStreamWriter")

_TORCH_ZIP_READER = re.compile("PytorchStreamReader|inline_container")
# What is read of a damaged file, as an archive or as what it says that it holds.
_DAMAGES = (
    pickle.UnpicklingError,
    EOFError,
    zipfile.BadZipFile,
    LookupError,
    NotImplementedError,
    TypeError,
    ValueError,
)

HIDDEN = "."
PARTIAL = ".partial"
REMOVED = ".removed"

_BLOCK = 1 << 20


def as_storage_error(error: BaseException, path: Path) -> RLHFError | None:
    """The error of ours that `error`, met while writing `path`, stands for; None if it is another.

    Looks at the whole chain, since torch's writer raises a RuntimeError while it unwinds.
    """
    if isinstance(error, RLHFError):
        return error
    number = _storage_errno(error)
    if number is None:
        return None
    named = _path_of(error) or path
    if number in CLOSED:
        return PermissionDenied(
            f"storage: {named}: {os.strerror(number)}; let the trainer's user write there, for "
            "example by securityContext.fsGroup, or mount the volume writable"
        )
    return StorageError(
        f"storage: {named}: {os.strerror(number)}{_free_text(path)}; free space or check the "
        "volume below storage, training then goes on from the last complete checkpoint"
    )


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise what the storage refuses as errors of ours.

    Raises:
        StorageError: full, over quota or broken.
        PermissionDenied: read-only or not ours.
    """
    try:
        yield
    except Exception as error:
        translated = as_storage_error(error, path)
        if translated is None or translated is error:
            raise
        raise translated from error


def load_tensors(path: Path, classes: Sequence[type] = (), map_location: Any = "cpu") -> Any:
    """What `torch.save` wrote, unless loading it would run code.

    Args:
        path: the file.
        classes: that it may hold beside tensors, numbers, texts and containers of them.
        map_location: as `torch.load` takes it.

    Raises:
        InputError: it names another class or function, or is no file of `torch.save`.
        StorageError: it cannot be read.
        PermissionDenied: it may not be read.
    """
    with storage_errors(path):
        try:
            _check_structure(path)
            with torch.serialization.safe_globals([*classes, _members_of(classes)]):
                return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:
            reason = _why_unreadable(error)
            if reason is None:
                raise
            raise InputError(
                f"checkpoint: {path}: {reason}; nothing of it was run or loaded. Find out who "
                "wrote it, and remove its checkpoint's folder to go on from an earlier one"
            ) from error


def _members_of(classes: Sequence[type]) -> tuple[Callable[[Any, Any], Any], str]:
    """What stands for `getattr` in a file of `torch.save`, by which Python before 3.11.4 writes a
    member of an enumeration: it finds members of the named ones and nothing else."""

    def member(kind: Any, name: Any) -> Any:
        if kind not in classes or not issubclass(kind, Enum) or name not in kind.__members__:
            raise pickle.UnpicklingError("unrecognized function getattr")
        return kind.__members__[name]

    return member, "builtins.getattr"


def _check_structure(path: Path) -> None:
    """Compare the part that says which tensors there are with its checksum, which torch does not.

    Raises:
        zipfile.BadZipFile: it is another than was written.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    archive.read(name)


def _why_unreadable(error: Exception) -> str | None:
    """What is wrong with a file of `torch.save`; None where the error is of another kind."""
    called = re.search(r"GLOBAL (\S+)|unrecognized function (.+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and called:
        return f"it calls {called[1] or called[2]}, which no checkpoint of this trainer does"
    # A damaged archive may name a place before its start, which no file can seek.
    misplaced = isinstance(error, OSError) and error.errno == errno.EINVAL
    if misplaced or isinstance(error, _DAMAGES) or _TORCH_ZIP_READER.search(str(error)):
        return "it holds more than tensors, numbers and texts, or is damaged"
    return None


def write_atomically(path: Path, content: bytes | str) -> None:
    """Replace `path` at once: whoever reads it finds the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f"{HIDDEN}{path.name}{PARTIAL}")
    with storage_errors(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        fsync_folder(path.parent)


def json_text(document: Any, *, indent: int | None = None) -> str:
    """A document, or a line of several, as JSON with a line break.

    Raises:
        FloatingPointError: one of its numbers is NaN or infinite, which JSON cannot hold.
    """
    try:
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError as error:
        raise FloatingPointError(f"a document cannot be written: {error}") from error


def sha256_of(path: Path) -> str:
    """`sha256:<hex>` of a file's content."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[Path]:
    """Every file below `folder`, in the order of their relative paths."""
    files = [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make every file and every name below `folder` durable."""
    folders = [folder]
    for path in folder.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            folders.append(path)
            continue
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for each in reversed(folders):
        fsync_folder(each)


def remove_folder(folder: Path) -> None:
    """Remove `folder` so that a crash in between leaves nothing that looks complete."""
    aside = folder.with_name(f"{HIDDEN}{folder.name}{REMOVED}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    shutil.rmtree(aside)


def remove_leftovers(parent: Path) -> None:
    """Remove what a killed process left half written or half removed in `parent`."""
    for suffix in (PARTIAL, REMOVED):
        for leftover in parent.glob(f"{HIDDEN}*{suffix}"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


@contextmanager
def together(ranks: Ranks, path: Path) -> Iterator[None]:
    """Run the block on every rank; where it fails on any, raise on all, so that none waits."""
    failure: BaseException | None = None
    try:
        yield
    except Exception as error:  # noqa: BLE001 - raised by agree_on_failure, on every rank
        failure = as_storage_error(error, path) or error
        if failure is not error:
            failure.__cause__ = error
    agree_on_failure(ranks, failure)


def publish_folder(
    ranks: Ranks, target: Path, write: Callable[[Path], None], seal: Callable[[Path], None]
) -> None:
    """Fill a new folder on all ranks and put it in the place of `target` at once.

    Args:
        ranks: every rank must call, with the same target.
        target: the folder's final path; one that is there already is replaced.
        write: called on every rank with the temporary folder.
        seal: called on rank 0 when all data is durable, for the file that says so.

    Raises:
        RLHFError: on every rank, whichever failed; nothing of the folder is left.
    """
    first = ranks.rank == 0
    partial = target.with_name(f"{HIDDEN}{target.name}{PARTIAL}")
    try:
        with together(ranks, target):
            if first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with together(ranks, target):
            write(partial)
        with together(ranks, target):
            # Every node flushes its own page cache; the ranks of one node share it.
            if ranks.local_rank == 0:
                fsync_tree(partial)
        with together(ranks, target):
            if first:
                seal(partial)
                fsync_folder(partial)
                if target.exists():
                    remove_folder(target)
                partial.rename(target)
                fsync_folder(target.parent)
    except BaseException:
        if first:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _storage_errno(error: BaseException) -> int | None:
    vague = False
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in FULL_OR_BROKEN | CLOSED:
            return link.errno
        text = str(link)
        for number in FULL_OR_BROKEN:
            if f"os error {number})" in text or text.endswith(os.strerror(number)):
                return number
        vague = vague or any(sign in text for sign in _TORCH_ZIP_WRITER)
    return errno.EIO if vague else None


def _path_of(error: BaseException) -> str | None:
    for link in _chain(error):
        if isinstance(link, OSError) and isinstance(link.filename, str):
            return link.filename
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, and what it was raised from or while handling."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _free_text(path: Path) -> str:
    for folder in (path, *path.parents):
        with suppress(OSError):
            return f" ({shutil.disk_usage(folder).free / 2**30:.2f} GiB free)"
    return ""
