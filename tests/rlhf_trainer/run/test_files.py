"""Atomic writes, digests and what a refused write is called."""

import errno
import hashlib
import math
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf_api.errors import InputError
from rlhf_api.names import ExitCode
from rlhf_trainer.errors import PermissionDenied, StorageError
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.files import (
    as_storage_error,
    fsync_tree,
    json_text,
    list_files,
    load_tensors,
    publish_folder,
    remove_folder,
    remove_leftovers,
    sha256_of,
    storage_errors,
    write_atomically,
)

ALONE = Ranks(rank=0, local_rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"))


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """A process-wide limit of file sizes, which refuses writes as a full disk does."""
    old_limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old_limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limits)
        signal.signal(signal.SIGXFSZ, old_handler)


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    write_atomically(path, "old")
    write_atomically(path, "步骤 2\n")

    assert path.read_text(encoding="utf-8") == "步骤 2\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_json_holds_numbers_only(number: float) -> None:
    assert json_text({"语": 0.1, "none": None}) == '{"语": 0.1, "none": null}\n'
    assert json_text([1], indent=2) == "[\n  1\n]\n"
    with pytest.raises(FloatingPointError, match="cannot be written"):
        json_text({"own": [{"klCoef": number}]})


def test_a_refused_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "latest"
    write_atomically(path, b"old")

    with files_limited_to(1000), pytest.raises(StorageError, match=str(path)):
        write_atomically(path, b"x" * 2000)

    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["latest"]


def test_a_full_disk_is_a_storage_error_with_path_and_remedy(small_disk: Path) -> None:
    with pytest.raises(StorageError) as caught:
        write_atomically(small_disk / "weights", b"x" * (2 << 20))

    message = str(caught.value)
    assert str(small_disk / "weights") in message
    assert "No space left on device" in message
    assert "free space" in message
    assert "GiB free" in message
    assert caught.value.exit_code == ExitCode.IO
    assert list(small_disk.iterdir()) == []


def test_dev_full_is_a_storage_error() -> None:
    device = Path("/dev/full")
    with (
        pytest.raises(StorageError, match="No space left"),
        storage_errors(device),
        device.open("wb", buffering=0) as file,
    ):
        file.write(b"x")


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_running_out_of_space_is_a_storage_error(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "weights.pt"
    with (
        files_limited_to(10_000),
        pytest.raises(StorageError, match=str(path)),
        storage_errors(path),
    ):
        torch.save({"w": torch.zeros(10_000)}, path, _use_new_zipfile_serialization=zipped)


def test_safetensors_running_out_of_space_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with files_limited_to(10_000), pytest.raises(StorageError, match="File too large"):  # noqa: SIM117
        with storage_errors(path):
            save_file({"w": torch.zeros(10_000)}, path)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_closed_folder_is_no_permission(number: int, tmp_path: Path) -> None:
    error = as_storage_error(OSError(number, os.strerror(number), "/data/x"), tmp_path)

    assert isinstance(error, PermissionDenied)
    assert error.exit_code == ExitCode.NO_PERMISSION
    assert "/data/x" in str(error)
    assert "fsGroup" in str(error)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG])
def test_a_failing_disk_is_a_storage_error(number: int, tmp_path: Path) -> None:
    error = as_storage_error(OSError(number, os.strerror(number)), tmp_path)

    assert isinstance(error, StorageError)
    assert str(tmp_path) in str(error)


@pytest.mark.parametrize(
    "error", [ValueError("no"), FileNotFoundError(errno.ENOENT, "no"), RuntimeError("shape")]
)
def test_other_errors_stay_what_they_are(error: Exception, tmp_path: Path) -> None:
    assert as_storage_error(error, tmp_path) is None
    with pytest.raises(type(error)), storage_errors(tmp_path):
        raise error


def test_an_error_of_ours_is_not_renamed(tmp_path: Path) -> None:
    error = InputError("artifact of stage sft: differs")
    error.__cause__ = OSError(errno.EIO, "below")

    with pytest.raises(InputError) as caught, storage_errors(tmp_path):
        raise error
    assert caught.value is error


def test_the_digest_is_sha256_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")

    assert sha256_of(path) == "sha256:" + hashlib.sha256(b"abc").hexdigest()


def test_files_are_listed_with_those_of_subfolders(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("z", "b/c/x", "b/a", ".hidden"):
        (tmp_path / name).write_text("")

    found = [path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path)]

    assert found == [".hidden", "b/a", "b/c/x", "z"]
    fsync_tree(tmp_path)


