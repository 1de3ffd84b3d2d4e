"""A file is replaced whole or not at all."""

import os
from pathlib import Path

import pytest

from rlhf_cli.files import write_atomically


def test_the_old_text_stays_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "status.yaml"
    write_atomically(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert [each.name for each in tmp_path.iterdir()] == ["status.yaml"]
    assert path.read_text() == "old"
