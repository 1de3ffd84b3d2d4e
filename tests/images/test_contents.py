"""Both images as a pod runs them: as their own user, on a root file system that is read-only."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import packages
from cluster.images import image, mounted

from rlhf_api.loading import read_yaml

ROOT = Path(__file__).parents[2]
OWN = ["rlhf_operator.serve", "rlhf_operator.manifests", "kopf", "kubernetes.aio"]
TRAINING = ["rlhf_trainer.launch", "rlhf_trainer.stages.ppo", "deepspeed", "torch"]

pytestmark = pytest.mark.timeout(1200)

# Read-only but for what the operator's pods have as emptyDir.
RUN = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && mount --bind /dev "$1/dev"
for folder in tmp home/rlhf; do mount -t tmpfs -o mode=1777 tmpfs "$1/$folder"; done
mount --bind "$2" "$1/mnt" && mount -t proc proc "$1/proc"
root=$1; shift 2
exec "$(command -v chroot)" --userspec=10001:10001 "$root" /usr/bin/env -i \
  HOME=/home/rlhf PATH=/opt/rlhf/bin:/usr/bin:/bin "$@"
"""


@pytest.fixture(scope="module")
def operator() -> Iterator[Path]:
    """Root file system of the operator's image."""
    yield from root_of("operator")


@pytest.fixture(scope="module")
def trainer() -> Iterator[Path]:
    """Root file system of the trainer image."""
    yield from root_of("trainer")


def root_of(target: str) -> Iterator[Path]:
    if reason := packages.reason_against():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    packages.require()
    name, _ = image(target)
    with mounted(name) as root:
        yield root


def run_in(root: Path, *command: str, mnt: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--mount", "sh", "-euc", RUN, "sh", str(root), str(mnt), *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def missing(root: Path, mnt: Path, *names: str) -> list[str]:
    """Which of the modules cannot be imported."""
    lines = [
        "import importlib",
        f"for name in {names!r}:",
        "    try: importlib.import_module(name)",
        "    except ImportError: print('missing', name)",
    ]
    done = run_in(root, "python", "-c", "\n".join(lines), mnt=mnt)
    assert done.returncode == 0, done.stderr
    return re.findall(r"^missing (.+)$", done.stdout, flags=re.MULTILINE)


def test_the_operator_has_its_own_and_no_training_stack(operator: Path, tmp_path: Path) -> None:
    assert missing(operator, tmp_path, *OWN) == []
    assert missing(operator, tmp_path, "torch", "deepspeed") == ["torch", "deepspeed"]


def test_the_trainer_has_its_own_and_no_client_of_kubernetes(trainer: Path, tmp_path: Path) -> None:
    assert missing(trainer, tmp_path, *TRAINING) == []
    assert missing(trainer, tmp_path, "kopf", "kubernetes") == ["kopf", "kubernetes"]


def test_the_operator_starts_and_says_what_it_lacks(operator: Path, tmp_path: Path) -> None:
    done = run_in(operator, "python", "-m", "rlhf_operator", mnt=tmp_path)
    assert "RLHF_OPERATOR_TRAINER_IMAGE" in done.stderr


@pytest.mark.parametrize("target", ["operator", "trainer"])
def test_no_tool_is_left_and_the_root_is_read_only(
    target: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    root = request.getfixturevalue(target)
    script = "id -u; id -g; for tool in pip pip3 gcc make; do command -v $tool; done; touch /new"
    done = run_in(root, "sh", "-c", script, mnt=tmp_path)
    assert done.stdout.split() == ["10001", "10001"]
    assert "Read-only file system" in done.stderr


def test_the_quickstarts_data_is_made_by_what_the_trainer_has(
    trainer: Path, tmp_path: Path
) -> None:
    documents: dict[str, Any] = {
        each["kind"]: each for each in read_yaml(ROOT / "examples" / "quickstart-data.yaml")
    }
    tmp_path.chmod(0o777)
    (tmp_path / "make_data.py").write_text(documents["ConfigMap"]["data"]["make_data.py"])
    done = run_in(trainer, "python", "/mnt/make_data.py", "/mnt/data", mnt=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "data").iterdir()}
    assert written >= {"sft.jsonl", "preferences.jsonl", "prompts.jsonl", "tokenizer"}
