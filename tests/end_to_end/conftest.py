"""RLHFJobs that really train on two nodes."""

import base64
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from alerting import SELECTED, Monitoring
from cluster.kube_fixtures import RESTRICTED, Cluster, install_operator, new_namespace
from critic_jobs import WatchedJobs
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
_OFTEN = {
    "enabled": True,
    "additionalLabels": SELECTED,
    "interval": "2s",
    "scrapeTimeout": "2s",
}
MONITORED = {
    "metrics": {"serviceMonitor": _OFTEN, "podMonitor": _OFTEN},
    "prometheusRule": {
        "enabled": True,
        "additionalLabels": SELECTED,
        "alerts": {"CriticLossDiverging": {"for": "5s"}},
    },
    "grafana": {"dashboard": {"enabled": True}},
}
"""Values of the chart with which an alert comes within seconds."""
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


@pytest.fixture(scope="session")
def watched(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedJobs]:
    """Two jobs side by side, scraped by a Prometheus that the chart's monitors lead to them.

    Until the end of the session its Prometheus answers; `moment` is a time when both trained.
    """
    if cluster.nodes is None:
        pytest.skip("scrapes pods from here, which must be on nodes of this machine")
    folder = tmp_path_factory.mktemp("watched")
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(MONITORED))
    monitoring = Monitoring(cluster, cluster.nodes)
    try:
        monitoring.start_operator()
        install_operator(cluster, "--values", str(values))
        monitoring.start_servers()
        for namespace in new_namespace(cluster):
            cluster.kubectl("label", "namespace", namespace, RESTRICTED)
            found = WatchedJobs(monitoring, Jobs(cluster, namespace))
            found.jobs.claim()
            found.start(folder / "toy")
            yield found
    finally:
        monitoring.stop()
        install_operator(cluster)


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
