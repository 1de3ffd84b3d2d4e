"""What a user of a cluster lives through, with pods that train on two nodes."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster.kube_fixtures import SYSTEM, Cluster
from kubernetes import client
from operating import Jobs, eventually

ROOT = Path(__file__).parents[2]
DATA = "pvc://runs/data"
PATIENCE = 240

pytestmark = pytest.mark.timeout(1200)


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


def test_three_stages_train_on_two_nodes(jobs: Jobs, cluster: Cluster) -> None:
    jobs.create("zh-reviews", stages=shortened_reviews())
    seen: dict[str, set[str]] = {}
    told = False

    def ended() -> bool:
        nonlocal told
        status = jobs.get("zh-reviews").get("status", {})
        for name in status.get("stages", {}):
            nodes = {pod.spec.node_name for pod in jobs.pods("zh-reviews", name)}
            seen.setdefault(name, set()).update(nodes - {None})
        ppo = status.get("stages", {}).get("ppo", {})
        running = ppo.get("state") == "Running" and ppo.get("progress", {}).get("step")
        told = told or bool(running and "reward" in ppo.get("metrics", {}))
        return status.get("phase") in ("Succeeded", "Failed")

    eventually(ended, seconds=600, pause=0.5)
    status = succeeded(jobs, "zh-reviews")
    assert {name: len(nodes) for name, nodes in seen.items()} == {"sft": 2, "reward": 2, "ppo": 2}
    assert told, "progress and metrics of PPO never stood in status while it ran"
    table = cluster.kubectl("get", "rlhf", "-n", jobs.namespace, "-o", "wide").stdout
    assert "CRITICLOSS" in table
    print(table)  # noqa: T201
    if cluster.nodes is not None:
        _check_artifacts(cluster, jobs, status)


def _check_artifacts(cluster: Cluster, jobs: Jobs, status: dict[str, Any]) -> None:
    """The models load in transformers."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    assert cluster.nodes is not None
    claim = jobs.core.read_namespaced_persistent_volume_claim("runs", jobs.namespace)
    root = cluster.nodes.folder / "volumes" / claim.spec.volume_name / "runs"
    for name, kind in (
        ("sft", AutoModelForCausalLM),
        ("reward", AutoModelForSequenceClassification),
        ("ppo", AutoModelForCausalLM),
    ):
        path = root / status["stages"][name]["artifact"]["uri"]
        assert kind.from_pretrained(path).config.model_type == "llama"


def test_a_killed_pod_restarts_the_gang_from_its_checkpoint(jobs: Jobs, cluster: Cluster) -> None:
    if cluster.nodes is None:
        pytest.skip("kills a process of a node, which must be this machine")
    jobs.create("killed", stages=long_sft(nodes=2))
    running_with_checkpoint(jobs, "killed")
    pod = jobs.pods("killed")[1]
    container = pod.status.container_statuses[0].container_id.removeprefix("containerd://")
    node = cluster.nodes.nodes[pod.spec.node_name]
    cluster.nodes.ctr(node, "tasks", "kill", "-s", "SIGKILL", container)
    status = succeeded(jobs, "killed")
    sft = status["stages"]["sft"]
    assert (sft["attempt"], sft["restarts"], sft["disruptions"]) == (2, 1, 0)
    assert _first_step(jobs, cluster, "killed", 2) > 0


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_lost_node_is_a_disruption(jobs: Jobs, cluster: Cluster, nodes: int) -> None:
    if cluster.nodes is None:
        pytest.skip("loses a node, which must be this machine's")
    name = f"lost-{nodes}"
    # The operator's own node stays: its Deployment would take five minutes to move.
    operator = client.CoreV1Api(cluster.api).list_namespaced_pod(SYSTEM).items[0].spec.node_name
    lost = next(each for each in cluster.nodes.nodes if each != operator)
    away = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_prefers(lost)]}}
    jobs.create(name, stages=long_sft(600, nodes=nodes), template={"affinity": away})
    running_with_checkpoint(jobs, name)
    assert lost in {pod.spec.node_name for pod in jobs.pods(name)}
    cluster.nodes.kill_node(lost)
    try:
        sft = eventually(
            lambda: jobs.stage(name) if jobs.stage(name)["attempt"] == 2 else None, seconds=PATIENCE
        )
        assert (sft["restarts"], sft["disruptions"]) == (0, 1)
        jobs.reaches(name, "Running", attempt=2)
    finally:
        cluster.nodes.restart_node(lost)
    status = succeeded(jobs, name, seconds=400)
    assert status["stages"]["sft"]["disruptions"] == 1


def test_a_mistake_in_the_data_fails_once_with_file_and_line(jobs: Jobs) -> None:
    stages = long_sft(nodes=2)
    stages["sft"]["dataset"] = {"uri": f"{DATA}/broken.jsonl"}
    jobs.create("broken", stages=stages)
    eventually(lambda: jobs.phase("broken") == "Failed", seconds=PATIENCE)
    failed = jobs.condition("broken", "Failed")
    assert failed["reason"] == "DataError"
    assert "/broken.jsonl: line 2: response: is missing" in failed["message"]
    assert jobs.stage("broken")["attempt"] == 1


def test_suspend_saves_and_resume_goes_on(jobs: Jobs, cluster: Cluster) -> None:
    jobs.create("pause", stages=long_sft(nodes=2))
    running_with_checkpoint(jobs, "pause")
    jobs.patch("pause", suspend=True)
    eventually(lambda: jobs.phase("pause") == "Suspended", seconds=PATIENCE)
    eventually(lambda: not jobs.pods("pause"))
    jobs.patch("pause", suspend=False)
    sft = succeeded(jobs, "pause")["stages"]["sft"]
    assert (sft["attempt"], sft["restarts"]) == (2, 0)
    if cluster.nodes is not None:
        assert _first_step(jobs, cluster, "pause", 2) > 0


def test_the_operator_can_be_deleted_while_a_stage_runs(jobs: Jobs, cluster: Cluster) -> None:
    jobs.create("orphan", stages=long_sft(nodes=2))
    running_with_checkpoint(jobs, "orphan")
    pods = {pod.metadata.uid for pod in jobs.pods("orphan")}
    core = client.CoreV1Api(cluster.api)
    for pod in core.list_namespaced_pod(SYSTEM).items:
        core.delete_namespaced_pod(pod.metadata.name, SYSTEM)
    time.sleep(5)
    sft = succeeded(jobs, "orphan")["stages"]["sft"]
    assert (sft["attempt"], sft["restarts"], sft["disruptions"]) == (1, 0, 0)
    assert {pod.metadata.uid for pod in jobs.pods("orphan")} == pods


def _prefers(node: str) -> dict[str, Any]:
    """A preference for one node."""
    named = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {"weight": 1, "preference": {"matchExpressions": [named]}}


def _first_step(jobs: Jobs, cluster: Cluster, name: str, attempt: int) -> int:
    """The step at which an attempt began, as its events.jsonl tells."""
    assert cluster.nodes is not None
    claim = jobs.core.read_namespaced_persistent_volume_claim("runs", jobs.namespace)
    root = cluster.nodes.folder / "volumes" / claim.spec.volume_name / "runs"
    uid = jobs.get(name)["metadata"]["uid"]
    events = root / f"{name}-{uid[:8]}" / "sft" / f"attempt-{attempt}" / "events.jsonl"
    first = json.loads(events.read_text().splitlines()[0])
    assert first["type"] == "start"
    return int(first["step"])
