"""Folders and file names: what would break imports, and what says nothing."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "charts/rlhf_chart",
    "crds/rlhf_api",
    "operator/rlhf_operator",
    "operator/rlhf_cli",
    "trainer/rlhf_trainer",
)
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FOLDERS = ("benchmarks", "charts", "crds", "examples", "operator", "tests", "trainer")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MOST_LINES = 400
# Words that fit any code at all.
EMPTY_NAMES = frozenset(
    {"common", "helper", "helpers", "manager", "managers", "misc", "util", "utils"}
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("folder", ["charts", "crds", "operator", "trainer"])
def test_plain_folders_are_no_packages(folder: str) -> None:
    """A package named operator would stand before the standard library's."""
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_a_package_is_a_package(package: str) -> None:
    """import-linter does not see into a folder without __init__.py."""
    folders = {path.parent for path in (ROOT / package).rglob("*.py")}
    assert [name_of(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_tests_are_no_packages() -> None:
    """One __init__.py below tests/ would give a test folder the name of the package it tests."""
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_there_are_modules_to_look_at() -> None:
    assert {name_of(path).split("/")[1] for path in MODULES} == {
        package.split("/")[1] for package in PACKAGES
    }


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_can_be_read_in_one_go(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES, f"{name_of(path)}: has {lines} lines; split it at {MOST_LINES}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_say_something(path: Path) -> None:
    words = {
        word for part in path.relative_to(ROOT).parts for word in part.split(".")[0].split("_")
    }
    assert not words & EMPTY_NAMES


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_are_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))
