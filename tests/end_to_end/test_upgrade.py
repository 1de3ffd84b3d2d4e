"""From the chart of the release 0.1.0 to this one and back while a job trains, Helm 3 and 4."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from cluster.kube_fixtures import RESTRICTED, SYSTEM, Cluster, install_operator
from cluster.tools import helm
from operating import Jobs, eventually
from releases import CHART, EARLIER, Release, everything, set_options
from training import NEVER, PATIENCE, endless, long_sft, running_with_checkpoint

pytestmark = pytest.mark.timeout(1800)

WAIT = ("--wait", "--timeout=4m")

Raw = dict[str, Any]


@pytest.fixture
def alone(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster without the operator of the other tests, which would do the tested one's work."""
    command = [str(helm()), f"--kubeconfig={cluster.kubeconfig}", "--namespace", SYSTEM]
    try:
        subprocess.run([*command, "uninstall", "rlhf-operator", "--wait"], check=True, timeout=300)
        yield cluster
    finally:
        install_operator(cluster)


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def release(request: pytest.FixtureRequest, alone: Cluster) -> Iterator[Release]:
    """A release that is not installed yet, in a namespace of the restricted standard."""
    found = Release(int(request.param), alone)
    found.create_namespace(RESTRICTED)
    yield found
    alone.kubectl("delete", "namespace", found.namespace, "--timeout=200s")


def test_a_job_trains_through_upgrade_and_rollback(
    alone: Cluster, release: Release, jobs: Jobs
) -> None:
    name = f"through-{release.major}"
    before = everything(alone, release.namespace)
    # The CRD of the other tests' release is taken over, and becomes the earlier chart's.
    options = set_options(*alone.chart_values)
    release.helm("install", str(EARLIER), "--take-ownership", *WAIT, *options)
    with endless(jobs, **{name: {"stages": long_sft(NEVER)}}):
        running_with_checkpoint(jobs, name)
        pods, lease, operators = _pods(jobs, name), _lease(release), _operators(release)
        assert lease["spec"]["holderIdentity"] in operators

        release.helm("upgrade", str(CHART), "--reset-then-reuse-values", *WAIT)
        release.helm("test", "--timeout=4m")
        operators = _goes_on(release, jobs, name, pods, lease, operators)
        release.helm("rollback", *WAIT)
        _goes_on(release, jobs, name, pods, lease, operators)
        _removed(alone, release, jobs, name, before)
        assert _pods(jobs, name) == pods


def _goes_on(
    release: Release, jobs: Jobs, name: str, pods: set[str], lease: Raw, before: set[str]
) -> set[str]:
    """A new operator has adopted the Lease and tells how the same pods go on; gives its pods."""
    eventually(lambda: not before & _operators(release), seconds=PATIENCE)
    holder = eventually(lambda: _holder(release, before), seconds=PATIENCE)
    assert holder in _operators(release)
    adopted = _lease(release)
    for key in ("uid", "ownerReferences"):
        assert adopted["metadata"][key] == lease["metadata"][key]
    # What the old operator told of them.
    step = jobs.stage(name)["progress"]["step"]
    _is_undisturbed(eventually(lambda: _beyond(jobs.stage(name), step), seconds=PATIENCE))
    assert _pods(jobs, name) == pods
    return _operators(release)


def _removed(cluster: Cluster, release: Release, jobs: Jobs, name: str, before: set[str]) -> None:
    """The release leaves nothing in the cluster, and the job, which trains on, all that it has."""
    children = everything(cluster, jobs.namespace, f"rlhf.dev/job={name}")
    kinds = {identity.partition(" ")[0] for identity in children}
    assert kinds >= {"Job", "Pod", "Service", "ConfigMap"}
    release.helm("uninstall", *WAIT)
    eventually(
        lambda: everything(cluster, release.namespace) == before,
        seconds=PATIENCE,
        what=lambda: f"left {sorted(everything(cluster, release.namespace) ^ before)}",
    )
    assert everything(cluster, selector=release.label) == set()
    assert everything(cluster, jobs.namespace, f"rlhf.dev/job={name}") == children
    # Nobody writes it any more, and the pods train on.
    assert jobs.phase(name) == "Running"
    _is_undisturbed(jobs.stage(name))
    assert {pod.status.phase for pod in jobs.pods(name)} == {"Running"}


def _is_undisturbed(stage: Raw) -> None:
    assert stage["state"] == "Running"
    assert (stage["attempt"], stage["restarts"], stage["disruptions"]) == (1, 0, 0)


def _pods(jobs: Jobs, name: str) -> set[str]:
    return {pod.metadata.uid for pod in jobs.pods(name)}


def _operators(release: Release) -> set[str]:
    """Names of the operator's pods."""
    own = ("-l", "app.kubernetes.io/name=rlhf-operator")
    return set(release.get("pods", *own, "-o", "jsonpath={.items[*].metadata.name}").split())


def _lease(release: Release) -> Raw:
    found: Raw = json.loads(release.get("lease", release.deployment, "-o", "json"))
    return found


def _holder(release: Release, before: set[str]) -> str:
    """Who leads, if it is not one of those before."""
    holder = str(_lease(release)["spec"].get("holderIdentity", ""))
    return "" if holder in before else holder


def _beyond(stage: Raw, step: int) -> Raw | None:
    return stage if stage["progress"]["step"] > step else None
