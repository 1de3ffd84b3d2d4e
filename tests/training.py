"""RLHFJobs that train on the nodes of the test cluster, and what they leave on its volumes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from cluster.kube_fixtures import Cluster
from operating import Jobs, eventually

ROOT = Path(__file__).parents[1]
DATA = "pvc://runs/data"
PATIENCE = 400
NEVER = 1_000_000
"""Steps of a job that cannot end before a test has done with it."""


def shortened_reviews() -> dict[str, Any]:
    """The stages of the zh-reviews example, with less of everything and two pods each."""
    text = (ROOT / "examples" / "zh-reviews.yaml").read_text(encoding="utf-8")
    text = text.replace("file://data/zh-reviews", DATA)
    stages: dict[str, Any] = yaml.safe_load(text)["spec"]["stages"]
    steps = {"sft": 12, "reward": 12, "ppo": 80}
    for name, stage in stages.items():
        stage.pop("epochs", None)
        stage |= {"nodes": 2, "processesPerNode": 1, "maxSteps": steps[name]}
        stage["learningRate"] = float(stage["learningRate"])
        stage["checkpoint"] = {"everySteps": 3}
    stages["sft"]["model"]["scratch"] |= {"layers": 1, "hiddenSize": 64, "intermediateSize": 128}
    stages["ppo"] |= {"batchSize": 16, "minibatchSize": 8, "microBatchSize": 4}
    stages["ppo"]["criticLearningRate"] = float(stages["ppo"]["criticLearningRate"])
    return stages


def long_sft(steps: int = 250, **more: Any) -> dict[str, Any]:
    """A stage that runs for long enough to be disturbed."""
    sft = shortened_reviews()["sft"]
    sft.pop("evalDataset")
    sft["model"]["scratch"] |= {"hiddenSize": 32, "heads": 2, "intermediateSize": 32}
    sft |= {"maxSteps": steps, "batchSize": 4, "microBatchSize": 2, "zeroStage": 0}
    sft["checkpoint"] = {"everySteps": 20}
    return {"sft": sft | more}


def running_with_checkpoint(jobs: Jobs, name: str, attempt: int = 1) -> dict[str, Any]:
    """Wait until an attempt of sft has left a checkpoint."""

    def arrived() -> dict[str, Any] | None:
        found = jobs.stage(name)
        there = (found.get("state"), found.get("attempt")) == ("Running", attempt)
        return found if there and found.get("lastCheckpointStep") else None

    found: dict[str, Any] = eventually(arrived, seconds=PATIENCE)
    return found


def succeeded(jobs: Jobs, name: str, seconds: float = PATIENCE) -> dict[str, Any]:
    """Wait until the job has ended well; gives its status."""
    ends = ("Succeeded", "Failed")
    eventually(lambda: jobs.phase(name) in ends, seconds=seconds)
    status: dict[str, Any] = jobs.get(name)["status"]
    assert status["phase"] == "Succeeded", json.dumps(status["conditions"], indent=1)
    return status


def folder(jobs: Jobs, cluster: Cluster, name: str) -> Path:
    """Where a job's files lie on this machine."""
    assert cluster.nodes is not None
    claim = jobs.core.read_namespaced_persistent_volume_claim("runs", jobs.namespace)
    root = cluster.nodes.folder / "volumes" / claim.spec.volume_name / "runs"
    return Path(root / f"{name}-{jobs.get(name)['metadata']['uid'][:8]}")


def first_step(jobs: Jobs, cluster: Cluster, name: str, attempt: int) -> int:
    """The step at which an attempt began, as its events.jsonl tells."""
    events = folder(jobs, cluster, name) / "sft" / f"attempt-{attempt}" / "events.jsonl"

    def begun() -> str | None:
        lines = events.read_text().splitlines(keepends=True) if events.is_file() else []
        return lines[0] if lines and lines[0].endswith("\n") else None

    first = json.loads(eventually(begun, seconds=PATIENCE))
    assert first["type"] == "start"
    return int(first["step"])


@contextmanager
def endless(jobs: Jobs, **stages: dict[str, Any]) -> Iterator[None]:
    """Jobs by name that cannot end, deleted with their pods when the context does."""
    for name, spec in stages.items():
        jobs.create(name, **spec)
    try:
        yield
    finally:
        for name in stages:
            jobs.delete(name)
        job_of = {name: f"rlhf.dev/job={name}" for name in stages}
        listed = jobs.core.list_namespaced_pod
        eventually(
            lambda: (
                not any(
                    listed(jobs.namespace, label_selector=selector).items
                    for selector in job_of.values()
                )
            ),
            seconds=PATIENCE,
        )
