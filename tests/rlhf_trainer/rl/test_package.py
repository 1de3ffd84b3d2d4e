"""What the package promises as a whole: purity, a public list, short functions that explain."""

import ast
import inspect
from pathlib import Path

import pytest

import rlhf_trainer.rl as rl

ROOM = Path(rl.__file__).parent
SOURCES = sorted(ROOM.glob("*.py"))
ALLOWED = {"collections", "dataclasses", "fractions", "functools", "math", "torch", "typing"}


def imported(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_modules_import_torch_and_each_other_only(source: Path) -> None:
    for name in imported(ast.parse(source.read_text(encoding="utf-8"))):
        assert name.split(".")[0] in ALLOWED or name.startswith("rlhf_trainer.rl."), name
        assert not name.startswith("torch.distributed"), name


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_functions_are_short(source: Path) -> None:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            has_docstring = ast.get_docstring(node) is not None
            code = node.body[1:] if has_docstring else node.body
            lines = (code[-1].end_lineno or 0) - code[0].lineno + 1 if code else 0
            assert lines <= 30, f"{source.name}: {node.name}"


def test_public_names_exist_and_explain_themselves() -> None:
    assert len(set(rl.__all__)) == len(rl.__all__)
    for name in rl.__all__:
        public = getattr(rl, name)
        if inspect.isfunction(public) or inspect.isclass(public):
            assert inspect.getdoc(public), name
            assert public.__module__.startswith("rlhf_trainer.rl"), name


@pytest.mark.parametrize("name", rl.__all__)
def test_every_public_name_has_a_caller(name: str) -> None:
    callers = [path for path in ROOM.parent.rglob("*.py") if path.parent != ROOM]
    imports = (
        alias.name
        for path in callers
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rlhf_trainer.rl")
        for alias in node.names
    )
    assert name in imports
