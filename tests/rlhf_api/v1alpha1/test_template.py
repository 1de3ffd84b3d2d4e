"""The pod template goes into a pod as it was written."""

from typing import Any

from rlhf_api.v1alpha1.template import PodTemplate

FULL: dict[str, Any] = {
    "nodes": 2,
    "processesPerNode": 8,
    "resources": {"limits": {"nvidia.com/gpu": "8"}, "requests": {"memory": "64Gi"}},
    "nodeSelector": {"gpu": "h200"},
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}
                ]
            },
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 10,
                    "preference": {
                        "matchFields": [
                            {"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}
                        ]
                    },
                }
            ],
        },
        "podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {
                    "topologyKey": "topology.kubernetes.io/zone",
                    "labelSelector": {"matchLabels": {"app": "cache"}},
                    "namespaces": ["shared"],
                }
            ]
        },
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {
                    "weight": 1,
                    "podAffinityTerm": {
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {
                            "matchExpressions": [{"key": "app", "operator": "Exists"}]
                        },
                        "namespaceSelector": {},
                    },
                }
            ]
        },
    },
    "env": [{"name": "HF_HOME", "value": "/cache"}],
    "envFrom": [{"secretRef": {"name": "hub"}, "prefix": "HUB_"}],
    "volumes": [
        {"name": "cache", "emptyDir": {"sizeLimit": "10Gi"}},
        {"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
        {"name": "settings", "configMap": {"name": "settings", "optional": True}},
        {"name": "token", "secret": {"secretName": "token"}},
    ],
    "volumeMounts": [
        {"name": "cache", "mountPath": "/cache"},
        {"name": "data", "mountPath": "/data", "subPath": "rows", "readOnly": True},
    ],
    "securityContext": {
        "runAsUser": 1000,
        "runAsGroup": 1000,
        "runAsNonRoot": True,
        "fsGroup": 1000,
        "fsGroupChangePolicy": "OnRootMismatch",
        "supplementalGroups": [44],
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "serviceAccountName": "trainer",
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "batch",
    "runtimeClassName": "nvidia",
    "labels": {"team": "alignment"},
    "annotations": {"example.com/note": "any text at all: 1, 2"},
    "terminationGracePeriodSeconds": 600,
}


def test_round_trip() -> None:
    assert PodTemplate.model_validate(FULL).to_document() == FULL


def test_the_example_uses_every_field() -> None:
    assert set(FULL) == {info.alias for info in PodTemplate.model_fields.values()}