def test_a_removed_folder_is_gone_with_what_an_earlier_removal_left(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / ".step-1.removed").mkdir()

    remove_folder(folder)

    assert list(tmp_path.iterdir()) == []


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (".step-3.partial", ".step-1.removed", "step-2", ".snapshot"):
        (tmp_path / name).mkdir()
    (tmp_path / ".latest.partial").write_text("")

    remove_leftovers(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == [".snapshot", "step-2"]


def test_a_published_folder_has_its_seal_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    target.mkdir()
    (target / "old").write_text("")
    order: list[str] = []

    def write(folder: Path) -> None:
        order.append("write")
        assert folder.parent == target.parent
        (folder / "weights").write_text("w")

    def seal(folder: Path) -> None:
        order.append("seal")
        assert (target / "old").exists()
        (folder / "manifest.json").write_text("{}")

    publish_folder(ALONE, target, write, seal)

    assert order == ["write", "seal"]
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "weights"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("failing", ["write", "seal"])
def test_a_folder_that_fails_leaves_nothing(tmp_path: Path, failing: str) -> None:
    def write(folder: Path) -> None:
        (folder / "weights").write_text("w")
        if failing == "write":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "weights"))

    def seal(folder: Path) -> None:
        if failing == "seal":
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / "manifest.json"))

    with pytest.raises(StorageError, match="free space"):
        publish_folder(ALONE, tmp_path / "artifact", write, seal)

    assert list(tmp_path.iterdir()) == []


def test_a_programming_error_while_writing_is_raised_as_it_is(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        publish_folder(ALONE, tmp_path / "artifact", write, lambda folder: None)

    assert list(tmp_path.iterdir()) == []


def test_files_and_names_are_flushed_before_the_rename_and_the_new_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(descriptor: int) -> None:
        calls.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def recorded_rename(path: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)

    def write(folder: Path) -> None:
        (folder / "weights").write_text("w")

    publish_folder(ALONE, tmp_path / "artifact", write, lambda folder: None)

    before = calls[: calls.index("rename")]
    partial = str(tmp_path / ".artifact.partial")
    assert partial in before
    assert f"{partial}/weights" in before
    assert calls[-2:] == ["rename", str(tmp_path)]


class Call:
    """What a pickle of it does when it is loaded: make a folder, by one way or another."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def test_tensors_and_numbers_are_loaded(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"a": torch.ones(2), "b": [1, "c", None]}, path)
    found = load_tensors(path)
    assert torch.equal(found.pop("a"), torch.ones(2))
    assert found == {"b": [1, "c", None]}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda ran: Call(os.mkdir, ran), r"posix\.mkdir"),
        (lambda ran: Call(eval, f"__import__('os').mkdir({str(ran)!r})"), "eval"),
        (lambda ran: Call(subprocess.check_call, ["mkdir", str(ran)]), r"\.check_call"),
    ],
)
def test_what_would_run_code_is_refused(
    tmp_path: Path, call: Callable[[Path], Call], named: str, zipped: bool
) -> None:
    path, ran = tmp_path / "state.pt", tmp_path / "ran"
    torch.save([call(ran)], path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    ran.rmdir()
    with pytest.raises(InputError, match=named) as caught:
        load_tensors(path)
    assert not ran.exists()
    assert str(path) in str(caught.value)
    assert "remove its checkpoint's folder" in str(caught.value)


class Side(Enum):
    LEFT = 1


class Other(Enum):
    LEFT = 1


def test_members_are_loaded_as_python_before_3_11_4_writes_them(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save([Call(getattr, Side, "LEFT"), Side.LEFT], path)
    assert load_tensors(path, [Side]) == [Side.LEFT, Side.LEFT]


@pytest.mark.parametrize(
    "call",
    [
        Call(getattr, Side, "__subclasses__"),
        Call(getattr, Other, "LEFT"),
        Call(getattr, Call(getattr, Side, "LEFT"), "__class__"),
        Call(getattr, [], "LEFT"),
    ],
)
def test_nothing_else_is_found_by_getattr(tmp_path: Path, call: Call) -> None:
    path = tmp_path / "state.pt"
    torch.save([call, Side.LEFT], path)
    with pytest.raises(InputError, match=r"state\.pt"):
        load_tensors(path, [Side])


@pytest.mark.parametrize("content", [b"", b"not a pickle"])
def test_what_is_no_file_of_tensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"state\.pt"):
        load_tensors(path)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_an_end(content: bytes) -> bytes:
    return content[:-30]


def with_another_name(content: bytes) -> bytes:
    return content.replace(b"state/byteorder", b"stAte/byteorder")


def with_another_pickle(content: bytes) -> bytes:
    """What torch itself does not see."""
    assert b"weights" in content
    return content.replace(b"weights", b"weightz", 1)


@pytest.mark.parametrize("damage", [cut, without_an_end, with_another_name, with_another_pickle])
def test_a_damaged_file_of_tensors_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "state.pt"
    torch.save({"weights": torch.ones(10_000)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"state\.pt: .*damaged.*remove its checkpoint's folder"):
        load_tensors(path)


def test_a_file_of_tensors_that_cannot_be_read_is_a_storage_error() -> None:
    # Nothing is mapped at its start, which the kernel answers like a broken disk.
    with pytest.raises(StorageError, match="/proc/self/mem: Input/output error"):
        load_tensors(Path("/proc/self/mem"))
