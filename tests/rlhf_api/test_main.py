"""`python -m rlhf_api` writes files, and tells which are stale."""

from pathlib import Path

import pytest

from rlhf_api.__main__ import OUTPUTS, crd_text, main
from rlhf_api.loading import parse_yaml
from rlhf_api.schema import custom_resource_definition


@pytest.mark.parametrize("command", list(OUTPUTS))
def test_write_check_and_stale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    path = tmp_path / "deep" / "file"
    assert main([command, "--output", str(path), "--check"]) == 1
    assert not path.exists()
    assert main([command, "--output", str(path)]) == 0
    assert main([command, "--output", str(path), "--check"]) == 0
    assert capsys.readouterr().err.count("is stale; run `python -m rlhf_api") == 1
    path.write_text(path.read_text() + "\n")
    assert main([command, "--output", str(path), "--check"]) == 1
    assert f"{path} is stale; run `python -m rlhf_api {command}`" in capsys.readouterr().err


def test_kubectl_reads_the_text_as_it_was_meant() -> None:
    assert parse_yaml(crd_text(), "crd") == [custom_resource_definition()]


def test_all_files_are_checked_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["all", "--check"]) == 0
    with pytest.raises(SystemExit):
        main(["all", "--output", str(tmp_path / "file")])
    assert "--output names one file" in capsys.readouterr().err
