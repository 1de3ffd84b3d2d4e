"""The commands by which the pages render the chart, as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_renders import template, values_of
from cluster.monitoring import promtool
from cluster.tools import helm

from rlhf_api.names import OPERATOR_NAME, Label, Port
from rlhf_chart.alerts import ALERTS

ROOT = Path(__file__).parents[2]


def commands(page: str, first: str) -> str:
    """The one block of a page that begins with this command, as a script."""
    blocks = re.findall(r"^```console\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    (found,) = (block for block in blocks if block.startswith(f"$ {first}"))
    return re.sub(r"^\$ ", "", found, flags=re.M)


def blocks_of(page: str) -> list[dict[str, Any]]:
    """What a page shows as YAML."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [yaml.safe_load(block) for block in blocks]


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


@pytest.mark.parametrize("major", [3, 4])
def test_values_that_the_page_shows_are_taken_and_reach_the_pod(major: int, tmp_path: Path) -> None:
    values = [each for each in blocks_of("docs/install.md") if "kind" not in each]
    assert [list(each) for each in values] == [
        ["podLabels", "podAnnotations"],
        ["podSecurityContext"],
        ["extraEnv"],
    ]
    files = []
    for number, each in enumerate(values):
        files += ["--values", str(tmp_path / f"{number}.yaml")]
        (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(each))
    objects = template(major, "--values", str(values_of("default")), *files)
    (deployment,) = (each for each in objects if each["kind"] == "Deployment")
    pod = deployment["spec"]["template"]
    assert pod["metadata"]["labels"].items() >= values[0]["podLabels"].items()
    assert pod["metadata"]["annotations"].items() >= values[0]["podAnnotations"].items()
    assert not {"runAsUser", "runAsGroup"} & set(pod["spec"]["securityContext"])
    (container,) = pod["spec"]["containers"]
    assert [each for each in container["env"] if each in values[2]["extraEnv"]] == values[2][
        "extraEnv"
    ]


def test_the_policy_that_the_page_shows_lets_in_who_must_come_in() -> None:
    (policy,) = (each for each in blocks_of("docs/install.md") if "kind" in each)
    training = {"matchLabels": {Label.MANAGED_BY: OPERATOR_NAME}}
    ranks, operator = policy["spec"]["ingress"]
    assert policy["spec"]["podSelector"] == training
    assert ranks == {"from": [{"podSelector": training}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": Port.METRICS}]
    names = [each["namespaceSelector"]["matchLabels"].popitem()[1] for each in operator["from"]]
    release, prometheus = names
    assert f"--namespace {release} " in commands("docs/install.md", "helm install rlhf-operator ")
    assert f"in place of `{prometheus}`" in (ROOT / "docs/install.md").read_text()
