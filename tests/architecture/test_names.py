"""Names in the trainer say what a value is, and not that code came by it or passed it on."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "trainer" / "rlhf_trainer"
MODULES = sorted(PACKAGE.rglob("*.py"))
# They fit a batch, an answer, a path and a reason alike.
VAGUE = frozenset({"found", "lesson", "lessons", "taught", "told"})


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def bound_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of all that code names itself; names that libraries gave are only read."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(attr=name, ctx=ast.Store())
                | ast.arg(arg=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.alias(asname=str(name))
                | ast.ExceptHandler(name=str(name))
                | ast.MatchAs(name=str(name))
                | ast.MatchStar(name=str(name))
                | ast.MatchMapping(rest=str(name))
            ):
                yield node.lineno, name


def words_of(name: str) -> set[str]:
    """`_told`, `ROWS_TOLD` and `RowsTold` all have the word `told`."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}


def vague_names(source: str) -> list[str]:
    names = sorted(set(bound_names(ast.parse(source))))
    return [f"line {line}: {name}" for line, name in names if words_of(name) & VAGUE]


def test_there_are_modules_to_look_at() -> None:
    assert {"errors.py", "run/loop.py", "stages/ppo.py"} <= set(map(name_of, MODULES))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_name_says_what_the_value_is(path: Path) -> None:
    names = vague_names(path.read_text(encoding="utf-8"))
    assert names == [], f"{name_of(path)}: name each by what it is, such as rows, path or reason"


@pytest.mark.parametrize(
    "source",
    [
        "found = 1",
        "found: int = 1",
        "(a, found) = b",
        "if found := a: pass",
        "for found in a: pass",
        "with a as found: pass",
        "[found for found in a]",
        "lambda found: 0",
        "def a(*, found): pass",
        "def a(**found): pass",
        "def _rows_told(): pass",
        "async def told(): pass",
        "class Lesson: pass",
        "class RowsTold: pass",
        "ROWS_TOLD = 1",
        "a._told = 1",
        "import a as told",
        "try: pass\nexcept A as found: pass",
        "match a:\n case found: pass",
        "match a:\n case [*found]: pass",
        "match a:\n case {**found}: pass",
    ],
)
def test_every_way_to_give_a_name_is_seen(source: str) -> None:
    assert vague_names(source)


@pytest.mark.parametrize(
    "source",
    [
        "except_(FileNotFoundError)",
        "a.found",
        "a(found=1)",
        "foundation = 1",
        "untold = 1",
        "'told'",
    ],
)
def test_what_others_named_may_be_read(source: str) -> None:
    assert vague_names(source) == []
