"""Fixtures of a real API server, registered in the root conftest."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from cluster.bounded import client_by
from cluster.control_plane import ControlPlane
from cluster.images import image
from cluster.nodes import NodeCluster, current_sandbox
from cluster.sandbox import Sandbox
from cluster.tools import KUBECTL, helm
from kubernetes import client
from waiting import eventually

EXISTING = "RLHF_TEST_KUBECONFIG"
"""Environment variable that names the kubeconfig of a cluster to use in place of our own."""

KUBECTL_SECONDS = 900
"""Longer than the longest `kubectl wait`, so that the wait itself says what did not come."""

SYSTEM = "rlhf-system"
"""Namespace of the operator."""

RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"
"""Label of a namespace that admits pods of the restricted standard alone."""

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
            timeout=KUBECTL_SECONDS,
        )
        assert not check or done.returncode == 0, done.stderr
        return done


def access_by(kubeconfig: Path, own: ControlPlane | None = None) -> Access:
    """Access to a cluster in which our CRD is installed."""
    access = Access(kubeconfig, client_by(kubeconfig), own)
    access.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    found = ("get", "rlhfjobs", "-A")
    eventually(
        lambda: access.kubectl(*found, check=False).returncode == 0, what="RLHFJobs can be listed"
    )
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
        chart_values: with which the chart is installed.
    """

    trainer_image: str = ""
    nodes: NodeCluster | None = None
    chart_values: tuple[str, ...] = ()

    @property
    def chart(self) -> Path:
        """The chart of this checkout."""
        return CRD.parents[1] / "charts" / "rlhf-operator"


def require_sandbox() -> Sandbox:
    """The sandbox that the tests run in; tests that need nodes are left out elsewhere."""
    sandbox = current_sandbox()
    if sandbox is None:
        if os.environ.get(EXISTING):
            pytest.skip(f"needs nodes of its own, and {EXISTING} names a cluster that exists")
        reason = "needs nodes: run it by `make end-to-end ARGS=...`, which starts a sandbox"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return sandbox


@pytest.fixture(scope="session")
def node_cluster() -> Iterator[NodeCluster]:
    """Two nodes with nothing on them: a sandbox holds one cluster, which all tests share."""
    with NodeCluster.of(require_sandbox()) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Two nodes, and the operator installed by Helm from images that were built from here."""
    if given := os.environ.get(EXISTING):
        yield _installed(Path(given), given_images(), None)
        return
    running: NodeCluster = request.getfixturevalue("node_cluster")
    images = []
    for target in ("operator", "trainer"):
        name, archive = image(target)
        running.load_image(archive)
        images.append(name)
    found = _installed(running.kubeconfig, images, running)
    yield found
    found.api.close()


def given_images() -> list[str]:
    """The operator's and the trainer's image, which an existing cluster has to be told."""
    names = [f"RLHF_TEST_{target}_IMAGE" for target in ("OPERATOR", "TRAINER")]
    if missing := [name for name in names if not os.environ.get(name)]:
        pytest.fail(
            f"{EXISTING} names a cluster that exists, and {' and '.join(missing)} nothing to run "
            f"there; set {' and '.join(names)} to images that its nodes can pull"
        )
    return [os.environ[name] for name in names]


def _installed(kubeconfig: Path, images: list[str], nodes: NodeCluster | None) -> Cluster:
    operator_image, trainer_image = images
    repository, _, tag = operator_image.rpartition(":")
    values = (
        f"image.repository={repository}",
        f"image.tag={tag}",
        f"trainerImage={trainer_image}",
        "resources.requests.cpu=10m",
    )
    api = client_by(kubeconfig)
    found = Cluster(
        kubeconfig, api, nodes, trainer_image=trainer_image, nodes=nodes, chart_values=values
    )
    install_operator(found)
    return found


def install_operator(cluster: Cluster, *more: str) -> None:
    """Install the chart by Helm as a user would, in a namespace of the restricted standard.

    Args:
        cluster: whose values are set.
        more: arguments of Helm.
    """
    if cluster.kubectl("get", "namespace", SYSTEM, check=False).returncode:
        cluster.kubectl("create", "namespace", SYSTEM)
    cluster.kubectl("label", "--overwrite", "namespace", SYSTEM, RESTRICTED)
    # The CRD may be there without a release, or be another's.
    place = ["--namespace", SYSTEM, "--take-ownership", "--wait", "--timeout", "4m"]
    settings = [part for value in cluster.chart_values for part in ("--set", value)]
    command = [str(helm()), f"--kubeconfig={cluster.kubeconfig}", "upgrade", "--install"]
    done = subprocess.run(
        [*command, "rlhf-operator", str(cluster.chart), *place, *settings, *more],
        capture_output=True,
        text=True,
        check=False,
        timeout=KUBECTL_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def own_control_plane(control_plane: Access) -> ControlPlane:
    """The control plane itself, whose requests are counted."""
    return require_own(control_plane)


def require_own(access: Access) -> ControlPlane:
    """Our own control plane; tests that play the kubelet are left out elsewhere."""
    if access.own is None:
        pytest.skip(
            f"{EXISTING} names a cluster with kubelets of its own, whose requests are not counted"
        )
    return access.own


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
    eventually(
        lambda: core.list_namespaced_service_account(name).items,
        what=f"namespace {name} has a service account",
    )
    yield name
    core.delete_namespace(name)
