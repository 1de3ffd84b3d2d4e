"""A job's way from Pending to Succeeded, with restarts, on a real API server."""

import time

import pytest
from cluster.control_plane import ControlPlane
from operating import Jobs, OperatorProcess, eventually, stage
from waiting import is_still

PPO = stage(model={"fromStage": "sft"}, rewardModel={"fromStage": "reward"})


def test_three_stages_succeed_one_after_another(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("whole", stages={"sft": stage(), "reward": stage(), "ppo": PPO})
    for name in ("sft", "reward"):
        jobs.run("whole", name)
    assert jobs.stage("whole", "ppo")["state"] == "Waiting"
    jobs.reaches("whole", "Running", "sft")
    jobs.reaches("whole", "Running", "reward")
    assert jobs.get("whole")["status"]["summary"]["stage"] == "sft,reward"
    jobs.finish("whole", "sft")
    jobs.reaches("whole", "Succeeded", "sft")
    assert jobs.stage("whole", "ppo")["state"] == "Waiting"
    jobs.finish("whole", "reward")
    jobs.run("whole", "ppo")
    jobs.reaches("whole", "Running", "ppo")
    config = jobs.core.read_namespaced_config_map("whole-ppo-1", jobs.namespace)
    uri = jobs.stage("whole", "sft")["artifact"]["uri"]
    assert uri in config.data["stage.json"]
    jobs.finish("whole", "ppo")
    eventually(lambda: jobs.phase("whole") == "Succeeded")
    jobs.access.kubectl(
        "wait", "--for=condition=Succeeded", "--timeout=5s", "-n", jobs.namespace, "rlhf/whole"
    )
    jobs.wait_for_events("whole", ("Normal", "StagesComplete"))
    status = jobs.get("whole")["status"]
    assert status["observedGeneration"] == 1
    assert status["summary"]["progress"] == "100%"


def test_a_crashed_gang_restarts_as_a_whole(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("crash", stages={"sft": stage(nodes=2)})
    jobs.wait_for_pods("crash", n=2)
    for pod in jobs.pods("crash"):
        jobs.bind(pod)
    jobs.run("crash", n=2)
    jobs.reaches("crash", "Running")
    first, second = jobs.pods("crash")
    jobs.end_pod(first, 137)
    jobs.end_pod(second, 143, jobs.result("crash", "sft", 1, 143, reason="Stopped"))
    jobs.run("crash", attempt=2, n=2)
    found = jobs.reaches("crash", "Running", attempt=2)
    assert (found["restarts"], found["disruptions"]) == (1, 0)
    jobs.wait_for_events("crash", ("Warning", "Crashed"))
    jobs.finish("crash", attempt=2)
    eventually(lambda: jobs.phase("crash") == "Succeeded")


def test_a_mistake_in_the_data_fails_at_once_with_its_place(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("data")
    jobs.run("data")
    told = jobs.result(
        "data", "sft", 1, 65, reason="DataError", message="rows.jsonl:3: no response; add one"
    )
    jobs.finish("data", code=65, message=told)
    eventually(lambda: jobs.phase("data") == "Failed")
    failed = jobs.condition("data", "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "DataError")
    assert "rows.jsonl:3: no response; add one" in failed["message"]
    assert jobs.stage("data")["restarts"] == 0
    time.sleep(2)
    assert not jobs.pods("data", attempt=2)


def test_a_preempted_pod_is_a_disruption(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("preempt")
    jobs.run("preempt")
    jobs.reaches("preempt", "Running")
    (pod,) = jobs.pods("preempt")
    jobs.disrupt(pod)
    told = jobs.result("preempt", "sft", 1, 75, reason="Stopped", lastCheckpointStep=3)
    jobs.end_pod(jobs.pods("preempt")[0], 75, told)
    jobs.run("preempt", attempt=2)
    found = jobs.reaches("preempt", "Running", attempt=2)
    assert (found["restarts"], found["disruptions"]) == (0, 1)
    assert found["lastCheckpointStep"] == 3
    job = jobs.batch.read_namespaced_job("preempt-sft-2", jobs.namespace)
    assert job.metadata.annotations["rlhf.dev/checkpoint-step"] == "3"


def test_suspend_and_resume(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("pause")
    jobs.run("pause")
    jobs.reaches("pause", "Running")
    jobs.patch("pause", suspend=True)
    eventually(lambda: jobs.phase("pause") == "Suspended")
    eventually(lambda: not jobs.pods("pause"))
    assert jobs.condition("pause", "Suspended")["reason"] == "UserRequested"
    jobs.patch("pause", suspend=False)
    jobs.run("pause", attempt=2)
    found = jobs.reaches("pause", "Running", attempt=2)
    assert found["restarts"] == 0
    assert jobs.condition("pause", "Suspended")["reason"] == "Resumed"


@pytest.mark.parametrize(("action", "phase"), [("Suspend", "Suspended"), ("Fail", "Failed")])
def test_a_guardrail_stops_a_job_until_a_person_resumes_it(
    operator: OperatorProcess, jobs: Jobs, action: str, phase: str
) -> None:
    guarded(jobs, action)
    eventually(lambda: jobs.phase("guarded") == phase)
    stopped = jobs.condition("guarded", phase)
    assert (stopped["status"], stopped["reason"]) == ("True", "Guardrail")
    assert "12.5 against a threshold of 10 at update 4" in stopped["message"]
    resume(jobs)
    assert not jobs.condition("guarded", "Failed")


def guarded(jobs: Jobs, action: str) -> None:
    """A job whose guardrail has fired."""
    whole = stage(rewardModel={"uri": "hf://org/reward"})
    jobs.create("guarded", stages={"ppo": whole}, runPolicy={"maxRestarts": 0})
    jobs.run("guarded", "ppo")
    jobs.reaches("guarded", "Running", "ppo")
    rule = {"rule": "KLAboveLimit", "action": action}
    jobs.patch("guarded", guardrails=[rule])
    eventually(lambda: "has changed" in jobs.condition("guarded", "Running")["message"])
    broken = rule | {"step": 4, "value": 12.5, "threshold": 10.0}
    said = {"reason": "Guardrail", "lastCheckpointStep": 4, "verdicts": [broken]}
    told = jobs.result("guarded", "ppo", 1, 42, **said)
    jobs.finish("guarded", "ppo", code=42, message=told)


def resume(jobs: Jobs) -> None:
    """It rests until it was suspended by a person too, and then goes on."""
    healthy = jobs.condition("guarded", "Healthy")
    assert (healthy["status"], healthy["reason"]) == ("False", "KLAboveLimit")
    jobs.wait_for_events("guarded", ("Warning", "Guardrail"))
    time.sleep(2)
    assert [each for each in jobs.events("guarded") if each[0] == "Warning"] == [
        ("Warning", "Guardrail")
    ]
    assert not jobs.pods("guarded", "ppo", attempt=2)
    jobs.patch("guarded", suspend=True)
    eventually(lambda: jobs.condition("guarded", "Suspended").get("reason") == "UserRequested")
    jobs.patch("guarded", suspend=False)
    jobs.run("guarded", "ppo", attempt=2)
    found = jobs.reaches("guarded", "Running", "ppo", attempt=2)
    assert (found["restarts"], found["lastCheckpointStep"]) == (0, 4)
    assert jobs.condition("guarded", "Suspended")["reason"] == "Resumed"
    assert "has changed" not in jobs.condition("guarded", "Running")["message"]
    config = jobs.core.read_namespaced_config_map("guarded-ppo-2", jobs.namespace)
    assert "KLAboveLimit" in config.data["stage.json"]


def test_delete_takes_the_children_with_it(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("gone")
    jobs.run("gone")
    operator.end()  # owner references do it, not the operator
    jobs.delete("gone")
    eventually(lambda: not jobs.pods("gone"))
    eventually(lambda: not jobs.batch.list_namespaced_job(jobs.namespace).items)
    eventually(
        lambda: (
            [
                found.metadata.name
                for found in jobs.core.list_namespaced_config_map(jobs.namespace).items
            ]
            == ["kube-root-ca.crt"]
        )
    )


def test_a_finished_job_is_deleted_after_its_ttl(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("short", runPolicy={"ttlSecondsAfterFinished": 1})
    jobs.run("short")
    jobs.reaches("short", "Running")
    jobs.finish("short")
    eventually(
        lambda: (
            jobs.access.kubectl("get", "-n", jobs.namespace, "rlhf/short", check=False).returncode
            == 1
        )
    )


def test_a_lost_result_is_said_again_by_an_attempt_that_does_nothing(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("lost")
    jobs.run("lost")
    jobs.reaches("lost", "Running")
    operator.end()
    jobs.finish("lost")
    eventually(
        lambda: jobs.batch.read_namespaced_job("lost-sft-1", jobs.namespace).status.succeeded
    )
    (pod,) = jobs.pods("lost")
    jobs.core.delete_namespaced_pod(pod.metadata.name, jobs.namespace, grace_period_seconds=0)
    eventually(lambda: not jobs.pods("lost"))
    again = OperatorProcess(jobs.access, jobs.namespace, operator.log.parent)
    try:
        jobs.run("lost", attempt=2)
        jobs.reaches("lost", "Running", attempt=2)
        jobs.finish("lost", attempt=2)
        eventually(lambda: jobs.phase("lost") == "Succeeded")
        assert jobs.stage("lost")["restarts"] == 0
    finally:
        again.end()


def test_few_writes_and_none_at_rest(
    operator: OperatorProcess, jobs: Jobs, own_control_plane: ControlPlane
) -> None:
    def writes() -> list[str]:
        return [
            f"{event['verb']} {event['requestURI']}"
            for event in own_control_plane.audit_events()
            if event["verb"] not in ("get", "list", "watch")
            and event["userAgent"].startswith("rlhf-operator")
            and f"/namespaces/{jobs.namespace}/" in event["requestURI"]
            and not any(part in event["requestURI"] for part in ("/leases", "/events"))
        ]

    jobs.create("lean", stages={"sft": stage(), "reward": stage(model={"fromStage": "sft"})})
    for name in ("sft", "reward"):
        jobs.run("lean", name)
        jobs.reaches("lean", "Running", name)
        jobs.finish("lean", name)
        jobs.reaches("lean", "Succeeded", name)
    eventually(lambda: jobs.phase("lean") == "Succeeded")
    time.sleep(1)
    found = writes()
    assert len(found) <= 2 * 6, found
    jobs.create("resting")
    jobs.run("resting")
    jobs.reaches("resting", "Running")
    eventually(
        lambda: is_still(lambda: len(writes()), 12),
        what=lambda: f"12 s without a write; the last ones are {writes()[-5:]}",
    )


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ("pendingDeadlineSeconds", "PendingDeadlineExceeded"),
        ("stageDeadlineSeconds", "DeadlineExceeded"),
    ],
)
def test_a_failure_is_told_once_though_its_pod_is_still_there(
    operator: OperatorProcess, jobs: Jobs, limit: str, reason: str
) -> None:
    jobs.create("late")
    jobs.wait_for_pods("late")
    (pod,) = jobs.pods("late")
    jobs.bind(pod)
    jobs.patch("late", runPolicy={limit: 1})
    jobs.reaches("late", "Failed")
    assert jobs.condition("late", "Failed") == {}
    jobs.remove_pod(pod)
    eventually(lambda: jobs.phase("late") == "Failed")
    assert jobs.condition("late", "Failed")["reason"] == reason
    # Events are made in the order in which they are told.
    jobs.create("next")
    eventually(lambda: ("Normal", "Created") in jobs.events("next"))
    assert jobs.events("late").count(("Warning", reason)) == 1
