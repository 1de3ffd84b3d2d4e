"""What a user of a cluster lives through while pods train: each job is disturbed on purpose."""

from pathlib import Path
from typing import Any

import pytest
from cluster.kube_fixtures import SYSTEM, Cluster
from kubernetes import client
from operating import Jobs, eventually
from training import (
    DATA,
    NEVER,
    PATIENCE,
    endless,
    first_step,
    folder,
    long_sft,
    running_with_checkpoint,
)

pytestmark = pytest.mark.timeout(1800)


def test_a_killed_pod_restarts_the_gang_from_its_checkpoint(jobs: Jobs, cluster: Cluster) -> None:
    if cluster.nodes is None:
        pytest.skip("kills a process of a node, which must be this machine")
    with endless(jobs, killed={"stages": long_sft(NEVER, nodes=2)}):
        seen = running_with_checkpoint(jobs, "killed")
        pod = jobs.pods("killed")[1]
        container = pod.status.container_statuses[0].container_id.removeprefix("containerd://")
        node = cluster.nodes.nodes[pod.spec.node_name]
        cluster.nodes.ctr(node, "tasks", "kill", "-s", "SIGKILL", container)
        sft = jobs.reaches("killed", "Running", attempt=2, seconds=PATIENCE)
        assert (sft["restarts"], sft["disruptions"]) == (1, 0)
        assert first_step(jobs, cluster, "killed", 2) >= seen["lastCheckpointStep"]


def test_a_lost_node_is_a_disruption(jobs: Jobs, cluster: Cluster) -> None:
    """Two jobs at once: of the gang of two one pod is lost, of the other its only one."""
    if cluster.nodes is None:
        pytest.skip("loses a node, which must be this machine's")
    # The operator's own node stays: its Deployment would take five minutes to move.
    operator = client.CoreV1Api(cluster.api).list_namespaced_pod(SYSTEM).items[0].spec.node_name
    lost = next(each for each in cluster.nodes.nodes if each != operator)
    away = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [_prefers(lost)]}}
    gangs = {
        f"lost-{count}": {"stages": long_sft(NEVER, nodes=count), "template": {"affinity": away}}
        for count in (1, 2)
    }
    with endless(jobs, **gangs):
        steps = {n: running_with_checkpoint(jobs, n)["lastCheckpointStep"] for n in gangs}
        for name in gangs:
            assert lost in {pod.spec.node_name for pod in jobs.pods(name)}
        cluster.nodes.kill_node(lost)
        try:
            for name in gangs:
                sft = jobs.reaches(name, "Running", attempt=2, seconds=PATIENCE)
                assert (sft["restarts"], sft["disruptions"]) == (0, 1)
                assert first_step(jobs, cluster, name, 2) >= steps[name]
            _check_straggler(jobs, cluster, "lost-1")
        finally:
            cluster.nodes.restart_node(lost)
            cluster.kubectl("wait", "--for=condition=Ready", f"node/{lost}", "--timeout=200s")


def _check_straggler(jobs: Jobs, cluster: Cluster, name: str) -> None:
    """The lost pod trains on; nothing but its own attempt's folder changes by it."""
    running_with_checkpoint(jobs, name, attempt=2)
    jobs.patch(name, suspend=True)
    eventually(lambda: jobs.phase(name) == "Suspended", seconds=PATIENCE)
    eventually(lambda: not jobs.pods(name, attempt=2), seconds=PATIENCE)
    root = folder(jobs, cluster, name)
    own = root / "sft" / "attempt-1"
    written, before = (own / "events.jsonl").stat().st_size, _files(root, own)
    eventually(lambda: (own / "events.jsonl").stat().st_size > written, seconds=PATIENCE)
    assert _files(root, own) == before


def _files(root: Path, without: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder, but for those below another."""
    found = (path for path in root.rglob("*") if path.is_file() and without not in path.parents)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def test_a_drained_node_is_a_disruption(jobs: Jobs, cluster: Cluster) -> None:
    with endless(jobs, drained={"stages": long_sft(NEVER, nodes=1)}):
        seen = running_with_checkpoint(jobs, "drained")
        (pod,) = jobs.pods("drained")
        options = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=200s")
        training = ("--pod-selector", "rlhf.dev/job=drained")
        try:
            cluster.kubectl("drain", pod.spec.node_name, *options, *training)
            sft = jobs.reaches("drained", "Running", attempt=2, seconds=PATIENCE)
            assert (sft["restarts"], sft["disruptions"]) == (0, 1)
            (again,) = jobs.pods("drained", attempt=2)
            assert again.spec.node_name != pod.spec.node_name
            if cluster.nodes is not None:
                assert first_step(jobs, cluster, "drained", 2) >= seen["lastCheckpointStep"]
        finally:
            cluster.kubectl("uncordon", pod.spec.node_name)


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
    with endless(jobs, pause={"stages": long_sft(NEVER, nodes=2)}):
        running_with_checkpoint(jobs, "pause")
        jobs.patch("pause", suspend=True)
        eventually(lambda: jobs.phase("pause") == "Suspended", seconds=PATIENCE)
        eventually(lambda: not jobs.pods("pause"), seconds=PATIENCE)
        saved = jobs.stage("pause")["lastCheckpointStep"]
        jobs.patch("pause", suspend=False)
        sft = jobs.reaches("pause", "Running", attempt=2, seconds=PATIENCE)
        assert sft["restarts"] == 0
        if cluster.nodes is not None:
            assert first_step(jobs, cluster, "pause", 2) == saved


def test_the_operator_can_be_deleted_while_a_stage_runs(jobs: Jobs, cluster: Cluster) -> None:
    with endless(jobs, orphan={"stages": long_sft(NEVER, nodes=2)}):
        step = running_with_checkpoint(jobs, "orphan")["progress"]["step"]
        pods = {pod.metadata.uid for pod in jobs.pods("orphan")}
        core = client.CoreV1Api(cluster.api)
        old = {pod.metadata.name for pod in core.list_namespaced_pod(SYSTEM).items}
        for name in old:
            core.delete_namespaced_pod(name, SYSTEM)
        eventually(
            lambda: not old & {pod.metadata.name for pod in core.list_namespaced_pod(SYSTEM).items},
            seconds=PATIENCE,
        )
        # What a new operator reads of the pods that trained on.
        gone_by = jobs.stage("orphan")["progress"]["step"]
        sft = eventually(
            lambda: _beyond(jobs.stage("orphan"), max(step, gone_by)), seconds=PATIENCE
        )
        assert (sft["attempt"], sft["restarts"], sft["disruptions"]) == (1, 0, 0)
        assert {pod.metadata.uid for pod in jobs.pods("orphan")} == pods


def _beyond(stage: dict[str, Any], step: int) -> dict[str, Any] | None:
    return stage if stage["progress"]["step"] > step else None


def _prefers(node: str) -> dict[str, Any]:
    """A preference for one node."""
    named = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
    return {"weight": 1, "preference": {"matchExpressions": [named]}}
