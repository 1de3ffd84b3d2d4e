"""The operator on a real API server without nodes; the tests play the kubelet."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from admission import Policy, Webhook
from cluster.control_plane import ControlPlane
from cluster.kube_fixtures import Access
from operating import Jobs, OperatorProcess


@pytest.fixture(autouse=True)
def _no_real_kubelet(own_control_plane: ControlPlane) -> None:
    """On a cluster that exists the kubelets would run the pods whose part these tests play."""


@pytest.fixture
def jobs(control_plane: Access, namespace: str) -> Jobs:
    """RLHFJobs of a namespace in which the claim `runs` is."""
    found = Jobs(control_plane, namespace)
    found.claim()
    return found


@pytest.fixture
def operator(control_plane: Access, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator that leads; no test may make it complain of a fault of its own."""
    process = OperatorProcess(control_plane, namespace, tmp_path)
    try:
        process.wait_until_leading()
        yield process
    finally:
        process.end()
    assert "Traceback" not in process.log.read_text(), process.log.read_text()


@pytest.fixture
def requests(own_control_plane: ControlPlane, namespace: str) -> Callable[[], list[str]]:
    """Gives the operator's requests in the namespace so far, but for its Lease and its Events."""

    def made() -> list[str]:
        return [
            f"{event['verb']} {event['requestURI'].split(f'/namespaces/{namespace}/')[1]}"
            for event in own_control_plane.audit_events()
            if event["userAgent"].startswith("rlhf-operator")
            and f"/namespaces/{namespace}/" in event["requestURI"]
            and "/leases" not in event["requestURI"]
            and (event["verb"] != "create" or "/events" not in event["requestURI"])
        ]

    return made


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Tells what was measured; shown though the test passes."""

    def tell(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{line}\n")

    return tell


@pytest.fixture
def webhook(
    control_plane: Access, own_control_plane: ControlPlane, namespace: str
) -> Iterator[Callable[..., Webhook]]:
    """Makes a validating webhook for the objects of a kind."""
    made: list[Webhook] = []

    def make(plural: str, operation: str = "CREATE") -> Webhook:
        made.append(Webhook(control_plane, own_control_plane, namespace, plural, operation))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def policy(control_plane: Access, namespace: str) -> Iterator[Callable[..., Policy]]:
    """Makes an admission policy for the objects of a kind."""
    made: list[Policy] = []

    def make(plural: str, group: str = "") -> Policy:
        made.append(Policy(control_plane, namespace, plural, group))
        return made[-1]

    yield make
    for each in made:
        each.close()
