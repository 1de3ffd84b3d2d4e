"""Which Go builds the programs of the test cluster, where the machine has none."""

from pathlib import Path

import pytest
from cluster import binaries, versions


def test_without_a_go_of_the_machine_the_wheel_s_program_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    folder = binaries.cache_folder() / versions.GO_WHEEL
    # As pip lays it out: a script of the package, and the program itself.
    for path in (folder / "bin" / "go", folder / "go" / "bin" / "go"):
        path.parent.mkdir(parents=True)
        path.touch()
    assert binaries._go() == str(folder / "go" / "bin" / "go")
