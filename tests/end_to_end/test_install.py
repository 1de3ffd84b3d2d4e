"""The chart on nodes: Helm 3 and 4, beside the operator of the other tests."""

import subprocess
from uuid import uuid4

import pytest
from cluster.kube_fixtures import RESTRICTED, Cluster
from cluster.tools import helm

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("major", [3, 4])
def test_it_runs_in_a_restricted_namespace_and_leaves_no_lease(
    cluster: Cluster, major: int
) -> None:
    namespace = f"ops-{uuid4().hex[:8]}"
    cluster.kubectl("create", "namespace", namespace)
    cluster.kubectl("label", "namespace", namespace, RESTRICTED)
    place = [f"--kubeconfig={cluster.kubeconfig}", f"--namespace={namespace}"]
    values = [*cluster.chart_values, "crds.enabled=false", f"watch.namespaces={{{namespace}}}"]
    settings = [part for value in values for part in ("--set", value)]
    program = [str(helm(major)), *place]
    try:
        install = ["install", "second", str(cluster.chart), "--wait", "--timeout=4m"]
        _run([*program, *install, *settings])
        leases = ("get", "leases", "-n", namespace, "-o", "name")
        assert cluster.kubectl(*leases).stdout.strip() == (
            "lease.coordination.k8s.io/second-rlhf-operator"
        )
        _run([*program, "uninstall", "second", "--wait"])
        cluster.kubectl(
            *("wait", "-n", namespace, "--for=delete", "--timeout=120s"),
            "lease/second-rlhf-operator",
        )
    finally:
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
