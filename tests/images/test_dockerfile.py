"""What can be said of the Dockerfile without building it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
HADOLINT = Path(sys.prefix) / "bin" / "hadolint"
UID = 10001


def stages() -> dict[str, list[str]]:
    """Instructions of each stage by its name, in order."""
    text = re.sub(r"^ *#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("FROM "):
            lines = found.setdefault(line.split()[-1], [])
        if found and line.strip():
            lines.append(" ".join(line.split()))
    return found


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [str(HADOLINT), "--failure-threshold", "style", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_bare_build_makes_the_operator() -> None:
    assert list(stages())[-1] == "operator"


@pytest.mark.parametrize("target", ["operator", "trainer"])
def test_an_image_holds_what_it_needs_and_no_tools(target: str) -> None:
    lines = stages()[target]
    assert lines[0].split()[1] == "base"
    assert f"USER {UID}:{UID}" in lines
    # What is installed comes from other stages; nothing is run, so no cache is left.
    assert not [line for line in lines if line.startswith(("RUN", "ADD", "ARG"))]
    copied = [line for line in lines if line.startswith("COPY")]
    assert [line.split()[1:3] for line in copied] == [
        [f"--from={target}-dependencies", "/opt/rlhf"],
        ["--from=package", "/opt/rlhf/app"],
    ]


def test_dependencies_are_installed_before_the_sources_come() -> None:
    """A change of our sources then makes one small layer."""
    for target in ("operator", "trainer"):
        lines = stages()[f"{target}-dependencies"]
        assert [line for line in lines if line.startswith("COPY")] == [
            f"COPY --from=requirements /build/{target}.txt ./"
        ]


def test_the_base_is_an_argument_that_has_a_public_default() -> None:
    first = DOCKERFILE.read_text(encoding="utf-8").split("ARG BASE_IMAGE=")[1].split()[0]
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-\w+", first)


def test_the_operators_pods_and_the_image_agree_on_the_group() -> None:
    pod = (ROOT / "operator" / "rlhf_operator" / "pod.yaml").read_text(encoding="utf-8")
    assert f"fsGroup: {UID}" in pod
    assert f"--gid {UID}" in " ".join(stages()["base"])
