"""The operator on a real API server without nodes; the tests play the kubelet."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.kube_fixtures import Access
from operating import Jobs, OperatorProcess


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
