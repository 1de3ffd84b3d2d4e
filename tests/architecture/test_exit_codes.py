"""docs/exit-codes.md says what the code does."""

import re
from pathlib import Path

from rlhf_api.names import ExitCode
from rlhf_cli.runner import TOLD_CODES
from rlhf_cli.stopping import SIGNALS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "exit-codes.md"


def tables() -> list[list[list[str]]]:
    """The rows of each table, without its head, as cells."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), re.MULTILINE):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in block.splitlines()]
        found.append(rows[2:])
    return found


def codes_in(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", text)}


def test_every_code_of_a_trainer_has_its_row() -> None:
    rows, _ = tables()
    own = [int(row[0]) for row in rows if row[0].isdigit()]
    (others,) = [row for row in rows if not row[0].isdigit()]
    assert own == sorted(set(own))
    assert others[0].startswith("any other")
    assert set(own) == set(ExitCode) - codes_in(others[0])


def test_what_the_runner_makes_of_each() -> None:
    rows, _ = tables()
    for row in rows:
        for code in codes_in(row[0]):
            told = code in TOLD_CODES or code == ExitCode.DONE
            assert int(row[2]) == (code if told else ExitCode.CRASH), row


def test_what_the_runner_ends_with_by_itself() -> None:
    _, rows = tables()
    found = set().union(*(codes_in(row[0]) for row in rows))
    signals = {128 + number for number in SIGNALS}
    assert {code for code in found if code > 128} == signals
    assert found - signals <= set(ExitCode)
    assert {ExitCode.DONE, ExitCode.STOPPED_WITH_CHECKPOINT, ExitCode.CRASH} <= found
