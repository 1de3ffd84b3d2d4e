"""What importing each package draws in, in a process of its own.

import-linter sees the imports that stand in our files; this sees those that happen.
"""

import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = ("torch", "deepspeed", "transformers", "datasets", "rlhf_trainer")
CLUSTER = ("kopf", "kubernetes", "rlhf_operator")
HEAVY = ("torch", "deepspeed", "transformers", "datasets")

PROGRAM = """
import importlib, pkgutil, sys
package, foreign = sys.argv[1], sys.argv[2].split(",")
top = importlib.import_module(package)
inside = getattr(top, "__path__", ())
names = [package] + [found.name for found in pkgutil.walk_packages(inside, package + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
present = sorted(set(foreign) & set(sys.modules))
sys.exit(f"{package} imports {present}" if present else 0)
"""


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("rlhf_api", (*TRAINING, *CLUSTER, "rlhf_cli", "typer", "rich", "prometheus_client")),
        ("rlhf_operator", (*TRAINING, "rlhf_cli")),
        ("rlhf_operator.planning", (*TRAINING, "kopf", "kubernetes", "rlhf_cli", "aiohttp")),
        ("rlhf_cli", (*TRAINING, "kopf")),
        # PID 1 of a pod: it must hear signals long before torch is there.
        ("rlhf_trainer.launch", (*CLUSTER, "rlhf_cli", "typer", "rich", *HEAVY)),
        ("rlhf_trainer", (*CLUSTER, "rlhf_cli", "typer")),
    ],
)
def test_package_draws_in_nothing_foreign(
    tmp_path: Path, package: str, foreign: tuple[str, ...]
) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, package, ",".join(foreign)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
