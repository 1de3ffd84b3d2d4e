"""Fixtures of a real API server, registered in the root conftest."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from cluster.control_plane import ControlPlane
from cluster.tools import KUBECTL
from kubernetes import client, config

EXISTING = "RLHF_TEST_KUBECONFIG"
"""Environment variable that names the kubeconfig of a cluster to use in place of our own."""

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
    access.kubectl("apply", "--server-side", "-f", str(CRD))
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


@pytest.fixture
def own_control_plane(control_plane: Access) -> ControlPlane:
    """The control plane itself, whose requests are counted."""
    if control_plane.own is None:
        pytest.skip(f"{EXISTING} names a cluster whose requests cannot be counted")
    return control_plane.own


@pytest.fixture
def namespace(control_plane: Access) -> Iterator[str]:
    """A namespace of the test's own."""
    core = client.CoreV1Api(control_plane.api)
    name = f"test-{uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    # Made by a controller a moment later; no pod is admitted before.
    deadline = time.monotonic() + 10
    while not core.list_namespaced_service_account(name).items:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield name
    core.delete_namespace(name)
