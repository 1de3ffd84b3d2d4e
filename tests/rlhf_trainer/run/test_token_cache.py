"""Tokens are made once a node, by whoever comes first, and are whole or not there."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import RowCounts
from rlhf_trainer.data.tokenize.table import Table
from rlhf_trainer.data.tokenize.tokenized import Prompt
from rlhf_trainer.run import token_cache
from rlhf_trainer.run.token_cache import DESCRIPTION, TokenCache, Tokens, cache_folder

COUNTS = RowCounts(kept=2, over_long=1)


class Maker:
    """Makes tokens, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Tokens[Prompt]:
        self.calls += 1
        rows = [Prompt(np.array([at, 7], dtype=np.int32), f"text {at}") for at in range(2)]
        return Tokens.of(rows, COUNTS)


def texts(folder: Path | None) -> list[str]:
    assert folder is not None
    found: Tokens[Prompt] = Tokens.open(folder)
    assert found.counts == COUNTS
    assert found.digest == found.table.digest()
    return [row.text for row in found.table]


def test_tokens_are_made_once_for_a_key(tmp_path: Path) -> None:
    make = Maker()
    folders = [TokenCache(tmp_path / "deep" / "down").folder_of("a", make) for _ in range(3)]
    assert (make.calls, len(set(folders))) == (1, 1)
    assert texts(folders[0]) == ["text 0", "text 1"]
    assert TokenCache(tmp_path / "deep" / "down").folder_of("b", make) != folders[0]
    assert make.calls == 2


def test_whoever_comes_second_waits(tmp_path: Path) -> None:
    begun, go_on, make = threading.Event(), threading.Event(), Maker()
    found: list[Path | None] = []

    def slow() -> Tokens[Prompt]:
        begun.set()
        assert go_on.wait(60)
        return make()

    def ask(of: Callable[[], Tokens[Any]]) -> threading.Thread:
        cache = TokenCache(tmp_path)
        thread = threading.Thread(target=lambda: found.append(cache.folder_of("a", of)))
        thread.start()
        return thread

    first = ask(slow)
    assert begun.wait(60)
    second = ask(make)
    second.join(0.2)
    assert (second.is_alive(), make.calls) == (True, 0)
    go_on.set()
    for thread in (first, second):
        thread.join(60)
    assert (make.calls, found) == (1, [tmp_path / "a"] * 2)


def damage_byte(folder: Path) -> None:
    path = folder / "tokens.values.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def cut(folder: Path) -> None:
    path = folder / "tokens.ends.npy"
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    "damage",
    [
        damage_byte,
        cut,
        lambda folder: (folder / "text.values.npy").unlink(),
        lambda folder: (folder / DESCRIPTION).unlink(),
        lambda folder: (folder / DESCRIPTION).write_text("{}"),
        lambda folder: (folder / DESCRIPTION).write_text('{"kind'),
    ],
)
def test_what_is_not_whole_is_made_anew(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    make, cache = Maker(), TokenCache(tmp_path)
    folder = cache.folder_of("a", make)
    assert folder is not None
    damage(folder)
    assert texts(cache.folder_of("a", make)) == ["text 0", "text 1"]
    assert make.calls == 2


def test_a_writer_that_was_killed_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    make, cache = Maker(), TokenCache(tmp_path)
    left = tmp_path / ".a.partial"
    left.mkdir()
    (left / "stray.values.npy").write_bytes(b"x")
    folder = cache.folder_of("a", make)
    assert texts(folder) == ["text 0", "text 1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "a.lock"]


def test_a_mistake_in_the_rows_keeps_nothing_and_holds_no_lock(tmp_path: Path) -> None:
    def refuse() -> Tokens[Prompt]:
        raise DataError("row 1")

    cache = TokenCache(tmp_path)
    with pytest.raises(DataError, match="row 1"):
        cache.folder_of("a", refuse)
    assert not (tmp_path / "a").exists()
    assert texts(cache.folder_of("a", Maker())) == ["text 0", "text 1"]


def test_where_nothing_can_be_kept_tokens_are_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Maker()
    (tmp_path / "file").write_text("")
    assert TokenCache(tmp_path / "file" / "below").folder_of("a", make) is None
    assert make.calls == 1

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Table, "save", full)
    assert TokenCache(tmp_path).folder_of("a", make) is None
    assert make.calls == 2
    assert not list(tmp_path.glob("*a.partial"))


def test_an_error_of_reading_is_no_error_of_keeping(tmp_path: Path) -> None:
    def closed() -> Tokens[Prompt]:
        raise PermissionError(errno.EACCES, "Permission denied", "rows.jsonl")

    with pytest.raises(PermissionError, match=r"rows\.jsonl"):
        TokenCache(tmp_path).folder_of("a", closed)


def test_tokens_that_nobody_uses_go(tmp_path: Path) -> None:
    make, cache = Maker(), TokenCache(tmp_path)
    for key in ("old", "used"):
        assert cache.folder_of(key, make) is not None
    long_ago = (tmp_path / "old").stat().st_mtime - token_cache.UNUSED_SECONDS - 60
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    cache.folder_of("used", make)
    cache.folder_of("new", make)
    assert {path.name for path in tmp_path.iterdir()} == {"used", "used.lock", "new", "new.lock"}


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"RLHF_CACHE": "/tmp/rlhf", "XDG_CACHE_HOME": "/x"}, "/tmp/rlhf/tokens"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/rlhf-operator/tokens"),
        ({}, os.path.expanduser("~/.cache/rlhf-operator/tokens")),
    ],
)
def test_where_tokens_are_kept(environment: dict[str, str], folder: str) -> None:
    assert cache_folder(environment) == Path(folder)
