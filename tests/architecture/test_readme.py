"""What README and docs show exists: the job, commands with their options, paths and links."""

import re
import subprocess
from pathlib import Path

import pytest
import typer

from rlhf_api.loading import parse_yaml, read_yaml
from rlhf_api.v1alpha1 import RLHFJob, stage_order
from rlhf_cli.app import app

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / ".github" / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[str]:
    """The contents of all fenced blocks of a language."""
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.M | re.S)
    return found


def shown_code(path: Path) -> list[str]:
    """Everything that a page shows as code: spans, and the lines of console blocks."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    lines = [line for block in blocks(path, "console") for line in block.splitlines()]
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)] + lines


def tree() -> dict[str, str]:
    """Each path of README's file tree with its purpose."""
    (block,) = blocks(README, "text")
    found: dict[str, str] = {}
    above: list[str] = []
    for line in block.splitlines():
        name, _, purpose = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        above[depth:] = [name]
        found["".join(above)] = purpose.strip()
    return found


def test_the_job_in_the_readme_is_one() -> None:
    first, *_ = blocks(README, "yaml")
    (document,) = parse_yaml(first, "README.md")
    job = RLHFJob.from_document(document, "README.md")
    assert [str(name) for name in stage_order(job.spec.stages)] == ["sft", "reward", "ppo"]


def test_the_values_in_the_readme_are_the_example() -> None:
    _, block = blocks(README, "yaml")
    assert parse_yaml(block, "README.md") == read_yaml(ROOT / "examples" / "values-monitoring.yaml")


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {
        target for code in shown_code(path) for target in re.findall(r"\bmake ([a-z-]+)", code)
    }
    assert named <= targets
    assert path != README or named >= {"demo", "test", "help"}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_subcommands_and_options_exist(path: Path) -> None:
    seen = set()
    for code in shown_code(path):
        command = re.search(r"(?:^|[\s/])rlhf ([a-z]+)(.*)", code.split("#")[0])
        # kubectl's `rlhf` is the resource.
        if command is None or code.startswith("kubectl") or "$ kubectl" in code:
            continue
        seen.add(command[1])
        assert command[1] in COMMANDS, code
        known = {name for option in COMMANDS[command[1]].params for name in option.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", command[2])) <= known, code
    assert path != README or seen == set(COMMANDS)


def test_options_that_stand_alone_exist() -> None:
    known = {name for each in COMMANDS.values() for option in each.params for name in option.opts}
    named = {
        option
        for path in (README, *(ROOT / "docs").glob("*.md"))
        if path.name != "install.md"  # whose options are those of docker and helm
        for code in shown_code(path)
        for option in re.findall(r"^--[a-z-]+", code)
    }
    assert "--mount" in named
    assert named <= known


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    files = [link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    assert [link for link in files if not (path.parent / link).exists()] == []


def test_every_path_in_the_tree_exists_and_has_a_purpose() -> None:
    found = tree()
    assert [path for path in found if not (ROOT / path).exists()] == []
    assert [path for path in found if (ROOT / path).is_dir() != path.endswith("/")] == []
    inner = [path for path, purpose in found.items() if not purpose]
    assert [
        path for path in inner if not any(p != path and p.startswith(path) for p in found)
    ] == []


def test_the_tree_covers_the_top_level() -> None:
    try:
        listed = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no checkout of git")
    top = {path.partition("/")[0] for path in listed}
    assert {path.partition("/")[0] for path in tree()} == top


def test_the_tree_covers_docs_and_packages() -> None:
    found = tree()
    for folder in ("docs", "crds", "operator", "trainer", ".ci", ".github"):
        inside = {
            f"{folder}/{path.name}{'/' if path.is_dir() else ''}"
            for path in (ROOT / folder).iterdir()
            if path.name not in ("__pycache__", ".gitkeep")
        }
        assert inside <= set(found), folder
