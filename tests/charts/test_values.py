"""What Helm 3 and Helm 4 say of wrong values: the key, by its name."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from chart_renders import REQUIRED, rendered, run_helm, values_of
from releases import CHART, set_options

DIGEST = f"sha256:{'0a' * 32}"

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


def of_nodes(condition: dict[str, Any]) -> dict[str, Any]:
    """Affinity to the nodes that meet a condition."""
    terms = {"nodeSelectorTerms": [{"matchExpressions": [condition]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def apart(selector: dict[str, Any]) -> dict[str, Any]:
    """Affinity away from the pods that are selected."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}
    preferred = [{"weight": 1, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


SPREAD = {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}

REFUSED = {
    "metrics.podMonitor.interval": ["1m1m", "30s1m", "1ms1s", "30", "1 m", "-1s", "9999999s", ""],
    "metrics.serviceMonitor.scrapeTimeout": ["10", "5s1m"],
    "prometheusRule.alerts.NonFinite.for": ["5min", "1s1s", ""],
    "prometheusRule.alerts.NonFinite.threshold": [-1, "3"],
    "prometheusRule.alerts.KLAboveLimit.threshold": [-0.5],
    "prometheusRule.alerts.OperatorLagging.threshold": [-60],
    "prometheusRule.alerts.ProgressStalled.threshold": [0, -5, 1e9],
    "prometheusRule.alerts.PendingTooLong.threshold": [0, 1e9],
    "prometheusRule.alerts.CheckpointStale.threshold": [0, 0.5, 1e9],
    "prometheusRule.alerts.RestartStorm.threshold": [0, 1e9],
    "prometheusRule.alerts.NonFinite.severity": ["", "very bad", "-", 1],
    "prometheusRule.runbookBaseUrl": ["", "https://example.com/runbook.md#top", "a page"],
    "watch.namespaces": [["team-a", "team-a"]],
    "grafana.alerts.datasourceUid": [""],
    "grafana.alerts.folder": [""],
    "networkPolicy.apiServer.cidrs": [
        ["192.0.2.1"],
        ["api.example.com/32"],
        ["192.0.2.1/33"],
        ["2001:db8::/129"],
        ["999.0.0.1/32"],
        ["192.0.2.256/32"],
    ],
    "networkPolicy.ingressFrom": [
        ["monitoring"],
        [{"namespace": "monitoring"}],
        [{}],
        [{"ipBlock": {"cidr": "10.0.0.1"}}],
        [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.1"]}}],
        [{"ipBlock": {"except": ["192.0.2.1/32"]}}],
        [{"podSelector": {"app": "prometheus"}}],
        [{"podSelector": {"matchLabels": {"a": 20241125}}}],
        [{"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "in"}]}}],
    ],
    "networkPolicy.extraEgress": [
        [{"to": [{"ipBlock": {"cidr": "10.0.0.1"}}]}],
        [{"ports": [{"protocol": "tcp", "port": 3128}]}],
        [{"ports": [{"port": 70000}]}],
        [{"from": []}],
    ],
    "tolerations": [
        [{"effect": "noexecute", "operator": "Exists"}],
        [{"effect": "NoExecute", "operator": "exists"}],
        [{"key": "a", "value": True}],
        [{"key": "a", "tolerationSeconds": "30"}],
        [{"keys": "a"}],
        [{"key": "a", "operator": "Exists", "value": "b"}],
        [{"key": "a", "tolerationSeconds": 30}],
        [{"key": "a", "effect": "NoSchedule", "tolerationSeconds": 30}],
        [{"value": "b"}],
        [{}],
    ],
    "affinity": [
        {"nodeaffinity": {}},
        of_nodes({"key": "a", "operator": "In", "values": [1_000_000]}),
        of_nodes({"key": "a", "operator": "Equals", "values": ["b"]}),
        of_nodes({"operator": "Exists"}),
        apart({"matchLabels": {"a": 1}}),
        apart({"matchExpressions": [{"key": "a", "operator": "In", "values": [True]}]}),
    ],
    "topologySpreadConstraints": [
        [SPREAD | {"whenUnsatisfiable": "sometimes"}],
        [SPREAD | {"maxSkew": 0}],
        [SPREAD | {"labelSelector": {"matchLabels": {"a": 20241125}}}],
        [{"maxSkew": 1}],
    ],
    "extraEnv": [
        ["A=1"],
        [{"value": "1"}],
        [{"name": "PORT", "value": 3128}],
        [{"name": "A", "values": "1"}],
        [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "a", "key": 1}}}],
        [{"name": "RLHF_OPERATOR_WORKERS", "value": "8"}],
        [{"name": "POD_ID", "value": "a"}],
        [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}],
        [{"name": "A", "valueFrom": {}}],
        [{"name": "A", "valueFrom": {"secretKey": {"name": "a", "key": "b"}}}],
        [{"name": "A", "valueFrom": {"fieldRef": {}, "secretKeyRef": {}}}],
    ],
    "extraVolumes": [
        [{"emptyDir": {}}],
        [{"name": "config", "emptyDir": {}}],
        [{"name": "A"}],
        [{"name": "a", "secret": {"secretName": 20241125}}],
        [{"name": "a"}],
        [{"name": "a", "secrets": {"secretName": "b"}}],
        [{"name": "a", "emptyDir": {}, "secret": {"secretName": "b"}}],
    ],
    "extraVolumeMounts": [
        [{"name": "tmp"}],
        [{"name": "a", "mountPath": "/tmp"}],
        [{"name": "a", "mountPath": "/etc/rlhf-operator/"}],
        [{"name": "a", "mountPath": "tmp"}],
        [{"name": "a", "mountPath": "/a:b"}],
        [{"name": "a", "mountPath": "/a", "readonly": True}],
    ],
    "image.repository": ["registry.test/Operator", "registry.test//operator", "a b", "https://a/b"],
    "image.tag": [".1", "a b", "1:2", "x" * 129],
    "image.digest": ["sha256:0", "0a" * 32, DIGEST.upper()],
    "trainerImage": [
        "registry.test/Trainer:1",
        "registry.test/trainer:",
        "registry.test/t@sha256:0",
    ],
    "imagePullSecrets": [[{"name": ""}], [{"name": "Registry"}]],
    "serviceAccount.name": ["Trained", "a/b", "-"],
    "priorityClassName": ["High", "a b"],
    "commonLabels": [
        {"app.kubernetes.io/name": "x"},
        {"app.kubernetes.io/managed-by": "rlhf-operator"},
        {"helm.sh/chart": "x"},
        {"a b": "x"},
        {"a": "x y"},
        {"a": "x" * 64},
    ],
    "podLabels": [{"app.kubernetes.io/instance": "x"}, {"a": "-"}, {"/a": "b"}],
    "commonAnnotations": [
        {"helm.sh/hook": "test"},
        {"helm.sh/resource-policy": "keep"},
        {"meta.helm.sh/release-name": "x"},
        {"": "x"},
    ],
    "podAnnotations": [{"checksum/config": "x"}],
    "resources": [{"limit": {}}, {"limits": {"cpu": "1 core"}}, {"requests": {"memory": -1}}],
    "podSecurityContext": [
        {"runAsuser": 1000},
        {"readOnlyRootFilesystem": True},
        {"seccompProfile": "RuntimeDefault"},
        {"seccompProfile": {"type": "runtimeDefault"}},
        {"fsGroupChangePolicy": "Never"},
        {"supplementalGroups": [None]},
    ],
    "podSecurityContext.runAsUser": ["10001", -1, 1.5],
    "securityContext": [
        {"readOnlyRootFileSystem": True},
        {"fsGroup": 1000},
        {"capabilities": {"drop": "ALL"}},
        {"capabilities": ["ALL"]},
    ],
    "securityContext.readOnlyRootFilesystem": ["true"],
}
"""Values that no installation can mean, by key."""

TAKEN = {
    "metrics.podMonitor.interval": ["1h", "1m30s", "1m0s", "90s", "1d12h", "100000ms"],
    "prometheusRule.alerts.NonFinite.for": ["0s", "1w", "1y2w3d4h5m6s7ms"],
    "prometheusRule.alerts.NonFinite.threshold": [0, 2],
    "prometheusRule.alerts.KLAboveLimit.threshold": [0.5, None],
    "prometheusRule.alerts.CheckpointStale.threshold": [1, 86400],
    "prometheusRule.alerts.RestartStorm.threshold": [1],
    "prometheusRule.alerts.NonFinite.severity": ["page", "sev-1", "P1"],
    "networkPolicy.apiServer.cidrs": [["192.0.2.1/32", "255.249.199.0/8", "2001:db8::/64"]],
    "networkPolicy.ingressFrom": [
        [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.1/32"]}}],
        [{"podSelector": {}, "namespaceSelector": {}}],
    ],
    "image.repository": ["operator", "a/b/c-d_e.f/g__h", "[2001:db8::1]:5000/a", "Registry/a"],
    "image.tag": ["1", "_a", "x" * 128],
    "image.digest": ["", DIGEST, f"sha512:{'0a' * 64}"],
    "commonLabels": [{"a": ""}, {"example.com/cost-center": "0042"}, {"team": "a.b_c-D"}],
    "podLabels": [{"app.kubernetes.io/version": "1"}, {"sidecar.istio.io/inject": "false"}],
    "commonAnnotations": [{"a": "two\nlines: {}"}, {"example.com/A_b": ""}],
    "extraVolumeMounts": [[{"name": "tmp", "mountPath": "/tmp/a", "subPath": "a"}]],
    "networkPolicy.extraEgress": [
        [{}],
        [{"to": [{"podSelector": {}}], "ports": [{"protocol": "UDP", "port": "dns"}]}],
        [{"ports": [{"port": 3128, "endPort": 3130}]}],
    ],
    "tolerations": [
        [],
        [{"operator": "Exists"}, {"key": "a", "value": "", "effect": ""}],
        [{"operator": "Exists", "value": "", "effect": "NoExecute", "tolerationSeconds": 30}],
    ],
    "affinity": [
        {},
        of_nodes({"key": "a", "operator": "Gt", "values": ["1000000"]}),
        apart({"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
    ],
    "topologySpreadConstraints": [
        [SPREAD | {"minDomains": 2, "nodeTaintsPolicy": "Honor", "matchLabelKeys": ["a"]}],
        [SPREAD | {"labelSelector": {"matchLabels": {"a": "20241125", "b": ""}}}],
    ],
    "extraVolumes": [
        [{"name": "a", "secret": {"secretName": "b", "defaultMode": 256}}],
        [{"name": "a", "emptyDir": {}}, {"name": "b", "projected": {"sources": []}}],
    ],
    "resources": [{}, {"limits": {"cpu": 0.5, "memory": 1e9, "nvidia.com/gpu": "1"}}],
    "resources.requests": [{"cpu": "1e3", "memory": "1.5Gi"}],
    "podSecurityContext": [
        None,
        {"runAsUser": None, "fsGroup": 0},
        {"seccompProfile": None, "supplementalGroups": [1000], "sysctls": []},
        {"seccompProfile": {"type": "Localhost", "localhostProfile": "a.json"}},
    ],
    "securityContext": [
        None,
        {"runAsUser": 1000},
        {"capabilities": None},
        {"capabilities": {"drop": None, "add": ["NET_BIND_SERVICE"]}},
    ],
    "extraEnv": [[{"name": "A"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}]],
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
        # Helm 3: a.b.c; Helm 4: /a/b/c
        assert key in done.stderr.replace("/", "."), value


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
