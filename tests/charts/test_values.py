"""What Helm 3 and Helm 4 say of wrong values: the key, by its name."""

import json
from pathlib import Path
from typing import Any

import pytest
from chart_renders import REQUIRED, run_helm
from releases import CHART, set_options

TYPOS = {
    "imgae.tag": "imgae",
    "image.tga": "tga",
    "config.worker": "worker",
    "metrics.serviceMonitor.enable": "enable",
    "metrics.podMonitors.enabled": "podMonitors",
    "prometheusRule.alert.NonFinite.enabled": "alert",
    "prometheusRule.alerts.NonFinites.enabled": "NonFinites",
    "prometheusRule.alerts.NonFinite.thresholds": "thresholds",
    "grafana.dashboard.label": "label",
    "networkPolicy.apiServer.port": "port",
    "livenessProbe.period": "period",
}

WRONG: dict[str, tuple[Any, str]] = {
    "replicas": ("two", "replicas"),
    "config": ({"workers": 1000}, "workers"),
    "logLevel": ("TRACE", "logLevel"),
    "watch": ({"namespaces": ["Team_A"]}, "namespaces"),
    "metrics": ({"podMonitor": {"interval": "often"}}, "interval"),
    "podLabels": ({"canary": True}, "canary"),
    "imagePullSecrets": (["registry"], "imagePullSecrets"),
}


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.mark.parametrize("key", TYPOS)
def test_an_unknown_key_is_refused_by_its_name(major: int, key: str) -> None:
    settings = set_options(*REQUIRED, f"{key}=1")
    done = run_helm(major, "template", "demo", str(CHART), *settings)
    assert done.returncode != 0
    # Helm 3: Additional property x is not allowed; Helm 4: additional properties 'x' not allowed
    assert "not allowed" in done.stderr
    assert TYPOS[key] in done.stderr


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_refused_with_its_key(major: int, key: str, tmp_path: Path) -> None:
    value, named = WRONG[key]
    path = tmp_path / "values.json"
    path.write_text(json.dumps({key: value}))
    given = [*set_options(*REQUIRED), "--values", str(path)]
    done = run_helm(major, "template", "demo", str(CHART), *given)
    assert done.returncode != 0
    assert "schema" in done.stderr
    assert named in done.stderr


def test_a_parent_chart_can_depend_on_it(major: int, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    (parent / "charts").mkdir(parents=True)
    (parent / "charts" / "rlhf-operator").symlink_to(CHART)
    chart = {"apiVersion": "v2", "name": "parent", "version": "1.0.0"}
    condition = {"name": "rlhf-operator", "version": "*", "condition": "rlhf-operator.enabled"}
    (parent / "Chart.yaml").write_text(json.dumps(chart | {"dependencies": [condition]}))
    given = {"global": {"registry": "x"}, "rlhf-operator": {"enabled": True}}
    (parent / "values.yaml").write_text(json.dumps(given))
    settings = set_options(*(f"rlhf-operator.{each}" for each in REQUIRED))
    done = run_helm(major, "template", "demo", str(parent), *settings)
    assert done.returncode == 0, done.stderr
    assert "kind: Deployment" in done.stdout
