"""Values of the chart that it refuses, and values that it takes, by key."""

from typing import Any

DIGEST = f"sha256:{'0a' * 32}"


def of_nodes(condition: dict[str, Any]) -> dict[str, Any]:
    """Affinity to the nodes that meet a condition."""
    terms = {"nodeSelectorTerms": [{"matchExpressions": [condition]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def apart(selector: dict[str, Any]) -> dict[str, Any]:
    """Affinity away from the pods that are selected."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": selector}
    preferred = [{"weight": 1, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


HIDING = (
    *("/", "//", "/usr", "/usr/", "//usr", "/usr/local", "/usr/bin", "/usr/local//lib/python3.11"),
    *("/bin", "/lib", "/lib64/x", "/opt", "/opt/rlhf", "/opt/rlhf/app", "/etc", "/proc/1", "/sys"),
    *("/dev", "/dev/shm", "/var", "/run", "/var/run", "/var/run/secrets", "/etc/rlhf-operator/a"),
    *("/run/secrets/kubernetes.io", "/var/run/secrets/kubernetes.io/serviceaccount/token"),
    *("/data/../usr", "/data/..", "/./usr", "/."),
)
"""Where a volume would hide the program, or what the chart and the cluster mount."""
BESIDE = (
    *("/data", "/usr2", "/usr/share/zoneinfo", "/usr/local/share/ca-certificates", "/opt/keys"),
    *("/etc/ssl/certs", "/home/rlhf/.kube", "/var/run/secrets/tokens", "/run/a", "/a/..b/.c"),
    *("/etc/rlhf-operators", "/library", "/opt/rlhf2"),
)
"""Where it hides nothing of them."""
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
        [":::::/64"],
        ["1.2.3:4/24"],
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
        of_nodes({"key": "a", "operator": "In"}),
        of_nodes({"key": "a", "operator": "Gt", "values": []}),
        of_nodes({"key": "a", "operator": "DoesNotExist", "values": ["b"]}),
        apart({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": []}]}),
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
        *([{"name": "a", "mountPath": path}] for path in HIDING),
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
        {"a..b/c": "x"},
        {"a.-b/c": "x"},
        {f"{'.'.join(['a' * 63] * 4)}/c": "x"},
    ],
    "podAnnotations": [{"checksum/config": "x"}],
    "resources": [{"limit": {}}, {"limits": {"cpu": "1 core"}}, {"requests": {"memory": -1}}],
    "podSecurityContext": [
        {"runAsuser": 1000},
        {"readOnlyRootFilesystem": True},
        {"seccompProfile": "RuntimeDefault"},
        {"seccompProfile": {"type": "runtimeDefault"}},
        {"seccompProfile": {"type": "Localhost"}},
        {"seccompProfile": {"type": "Localhost", "localhostProfile": None}},
        {"seccompProfile": {"type": "Localhost", "localhostProfile": ""}},
        {"appArmorProfile": {}},
        {"seccompProfile": {"type": "RuntimeDefault", "localhostProfile": "a.json"}},
        {"appArmorProfile": {"type": "Localhost"}},
        {"fsGroupChangePolicy": "Never"},
        {"supplementalGroups": [None]},
    ],
    "podSecurityContext.runAsUser": ["10001", -1, 1.5],
    "securityContext": [
        {"readOnlyRootFileSystem": True},
        {"fsGroup": 1000},
        {"capabilities": {"drop": "ALL"}},
        {"capabilities": ["ALL"]},
        {"privileged": True},
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
    "networkPolicy.apiServer.cidrs": [
        ["192.0.2.1/32", "255.249.199.0/8"],
        ["2001:db8::/64", "::/0", "::1/128", "1:2:3:4:5:6:7:8/99", "::ffff:c000:201/128"],
        ["64:ff9b::192.0.2.33/128", "1:2:3:4:5:6:192.0.2.33/128", "::192.0.2.33/128"],
    ],
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
    "extraVolumeMounts": [
        [{"name": "tmp", "mountPath": "/tmp/a", "subPath": "a"}],
        *([{"name": "tmp", "mountPath": path}] for path in BESIDE),
    ],
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
        of_nodes({"key": "a", "operator": "Exists", "values": []}),
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
    "resources.requests": [{"cpu": "1e3", "memory": ".5Gi"}, {"memory": "512.Mi"}],
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
        {"privileged": True, "allowPrivilegeEscalation": True},
        {"privileged": False},
        {"capabilities": {"drop": None, "add": ["NET_BIND_SERVICE"]}},
    ],
    "extraEnv": [[{"name": "A"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}]],
}
