"""The operator as a user whom its image does not know, as OpenShift and `runAsUser` have it."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from chart_renders import of_kind, rendered
from cluster.kube_fixtures import Access
from operating import Jobs, OperatorProcess, eventually

UNKNOWN = ("unshare", "--user", "--map-user=1000680000", "--map-group=0")


def own_variables() -> dict[str, str]:
    """What the chart gives the operator beside its settings, with the name of its pod."""
    (deployment,) = of_kind(rendered(4), "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    pod = {"fieldRef": {"fieldPath": "metadata.name"}}
    others = (each for each in container["env"] if not each["name"].startswith("RLHF_"))
    found = {each["name"]: each.get("valueFrom") for each in others}
    assert all(value == pod for value in found.values())
    return dict.fromkeys(found, "rlhf-operator-5d4f8c-x2x7k")


@pytest.fixture
def operator(control_plane: Access, namespace: str, tmp_path: Path) -> Iterator[OperatorProcess]:
    """One whose user id has no name, in a user namespace of its own."""
    nobody = "import pwd; pwd.getpwuid(1000680000)"
    done = subprocess.run(
        [*UNKNOWN, "python3", "-c", nobody], capture_output=True, text=True, check=False
    )
    if "uid not found" not in done.stderr:
        pytest.skip(f"needs user namespaces, and a user id without a name: {done.stderr}")
    unset = [f"--unset={name}" for name in ("LOGNAME", "USER", "LNAME", "USERNAME")]
    given = [f"{name}={value}" for name, value in own_variables().items()]
    started_by = ("env", *unset, *given, *UNKNOWN)
    process = OperatorProcess(control_plane, namespace, tmp_path, started_by=started_by)
    process.wait_until_leading()
    yield process
    process.end_well()


def test_it_watches_and_starts_jobs(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("run")
    jobs.reaches("run", "Starting")
    eventually(operator.is_ready)
