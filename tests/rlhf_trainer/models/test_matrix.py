"""Every architecture in every part equals transformers or is refused, and the page says which."""

import model_matrix
import model_page
import pytest


@pytest.mark.parametrize("name", list(model_matrix.CONFIGS))
def test_it_equals_transformers_or_is_refused_as_the_page_says(name: str) -> None:
    line = model_matrix.line(name)
    parts = ("attention", *model_matrix.PARTS)
    (row,) = (row for row in page().splitlines() if row.startswith(f"| {name} |"))
    told = dict(zip(parts, (cell.strip() for cell in row.split("|")[2:-1]), strict=True))
    assert {part: text for part, text in told.items() if not text.startswith("refused")} == (
        line.cells
    ), line.refusals
    assert told.keys() - line.cells.keys() == line.refusals.keys()


def test_the_page_is_what_was_measured() -> None:
    """After a change that is meant: `make models`."""
    assert page() == model_page.made()


def page() -> str:
    return model_page.PAGE.read_text(encoding="utf-8")
