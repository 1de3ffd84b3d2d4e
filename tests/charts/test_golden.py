"""What the main value sets are rendered to, kept so that a review sees every change.

`PYTHONPATH=tests .venv/bin/python -m chart_renders` writes them anew.
"""

import pytest
from chart_renders import SETS, golden, identity_of, kept_golden


def test_there_are_sets() -> None:
    assert {"default", "everything", "namespaced"} <= set(SETS)


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize("name", SETS)
def test_a_set_is_rendered_as_it_was(major: int, name: str) -> None:
    found = {identity_of(each): each for each in golden(major, name)}
    expected = {identity_of(each): each for each in kept_golden(name)}
    assert sorted(found) == sorted(expected)
    assert found == expected
