"""Fixtures of a real API server, registered in the root conftest."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from cluster import packages
from cluster.control_plane import ControlPlane
from cluster.images import image
from cluster.nodes import NodeCluster, state_folder
from cluster.tools import KUBECTL, helm
from kubernetes import client, config

EXISTING = "RLHF_TEST_KUBECONFIG"
"""Environment variable that names the kubeconfig of a cluster to use in place of our own."""

SYSTEM = "rlhf-system"
"""Namespace of the operator."""

CRD = Path(__file__).parents[2] / "crds" / "rlhfjobs.yaml"


@dataclass(frozen=True)
class Access:
    """How to reach an API server as its administrator.

    Attributes:
        kubeconfig: for processes.
        api: for requests of the tests.
        own: the control plane, if it is one of ours; only then are requests counted.
    """

    kubeconfig: Path
    api: client.ApiClient
    own: ControlPlane | None = None

    def kubectl(
        self, *arguments: str, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl with `text` as its input."""
        done = subprocess.run(
            [str(KUBECTL), f"--kubeconfig={self.kubeconfig}", *arguments],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done


def access_by(kubeconfig: Path, own: ControlPlane | None = None) -> Access:
    """Access to a cluster in which our CRD is installed."""
    access = Access(kubeconfig, config.new_client_from_config(str(kubeconfig)), own)
    access.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    deadline = time.monotonic() + 10
    while access.kubectl("get", "rlhfjobs", "-A", check=False).returncode:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return access


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    """An API server with our CRD, and the controllers of Kubernetes."""
    if given := os.environ.get(EXISTING):
        yield access_by(Path(given))
        return
    with ControlPlane(tmp_path_factory.mktemp("control-plane")) as running:
        access = access_by(running.kubeconfig, running)
        yield access
        access.api.close()


@dataclass(frozen=True)
class Cluster(Access):
    """A cluster with nodes, in which the operator is installed from its chart.

    Attributes:
        trainer_image: what training pods run.
        nodes: the cluster itself, if it is ours; only then can a node be lost.
    """

    trainer_image: str = ""
    nodes: NodeCluster | None = None


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, and the operator installed by Helm from images that were built from here."""
    if given := os.environ.get(EXISTING):
        images = [os.environ[f"RLHF_TEST_{name}_IMAGE"] for name in ("OPERATOR", "TRAINER")]
        yield _installed(Path(given), images, None)
        return
    if reason := packages.reason_against():
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with NodeCluster(state_folder()) as running:
        images = []
        for target in ("operator", "trainer"):
            name, archive = image(target)
            running.load_image(archive)
            images.append(name)
        found = _installed(running.kubeconfig, images, running)
        yield found
        found.api.close()


def _installed(kubeconfig: Path, images: list[str], nodes: NodeCluster | None) -> Cluster:
    """The chart, installed by Helm as a user would."""
    operator_image, trainer_image = images
    repository, _, tag = operator_image.rpartition(":")
    values = {
        "image.repository": repository,
        "image.tag": tag,
        "trainerImage": trainer_image,
        "resources.requests.cpu": "10m",
    }
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    command = [str(helm()), f"--kubeconfig={kubeconfig}", "upgrade", "--install", "rlhf-operator"]
    chart = CRD.parents[1] / "charts" / "rlhf-operator"
    place = ["--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "2m"]
    done = subprocess.run(
        [*command, str(chart), *place, *settings], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    api = config.new_client_from_config(str(kubeconfig))
    return Cluster(kubeconfig, api, nodes, trainer_image=trainer_image, nodes=nodes)


@pytest.fixture
def own_control_plane(control_plane: Access) -> ControlPlane:
    """The control plane itself, whose requests are counted."""
    if control_plane.own is None:
        pytest.skip(f"{EXISTING} names a cluster whose requests cannot be counted")
    return control_plane.own


@pytest.fixture
def namespace(control_plane: Access) -> Iterator[str]:
    """A namespace of the test's own."""
    yield from new_namespace(control_plane)


def new_namespace(access: Access) -> Iterator[str]:
    """A namespace for as long as the iterator lives."""
    core = client.CoreV1Api(access.api)
    name = f"test-{uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    # Made by a controller a moment later; no pod is admitted before.
    deadline = time.monotonic() + 10
    while not core.list_namespaced_service_account(name).items:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield name
    core.delete_namespace(name)
