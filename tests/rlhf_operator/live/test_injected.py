"""What the cluster injects into pods: containers that do otherwise than the trainer, and gates."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from admission import Policy
from operating import Jobs, OperatorProcess, container_status, eventually, stage
from rank_zero import RankZero

PROXY = "proxy"
GATE = "target-health.example.com/pods"


def runs_unready(jobs: Jobs, pod: Any, reason: str, **sidecars: bool) -> None:
    """As the kubelet: the trainer of a pod has run for a minute, and the pod is not ready.

    Args:
        jobs: of its namespace.
        pod: which one.
        reason: why it is not ready.
        sidecars: names of the containers beside it, and whether they are ready.
    """
    since = (datetime.now(UTC) - timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
    containers = [
        container_status(name, {"running": {"startedAt": since}}, ready=ready)
        for name, ready in (sidecars | {"trainer": True}).items()
    ]
    turned = {"Ready": False, "ContainersReady": all(sidecars.values())}
    conditions = [
        {"type": kind, "status": str(status), "lastTransitionTime": since}
        | ({} if status else {"reason": reason})
        for kind, status in turned.items()
    ]
    status = {"phase": "Running", "containerStatuses": containers, "conditions": conditions}
    body = {"status": status}
    jobs.core.patch_namespaced_pod_status(pod.metadata.name, jobs.namespace, body)


def probe(jobs: Jobs) -> Any:
    """The spec of a pod as it would be if it were made now."""
    pod = {"metadata": {"name": "probe"}, "spec": {"containers": [{"name": "a", "image": "b"}]}}
    return jobs.core.create_namespaced_pod(jobs.namespace, pod, dry_run="All").spec


@pytest.fixture
def injected(jobs: Jobs, policy: Callable[..., Policy]) -> None:
    """Every pod of the namespace gets a proxy, which stands before the trainer."""
    policy("pods").inject(PROXY)
    eventually(lambda: [each.name for each in probe(jobs).containers] == [PROXY, "a"])


@pytest.mark.usefixtures("injected")
def test_trainers_that_are_done_end_the_stage_and_the_job_is_deleted(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("proxied", stages={"sft": stage(nodes=2, batchSize=32)})
    jobs.run("proxied", n=2)
    jobs.reaches("proxied", "Running")
    pods = jobs.pods("proxied")
    assert [each.name for each in pods[0].spec.containers] == [PROXY, "trainer"]
    chosen = pods[0].metadata.annotations["kubectl.kubernetes.io/default-container"]
    assert chosen == "trainer"
    for pod in pods:
        # A finalizer, as that of a policy that keeps logs, so that the order can be seen.
        jobs.core.patch_namespaced_pod(
            pod.metadata.name,
            jobs.namespace,
            {"metadata": {"finalizers": ["rlhf.dev/held-by-a-test"]}},
        )
    result = jobs.result("proxied", "sft", 1, 0)
    for pod in pods:
        jobs.end_trainer(pod, 0, result, PROXY)
    found = jobs.reaches("proxied", "Succeeded")
    said = f"attempt 1 is deleted, and its logs with it, since {PROXY} would run on beside it"
    assert found["message"].endswith(said)
    eventually(lambda: jobs.phase("proxied") == "Succeeded")
    read = jobs.batch.read_namespaced_job
    eventually(lambda: read("proxied-sft-1", jobs.namespace).metadata.deletion_timestamp)
    for pod in jobs.pods("proxied"):
        jobs.core.patch_namespaced_pod(
            pod.metadata.name, jobs.namespace, {"metadata": {"finalizers": None}}
        )
    eventually(lambda: not jobs.batch.list_namespaced_job(jobs.namespace).items)
    assert jobs.phase("proxied") == "Succeeded"
    told = jobs.core.list_namespaced_event(
        jobs.namespace, field_selector="involvedObject.name=proxied,reason=Finished"
    ).items
    assert [each.message for each in told] == [f"stage sft: done; {said}"]


@pytest.mark.usefixtures("injected")
@pytest.mark.parametrize("second", [1, None])
def test_trainers_that_are_done_end_the_stage_though_what_is_beside_them_fails(
    operator: OperatorProcess, jobs: Jobs, second: int | None
) -> None:
    """The second pod's proxy fails, too, or runs on until the Job controller ends it."""
    policy = {"maxRestarts": 0}
    jobs.create("failed", stages={"sft": stage(nodes=2, batchSize=32)}, runPolicy=policy)
    jobs.wait_for_pods("failed", n=2)
    for pod in jobs.pods("failed"):
        jobs.bind(pod)
    jobs.run("failed", n=2)
    jobs.reaches("failed", "Running")
    first, other = jobs.pods("failed")
    result = jobs.result("failed", "sft", 1, 0)
    jobs.end_trainer(other, 0, result, PROXY, second)
    jobs.end_trainer(first, 0, result, PROXY, 1)
    found = jobs.reaches("failed", "Succeeded")
    assert (found["restarts"], found["disruptions"]) == (0, 0)
    assert found["artifact"]["digest"] == "sha256:" + "a" * 64
    eventually(lambda: jobs.phase("failed") == "Succeeded")
    assert jobs.stage("failed")["attempt"] == 1


