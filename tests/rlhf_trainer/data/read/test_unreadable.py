"""Paths that the system refuses for good: never a crash, which would be tried again."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from rlhf_api.errors import InputError
from rlhf_api.v1alpha1 import Dataset, ModelSource
from rlhf_trainer.data.preview import count_rows, datasets_of
from rlhf_trainer.data.read.rows import read_rows
from rlhf_trainer.data.read.unreadable import input_errors
from rlhf_trainer.models.source import open_base

FIELD = "spec.stages.sft.dataset"
LONG = "x" * 300


def place(folder: Path, kind: str) -> Path:
    if kind == "long":
        return folder / LONG
    if kind == "long file":
        return folder / f"{LONG}.jsonl"
    if kind == "loop":
        (folder / "loop").symlink_to(folder / "loop")
        return folder / "loop" / "rows.jsonl"
    (folder / "file").write_text("")
    return folder / "file" / "rows.jsonl"


@pytest.mark.parametrize("kind", ["long", "long file", "loop", "file for a folder"])
@pytest.mark.parametrize("what", ["dataset", "model", "tokenizer"])
def test_a_path_that_leads_nowhere_is_a_missing_input(tmp_path: Path, kind: str, what: str) -> None:
    path = place(tmp_path, kind)
    opens: dict[str, Callable[[], Any]] = {
        "dataset": lambda: list(read_rows(Dataset(uri=f"file://{path}"), claims={}, field=FIELD)),
        "model": lambda: _opened(ModelSource(uri=f"file://{path}"), tmp_path),
        "tokenizer": lambda: _opened(tiny.scratch_source(path), tmp_path),
    }
    with pytest.raises(InputError) as caught:
        opens[what]()
    text = str(caught.value)
    assert text.startswith(FIELD)
    assert str(path)[:150] in text
    assert "the path" in text


def _opened(source: ModelSource, folder: Path) -> Any:
    return open_base(source, tiny.stage_config("sft", folder), tiny.ALONE, FIELD)


def test_what_rows_alone_tell_names_the_field_too(tmp_path: Path) -> None:
    rows = Dataset(uri=f"file://{tmp_path / LONG}")
    config = tiny.stage_config("sft", tmp_path, dataset=rows)
    (asked,) = datasets_of(config)
    with pytest.raises(InputError, match=r"^spec\.stages\.sft\.dataset\.uri: .*name too long"):
        count_rows(asked, config)


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENXIO])
def test_the_system_s_words_stand_beside_field_and_path(number: int) -> None:
    with pytest.raises(InputError) as caught, input_errors("spec.x.uri"):
        raise OSError(number, os.strerror(number), "/data/" + "y" * 400)
    assert str(caught.value) == (
        f"spec.x.uri: /data/{'y' * 194}... (406 characters) cannot be read: {os.strerror(number)}; "
        "correct the path, or what lies there"
    )


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EACCES, errno.ECONNREFUSED]
)
def test_what_has_words_of_its_own_passes(number: int) -> None:
    with pytest.raises(OSError, match="word") as caught, input_errors("spec.x.uri"):
        raise OSError(number, "word")
    assert caught.value.errno == number


def test_a_file_that_vanishes_while_it_is_read_is_no_crash(tmp_path: Path) -> None:
    for name in ("1.jsonl", "2.jsonl"):
        (tmp_path / name).write_text('{"prompt": "a", "response": "b"}\n')
    rows = read_rows(Dataset(uri=f"file://{tmp_path}"), claims={}, field=FIELD)
    next(rows)
    (tmp_path / "2.jsonl").unlink()
    with pytest.raises(InputError, match=r"dataset\.uri: .*2\.jsonl cannot be read: No such file"):
        list(rows)
