"""The operator with no more rights than the chart gives it."""

from pathlib import Path

import pytest
from chart_roles import grant
from cluster.kube_fixtures import Access
from operating import Jobs, OperatorProcess, eventually


@pytest.fixture
def limited(control_plane: Access, namespace: str) -> Path:
    """Kubeconfig of a user who has the chart's Roles in the namespace."""
    if control_plane.own is None:
        pytest.skip("needs a control plane of our own to make a user")
    grant(control_plane, namespace, namespace)
    return control_plane.own.kubeconfig_for(f"user-{namespace}")


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
        # What the stopped attempt has left was removed.
        left = jobs.core.list_namespaced_config_map(jobs.namespace).items
        assert "poor-sft-1" not in [each.metadata.name for each in left]
        jobs.finish("poor", attempt=2)
        gone = ("get", "-n", jobs.namespace, "rlhf/poor")
        eventually(lambda: jobs.access.kubectl(*gone, check=False).returncode == 1)
    finally:
        assert operator.end() == 0
    log = operator.log.read_text()
    assert "forbidden" not in log.lower(), log
