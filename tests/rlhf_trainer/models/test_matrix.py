"""Every architecture in every part equals transformers or is refused, and the page says which."""

import model_matrix
import pytest


@pytest.mark.parametrize("name", list(model_matrix.CONFIGS))
def test_it_equals_transformers_or_is_refused(name: str) -> None:
    line = model_matrix.line(name)
    assert line.cells.keys() | line.refusals.keys() == {"attention", *model_matrix.PARTS}


def test_the_page_says_what_was_measured() -> None:
    """After a change that is meant: `make models`."""
    assert model_matrix.PAGE.read_text(encoding="utf-8") == model_matrix.made()
