"""Files that are made from the models are fresh; `make generate` makes them."""

import pytest

from rlhf_api.__main__ import OUTPUTS, main


@pytest.mark.parametrize("command", list(OUTPUTS))
def test_generated_files_are_fresh(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--check"]) == 0, capsys.readouterr().err
