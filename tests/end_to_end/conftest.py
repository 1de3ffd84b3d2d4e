"""RLHFJobs that really train on two nodes."""

import base64
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.kube_fixtures import RESTRICTED, Cluster, new_namespace
from operating import Jobs, eventually

ROOT = Path(__file__).parents[2]
ROWS = {
    "sft.jsonl": 1500,
    "sft-heldout.jsonl": 60,
    "preferences.jsonl": 600,
    "preferences-heldout.jsonl": 80,
    "prompts.jsonl": 400,
    "prompts-heldout.jsonl": 40,
}
UNPACK = """
import tarfile
with tarfile.open("/etc/data/data.tar.gz") as archive:
    archive.extractall("/mnt/runs/data")
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The first rows of the zh-reviews data and its tokenizer, packed; a ConfigMap holds it."""
    folder = tmp_path_factory.mktemp("zh")
    script = ROOT / "examples" / "zh_reviews.py"
    subprocess.run(
        [sys.executable, str(script), "prepare", "--output", str(folder)], check=True, timeout=600
    )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, count in ROWS.items():
            rows = (folder / name).read_bytes().splitlines(keepends=True)[:count]
            content = b"".join(rows)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        broken = b'{"prompt": "a", "response": "b"}\n{"prompt": "c"}\n'
        entry = tarfile.TarInfo("broken.jsonl")
        entry.size = len(broken)
        archive.addfile(entry, io.BytesIO(broken))
        archive.add(folder / "tokenizer", "tokenizer")
    return packed.getvalue()


@pytest.fixture(scope="session")
def jobs(cluster: Cluster, data: bytes) -> Iterator[Jobs]:
    """RLHFJobs of a namespace whose claim `runs` holds the data."""
    for namespace in new_namespace(cluster):
        found = Jobs(cluster, namespace)
        found.claim()
        _load(found, cluster.trainer_image, data)
        cluster.kubectl("label", "namespace", namespace, RESTRICTED)
        yield found


def _load(jobs: Jobs, image: str, data: bytes) -> None:
    packed = base64.b64encode(data).decode()
    config = {"metadata": {"name": "data"}, "binaryData": {"data.tar.gz": packed}}
    jobs.core.create_namespaced_config_map(jobs.namespace, config)
    container = {
        "name": "load",
        "image": image,
        "command": ["python", "-c", UNPACK],
        "volumeMounts": [
            {"name": "data", "mountPath": "/etc/data"},
            {"name": "runs", "mountPath": "/mnt/runs"},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "securityContext": {"fsGroup": 10001},
        "containers": [container],
        "volumes": [
            {"name": "data", "configMap": {"name": "data"}},
            {"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}},
        ],
    }
    job = {"metadata": {"name": "load"}, "spec": {"backoffLimit": 0, "template": {"spec": pod}}}
    jobs.batch.create_namespaced_job(jobs.namespace, job)
    eventually(
        lambda: jobs.batch.read_namespaced_job("load", jobs.namespace).status.succeeded, seconds=400
    )
