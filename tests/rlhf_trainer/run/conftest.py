"""A disk that is soon full."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=300).returncode != 0:
        pytest.skip("mounting a tmpfs of 1 MiB is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=300)
