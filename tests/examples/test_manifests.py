"""The example manifests: an API server takes them, and the quickstart's data is what it reads."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster.kube_fixtures import Access
from example_files import EXAMPLES, MANIFESTS

from rlhf_api.loading import read_yaml
from rlhf_api.v1alpha1 import RLHFJob, claim_of, uris

CLUSTER_JOBS = ("gpu-1", "gpu-8", "gpu-4x8", "quickstart")
UID = 10001


def quickstart_data() -> dict[str, Any]:
    """The objects of quickstart-data.yaml by kind."""
    return {each["kind"]: each for each in read_yaml(EXAMPLES / "quickstart-data.yaml")}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_an_api_server_takes_it(path: Path, control_plane: Access, namespace: str) -> None:
    done = control_plane.kubectl(
        "apply", "--dry-run=server", "--validate=strict", "-n", namespace, "-f", str(path)
    )
    assert done.stdout.count("(server dry run)") == len(read_yaml(path))
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("name", ["quickstart-data", "quickstart"])
def test_a_restricted_namespace_takes_it(name: str, control_plane: Access, namespace: str) -> None:
    label = "pod-security.kubernetes.io/enforce=restricted"
    warn = "pod-security.kubernetes.io/warn=restricted"
    control_plane.kubectl("label", "namespace", namespace, label, warn)
    done = control_plane.kubectl(
        "apply", "--dry-run=server", "-n", namespace, "-f", str(EXAMPLES / f"{name}.yaml")
    )
    assert "would violate" not in done.stderr


@pytest.mark.parametrize("name", CLUSTER_JOBS)
def test_a_job_for_a_cluster_names_its_storage(name: str) -> None:
    spec = RLHFJob.from_file(EXAMPLES / f"{name}.yaml").spec
    assert spec.storage is not None
    for stage in spec.stages.present().values():
        assert not [uri for _, uri in uris(stage) if uri.startswith("file://")]


def test_the_quickstart_asks_for_one_node_and_no_gpu() -> None:
    job = RLHFJob.from_file(EXAMPLES / "quickstart.yaml")
    stages = job.spec.stages.present()
    assert all(job.spec.nodes(name) == 1 for name in stages)
    assert "gpu" not in (EXAMPLES / "quickstart.yaml").read_text().split("spec:", 1)[1]
    # A claim that one node mounts is enough when no two stages run at once.
    assert stages[list(stages)[1]].model.from_stage is not None
    claim = quickstart_data()["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert "storageClassName" not in claim["spec"]
    assert job.spec.storage is not None
    read = [uri for stage in stages.values() for _, uri in uris(stage)]
    used = {claim_of(uri) for uri in [*read, job.spec.storage.uri]}
    assert used - {None} == {claim["metadata"]["name"]}


def test_the_quickstarts_data_belongs_to_the_user_of_training_pods() -> None:
    pod = quickstart_data()["Job"]["spec"]["template"]["spec"]
    context = pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (UID,) * 3
    (container,) = pod["containers"]
    assert container["image"].startswith("registry.example.com/rlhf/trainer:")


def test_the_quickstarts_data_is_where_it_looks_for_it(tmp_path: Path) -> None:
    documents = quickstart_data()
    script = tmp_path / "make_data.py"
    script.write_text(documents["ConfigMap"]["data"]["make_data.py"])
    (container,) = documents["Job"]["spec"]["template"]["spec"]["containers"]
    *_, folder = container["command"]
    claim = tmp_path / "claim"
    inside = folder.removeprefix("/mnt/claims/rlhf/")
    subprocess.run([sys.executable, str(script), str(claim / inside)], check=True, timeout=300)
    command = ["validate", str(EXAMPLES / "quickstart.yaml"), "--mount", f"rlhf={claim}"]
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_cli", *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
