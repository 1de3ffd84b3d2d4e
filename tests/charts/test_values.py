"""What Helm 3 and Helm 4 say of wrong values: the key, by its name."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from chart_renders import REQUIRED, rendered, run_helm, values_of
from releases import CHART, set_options
from value_cases import DIGEST, REFUSED, TAKEN

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

SENTENCES = {
    "image.repository=registry.test:5000/operator:1": (
        "image.repository is registry.test:5000/operator:1, with a tag or digest: leave that away"
    ),
    f"image.repository=registry.test/operator@{DIGEST}": f"operator@{DIGEST}, with a tag or digest",
    "trainerImage=registry.test:5000/trainer": (
        "trainerImage is registry.test:5000/trainer, without a tag: name it with its tag or digest"
    ),
    "serviceAccount.create=false": (
        "serviceAccount.create is false and serviceAccount.name is empty: name the ServiceAccount"
    ),
    "extraVolumeMounts[0].name=keys,extraVolumeMounts[0].mountPath=/keys": (
        "extraVolumeMounts has keys at /keys, and extraVolumes no volume of that name: add it"
    ),
    "extraEnv[0].name=A,extraEnv[0].value=x,extraEnv[1].name=A,extraEnv[1].value=y": (
        "extraEnv has A twice as name: leave one of them out"
    ),
    "extraVolumes[0].name=a,extraVolumes[0].secret.secretName=b,"
    "extraVolumes[1].name=a,extraVolumes[1].secret.secretName=c": "has a twice as name",
    "extraVolumes[0].name=a,extraVolumes[0].secret.secretName=b,"
    "extraVolumeMounts[0].name=a,extraVolumeMounts[0].mountPath=/a,"
    "extraVolumeMounts[1].name=a,extraVolumeMounts[1].mountPath=/a": (
        "extraVolumeMounts has /a twice as mountPath: leave one of them out"
    ),
    "resources.requests.memory=1Gi": (
        "resources.requests.memory is 1Gi, above resources.limits.memory, which is 512Mi, and no "
        "pod may ask for that: lower the first or raise the second"
    ),
    "resources.limits.memory=100M": (
        "resources.requests.memory is 192Mi, above resources.limits.memory, which is 100M"
    ),
    "resources.limits.cpu=0.05": "resources.requests.cpu is 100m, above resources.limits.cpu",
    "podSecurityContext.runAsUser=0": "podSecurityContext.runAsUser is 0, root, and",
    "securityContext.runAsUser=0": "securityContext.runAsUser is 0, root, and runAsNonRoot is true",
    "metrics.podMonitor.interval=0s": "metrics.podMonitor.interval is 0s: take a time above 0",
    "metrics.podMonitor.scrapeTimeout=0m0s": "metrics.podMonitor.scrapeTimeout is 0m0s: take a",
    "metrics.podMonitor.scrapeTimeout=1m": (
        "metrics.podMonitor.scrapeTimeout is 1m, longer than metrics.podMonitor.interval, "
        "which is 30s"
    ),
    "metrics.serviceMonitor.interval=9s999ms": (
        "metrics.serviceMonitor.scrapeTimeout is 10s, longer than metrics.serviceMonitor.interval, "
        "which is 9s999ms"
    ),
}
"""What is told of values that a schema cannot judge, or says too little about."""

FIT = [
    "serviceAccount.create=false,serviceAccount.name=trained",
    "podSecurityContext.runAsUser=0,podSecurityContext.runAsNonRoot=false",
    "podSecurityContext.runAsUser=0,securityContext.runAsUser=1000",
    "podSecurityContext.runAsUser=0,securityContext.runAsNonRoot=false",
    "image.repository=registry.test:5000/operator",
    f"trainerImage=registry.test/trainer@{DIGEST}",
    f"trainerImage=registry.test:5000/trainer:1@{DIGEST}",
    f"image.tag=0.1.0@{DIGEST}",
    "resources.requests.memory=512Mi",
    "resources.requests.memory=1Gi,resources.limits.memory=null",
    "resources.requests.memory=1Gi,resources.limits.memory=2e9",
    "resources.requests.memory=1Gi,resources.limits.memory=1073741824",
    "resources.requests.cpu=700m,resources.limits.cpu=0.7",
    "resources.requests.cpu=3,resources.limits.cpu=1E",
    "resources.limits=null",
    "metrics.podMonitor.scrapeTimeout=30s",
    "metrics.podMonitor.scrapeTimeout=0m30000ms",
    "metrics.podMonitor.interval=010s",
    "metrics.podMonitor.interval=1w",
]


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


def nested(key: str, value: Any) -> Any:
    """A value under its key with points."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def run_with(major: int, folder: Path, values: Any) -> subprocess.CompletedProcess[str]:
    """Helm's answer to values of a file."""
    path = folder / "values.json"
    path.write_text(json.dumps(values))
    given = [f"--values={values_of('default')}", f"--values={path}"]
    given.append("--show-only=templates/service.yaml")
    return run_helm(major, "template", "demo", str(CHART), *given)


@pytest.mark.parametrize("key", REFUSED)
def test_what_no_installation_can_mean_is_refused(major: int, key: str, tmp_path: Path) -> None:
    for value in REFUSED[key]:
        done = run_with(major, tmp_path, nested(key, value))
        assert done.returncode != 0, value
        assert "schema" in done.stderr
        lines = [line for line in done.stderr.splitlines() if line.strip().startswith("- ")]
        assert lines, value
        # Helm 3: a.b.c; Helm 4: /a/b/c
        assert all(key in line.replace("/", ".") for line in lines), (value, lines)


@pytest.mark.parametrize("key", TAKEN)
def test_what_an_installation_can_mean_is_taken(major: int, key: str, tmp_path: Path) -> None:
    for value in TAKEN[key]:
        done = run_with(major, tmp_path, nested(key, value))
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("value", SENTENCES)
def test_what_does_not_fit_is_told_in_a_sentence(major: int, value: str) -> None:
    done = run_helm(major, "template", "demo", str(CHART), *set_options(*REQUIRED, value))
    assert done.returncode != 0
    assert SENTENCES[value] in done.stderr


@pytest.mark.parametrize("value", FIT)
def test_what_fits_is_taken(major: int, value: str) -> None:
    assert rendered(major, value)


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
