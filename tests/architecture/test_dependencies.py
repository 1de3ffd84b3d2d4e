"""What each package imports is what its extra installs, so that no extra works by luck."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = frozenset({"rlhf_api", "rlhf_operator", "rlhf_cli", "rlhf_trainer", "rlhf_chart"})
# Of one release with the library that it is the core of, which pins it.
CORE_OF = {"pydantic-core": "pydantic"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(extra: str | None) -> set[str]:
    """Names of the distributions that an extra, or the bare project, asks for."""
    found: set[str] = set()
    given = PROJECT["dependencies"] if extra is None else PROJECT["optional-dependencies"][extra]
    for requirement in given:
        name, extras = re.fullmatch(r"([\w.-]+)(?:\[([\w,-]+)\])?.*", requirement).groups()  # type: ignore[union-attr]
        if canonical(name) != PROJECT["name"]:
            found.add(canonical(name))
        for inner in (extras or "").split(",") if extras else ():
            found |= requirements(inner)
    return found


def imported(folder: Path) -> set[str]:
    """Top-level modules from outside that stand in any import below `folder`."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    # Scripts import each other by name.
    is_package = (folder / "__init__.py").exists()
    siblings = set() if is_package else {path.stem for path in folder.glob("*.py")}
    return found - sys.stdlib_module_names - OURS - siblings


@pytest.mark.parametrize(
    ("folder", "extra"),
    [
        ("crds/rlhf_api", None),
        ("operator/rlhf_operator", "operator"),
        ("operator/rlhf_cli", "cli"),
        ("trainer/rlhf_trainer", "trainer"),
        ("examples", "demo"),
        ("charts/rlhf_chart", "dev"),
    ],
)
def test_imports_are_declared(folder: str, extra: str | None) -> None:
    declared = requirements(None) | (requirements(extra) if extra else set())
    known = packages_distributions()
    missing = {
        module
        for module in imported(ROOT / folder)
        if not {
            CORE_OF.get(name, name) for name in map(canonical, known.get(module, ()))
        }.intersection(declared)
    }
    assert missing == set()


def test_the_development_extra_holds_all_others() -> None:
    for extra in PROJECT["optional-dependencies"]:
        assert requirements(extra) <= requirements("dev"), extra


def test_constraints_hold_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {canonical(line.split("==")[0]) for line in lines}
    assert requirements(None) | requirements("dev") <= pinned
