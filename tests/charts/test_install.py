"""The chart's way through a real API server: install, upgrade, uninstall, install again."""

import json
from collections.abc import Iterator

import pytest
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import Access
from releases import CHART, Release, set_options
from waiting import eventually

REGISTRY = "registry.example.com/rlhf"
VALUES = ("image.repository=" + REGISTRY + "/operator", f"trainerImage={REGISTRY}/trainer:0.1.0")
JOB = {
    "apiVersion": "rlhf.dev/v1alpha1",
    "kind": "RLHFJob",
    "metadata": {"name": "survivor"},
    "spec": {
        "suspend": True,
        "stages": {"sft": {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}},
    },
}


def install(release: Release) -> str:
    """As docs/install.md has it; the CRD of the control plane is taken over."""
    options = ("--create-namespace", "--take-ownership", *set_options(*VALUES))
    return release.helm("install", str(CHART), *options)


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def release(
    request: pytest.FixtureRequest, control_plane: Access, own_control_plane: ControlPlane
) -> Iterator[Release]:
    """A release that is not installed yet; not on a cluster where another one may live."""
    found = Release(int(request.param), control_plane)
    yield found
    control_plane.kubectl("delete", "namespace", found.namespace, "--wait=false")


def test_it_is_installed_upgraded_and_removed(
    release: Release, control_plane: Access, namespace: str
) -> None:
    told = install(release)
    assert f"kubectl -n {release.namespace} rollout status deployment/{release.deployment}" in told
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", text=json.dumps(JOB))
    release.helm(
        "upgrade", str(CHART), "--reset-then-reuse-values", "--set", "image.tag=0.2.0,replicas=2"
    )
    image = release.get(
        *("deployment", release.deployment),
        *("-o", "jsonpath={.spec.template.spec.containers[0].image}"),
    )
    assert image == f"{REGISTRY}/operator:0.2.0"
    release.helm("uninstall")
    assert release.get("deployments,serviceaccounts,roles", "-o", "name").split() == [
        "serviceaccount/default"
    ]
    crd = control_plane.kubectl("get", "crd", "rlhfjobs.rlhf.dev", "-o", "json").stdout
    assert "deletionTimestamp" not in json.loads(crd)["metadata"]
    assert "survivor" in control_plane.kubectl("get", "rlhf", "-n", namespace).stdout
    install(release)
    release.helm("uninstall")


def test_a_restricted_namespace_admits_its_pod(release: Release, control_plane: Access) -> None:
    control_plane.kubectl("create", "namespace", release.namespace)
    label = "pod-security.kubernetes.io/enforce=restricted"
    control_plane.kubectl("label", "namespace", release.namespace, label)
    install(release)
    pods = "jsonpath={.items[*].spec.containers[0].image}"
    control_plane.kubectl(
        "wait", "-n", release.namespace, "--for=create", "--timeout=30s", "pod",
        "-l", "app.kubernetes.io/name=rlhf-operator",
    )  # fmt: skip
    assert release.get("pods", "-o", pods) == f"{REGISTRY}/operator:0.1.0"
    release.helm("uninstall")


def test_users_of_a_namespace_may_use_jobs(
    release: Release, control_plane: Access, namespace: str
) -> None:
    install(release)

    def may(verb: str, role: str) -> bool:
        user = ("--as", f"{role}-of-{namespace}", "-n", namespace)
        asked = ("auth", "can-i", verb, "rlhfjobs.rlhf.dev", *user)
        return control_plane.kubectl(*asked, check=False).stdout.strip() == "yes"

    for role in ("edit", "view"):
        user = f"--user={role}-of-{namespace}"
        binding = ("create", "rolebinding", role, f"--clusterrole={role}", user)
        control_plane.kubectl(*binding, "-n", namespace)
    eventually(lambda: may("list", "view") and may("create", "edit"))
    assert not may("create", "view")
    release.helm("uninstall")
    eventually(lambda: not may("list", "view") and not may("create", "edit"))
