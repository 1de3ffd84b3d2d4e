"""The commands by which the pages render the chart, as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cluster.monitoring import promtool
from cluster.tools import helm

from rlhf_chart.alerts import ALERTS

ROOT = Path(__file__).parents[2]


def commands(page: str, first: str) -> str:
    """The one block of a page that begins with this command, as a script."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    (found,) = (block for block in blocks if block.startswith(f"$ {first}"))
    return re.sub(r"^\$ ", "", found, flags=re.M)


def run(script: str, folder: Path, major: int) -> str:
    """What it prints, in a folder that has the repository's files and Python's environment."""
    (folder / "bin").mkdir()
    for name, program in {"helm": helm(major), "promtool": promtool()}.items():
        starts = f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"\n'
        (folder / "bin" / name).write_text(starts)
        (folder / "bin" / name).chmod(0o755)
    for name in ("charts", "examples"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", "-euc", script.replace(".venv/bin/python", shlex.quote(sys.executable))],
        cwd=folder,
        env=os.environ
        | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "REGISTRY": "registry.test/rlhf"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("major", [3, 4])
def test_rules_for_a_prometheus_without_its_operator(major: int, tmp_path: Path) -> None:
    told = run(commands("docs/install.md", "helm template"), tmp_path, major)
    assert f"SUCCESS: {len(ALERTS)} rules found" in told
    rules = (tmp_path / "rules.yaml").read_text()
    (group,) = yaml.safe_load(rules)["groups"]
    assert [rule["alert"] for rule in group["rules"]] == [alert.name for alert in ALERTS]
    assert 'namespace="rlhf-system"' in rules


@pytest.mark.parametrize("major", [3, 4])
def test_the_charts_page_renders_it_for_its_namespace(major: int, tmp_path: Path) -> None:
    told = run(commands("charts/rlhf-operator/README.md", "helm template"), tmp_path, major)
    objects = [each for each in yaml.load_all(told, yaml.CSafeLoader) if each]
    kinds = {each["kind"] for each in objects}
    assert {"Deployment", "PrometheusRule"} <= kinds
    assert "Pod" not in kinds
    assert {each["metadata"].get("namespace", "rlhf-system") for each in objects} == {"rlhf-system"}
