"""Files that are made from the code are fresh; `make generate` makes them."""

import pytest

from rlhf_api import __main__ as api
from rlhf_chart import __main__ as chart


@pytest.mark.parametrize("command", list(api.OUTPUTS))
def test_generated_files_are_fresh(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert api.main([command, "--check"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", list(chart.OUTPUTS))
def test_generated_parts_of_the_chart_are_fresh(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert chart.main([command, "--check"]) == 0, capsys.readouterr().err
