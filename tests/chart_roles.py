"""The rights that the chart gives to the operator, for a user of a test."""

import subprocess
from pathlib import Path
from typing import Any

import yaml
from cluster.kube_fixtures import Access
from cluster.tools import helm
from kubernetes import client

CHART = Path(__file__).parents[1] / "charts" / "rlhf-operator"
RELEASE = "limited"


def rendered(release: str, watched: str, home: str) -> list[dict[str, Any]]:
    """The chart's objects for a release in `home` that watches one namespace."""
    values = (
        f"watch.namespaces={{{watched}}}",
        "image.repository=registry.test/operator",
        "trainerImage=registry.test/trainer:1",
        "crds.enabled=false",
    )
    settings = [part for value in values for part in ("--set", value)]
    command = [str(helm()), "template", release, str(CHART), "--namespace", home, *settings]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    return [found for found in yaml.safe_load_all(text) if found]


def grant(access: Access, watched: str, home: str) -> None:
    """Give the chart's Roles of a watched namespace to the user `user-<home>`.

    Args:
        access: to the API server.
        watched: the namespace.
        home: the operator's own.
    """
    rbac = client.RbacAuthorizationV1Api(access.api)
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"user-{home}"}
    for found in rendered(RELEASE, watched, home):
        if found["metadata"].get("namespace") != watched:
            continue
        if found["kind"] == "Role":
            rbac.create_namespaced_role(watched, found)
        if found["kind"] == "RoleBinding":
            rbac.create_namespaced_role_binding(watched, found | {"subjects": [user]})