@pytest.mark.usefixtures("injected")
def test_a_trainer_that_fails_is_started_again_when_its_pod_is_gone(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("failing")
    jobs.run("failing")
    jobs.reaches("failing", "Running")
    (pod,) = jobs.pods("failing")
    jobs.end_trainer(pod, 1, jobs.result("failing", "sft", 1, 1), PROXY)
    found = jobs.reaches("failing", "Starting", attempt=2)
    assert (found["restarts"], found["attempt"]) == (1, 2)
    jobs.run("failing", attempt=2)
    jobs.reaches("failing", "Running", attempt=2)
    assert not jobs.pods("failing")


def test_a_scheduling_gate_is_named(
    operator: OperatorProcess, jobs: Jobs, policy: Callable[..., Policy]
) -> None:
    policy("pods").write(
        "/spec/schedulingGates", f'[Object.spec.schedulingGates{{name: "{GATE}"}}]'
    )
    eventually(lambda: probe(jobs).scheduling_gates)
    jobs.create("held")
    eventually(lambda: jobs.stage("held").get("reason") == "SchedulingGated")
    said = jobs.condition("held", "Running")["message"]
    assert f"({GATE}): Scheduling is blocked due to non-empty scheduling gates; have who" in said
    jobs.wait_for_events("held", ("Normal", "SchedulingGated"))
    jobs.run("held")
    jobs.reaches("held", "Running")


def test_a_readiness_gate_that_never_opens_costs_nothing(
    operator: OperatorProcess, jobs: Jobs, policy: Callable[..., Policy]
) -> None:
    """The containers are ready and the pod is not, as where a load balancer is asked first."""
    gates = f'[Object.spec.readinessGates{{conditionType: "{GATE}"}}]'
    policy("pods").write("/spec/readinessGates", gates)
    eventually(lambda: probe(jobs).readiness_gates)
    jobs.create("gated")
    jobs.wait_for_pods("gated")
    (pod,) = jobs.pods("gated")
    assert [each.condition_type for each in pod.spec.readiness_gates] == [GATE]
    runs_unready(jobs, pod, "ReadinessGatesNotReady")
    found = jobs.reaches("gated", "Running")
    assert (found["restarts"], found["disruptions"]) == (0, 0)
    jobs.finish("gated")
    found = jobs.reaches("gated", "Succeeded")
    assert (found["attempt"], found["disruptions"]) == (1, 0)


@pytest.mark.usefixtures("injected")
def test_a_sidecar_that_is_never_ready_does_not_keep_a_gang_from_running(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    with RankZero(7) as page:
        jobs.create("unready", stages={"sft": stage(nodes=2, batchSize=32)})
        jobs.wait_for_pods("unready", n=2)
        pods = jobs.pods("unready")
        jobs.reach(pods[0], page.address)
        for pod in pods:
            runs_unready(jobs, pod, "ContainersNotReady", proxy=False)
        jobs.reaches("unready", "Running")
        eventually(lambda: jobs.stage("unready").get("progress", {}).get("step") == 7)
    assert jobs.stage("unready")["disruptions"] == 0
