"""The operator with no more rights than the chart gives it."""

import subprocess
from pathlib import Path

import pytest
import yaml
from cluster.kube_fixtures import Access
from cluster.tools import helm
from kubernetes import client
from operating import Jobs, OperatorProcess, eventually

CHART = Path(__file__).parents[3] / "charts" / "rlhf-operator"


@pytest.fixture
def limited(control_plane: Access, namespace: str) -> Path:
    """Kubeconfig of a user who has the chart's Roles in the namespace."""
    if control_plane.own is None:
        pytest.skip("needs a control plane of our own to make a user")
    values = (
        f"watch.namespaces={{{namespace}}}",
        "image.repository=registry.test/operator",
        "trainerImage=registry.test/trainer:1",
        "crds.enabled=false",
    )
    settings = [part for value in values for part in ("--set", value)]
    command = [str(helm()), "template", "limited", str(CHART), "--namespace", namespace, *settings]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    rbac = client.RbacAuthorizationV1Api(control_plane.api)
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"user-{namespace}"}
    for found in filter(None, yaml.safe_load_all(text)):
        if found["kind"] == "Role":
            rbac.create_namespaced_role(namespace, found)
        if found["kind"] == "RoleBinding":
            rbac.create_namespaced_role_binding(namespace, found | {"subjects": [user]})
    return control_plane.own.kubeconfig_for(user["name"])


def test_a_job_comes_to_its_end_with_the_rights_of_the_chart(
    jobs: Jobs, limited: Path, tmp_path: Path
) -> None:
    operator = OperatorProcess(
        jobs.access,
        jobs.namespace,
        tmp_path,
        kubeconfig=str(limited),
        LEASE_NAME="limited-rlhf-operator",
    )
    try:
        operator.wait_until_leading()
        jobs.create("poor", runPolicy={"ttlSecondsAfterFinished": 3})
        jobs.run("poor")
        jobs.reaches("poor", "Running")
        jobs.patch("poor", suspend=True)
        eventually(lambda: jobs.condition("poor", "Suspended").get("status") == "True")
        jobs.patch("poor", suspend=False)
        jobs.run("poor", attempt=2)
        jobs.reaches("poor", "Running", attempt=2)
        jobs.finish("poor", attempt=2)
        gone = ("get", "-n", jobs.namespace, "rlhf/poor")
        eventually(lambda: jobs.access.kubectl(*gone, check=False).returncode == 1)
    finally:
        assert operator.end() == 0
    log = operator.log.read_text()
    assert "forbidden" not in log.lower(), log
