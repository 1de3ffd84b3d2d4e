"""Objects, numbers and pods that others put in the operator's way: told, and no obstacle."""

import json
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from operating import Jobs, OperatorProcess, Raw, children_ready, eventually, now
from rank_zero import RankZero
from staged_causes import Diary

from rlhf_api.names import Label
from rlhf_operator.planning.failures import PATIENT_SECONDS

HUGE = 10**30
MOUNTS = ("/tmp", "/dev/shm", "/home/rlhf")


def labels(jobs: Jobs, name: str, attempt: int = 1) -> dict[str, str]:
    """Those that the operator gives to the attempt's children."""
    return {
        Label.MANAGED_BY: "rlhf-operator",
        Label.JOB: name,
        Label.JOB_UID: jobs.get(name)["metadata"]["uid"],
        Label.STAGE: "sft",
        Label.ATTEMPT: str(attempt),
    }


def foreign_job(jobs: Jobs, name: str, given: dict[str, str], **metadata: Any) -> None:
    """A suspended Job of somebody else's."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}
    body = {
        "metadata": {"name": name, "labels": given} | metadata,
        "spec": {"suspend": True, "template": {"spec": pod}},
    }
    jobs.batch.create_namespaced_job(jobs.namespace, body)


def named(jobs: Jobs, job: str, *words: str) -> None:
    """Until condition ChildrenIntact says so."""

    def message() -> str:
        found = jobs.condition(job, "ChildrenIntact")
        return str(found["message"]) if found.get("status") == "False" else ""

    for word in words:
        eventually(lambda word=word: word in message(), what=f"{word!r} is named")


def change_labels(jobs: Jobs, child: str, **changes: str | None) -> None:
    body = {"metadata": {"labels": {f"rlhf.dev/{key}": value for key, value in changes.items()}}}
    jobs.batch.patch_namespaced_job(child, jobs.namespace, body)


def set_status(jobs: Jobs, pod: Any, **status: Any) -> None:
    """As the kubelet: whatever it says of a pod."""
    body = {"status": {"startTime": now()} | status}
    jobs.core.patch_namespaced_pod_status(pod.metadata.name, jobs.namespace, body)


def patch_status(jobs: Jobs, kind: str, name: str, condition: Raw) -> None:
    """As whoever may: a condition as it is written, which a client would read and write anew."""
    patch = json.dumps({"status": {"conditions": [condition]}})
    where = ("-n", jobs.namespace, kind, name, "--subresource=status")
    jobs.access.kubectl("patch", *where, "--type=strategic", "-p", patch)


def container(name: str, state: Raw) -> Raw:
    ready = {"ready": "running" in state, "restartCount": 0, "imageID": "", "image": "i:1"}
    return {"name": name, "state": state} | ready


def ended(code: int, message: str = "", reason: str = "Error") -> Raw:
    state = {"exitCode": code, "reason": reason, "finishedAt": now(), "message": message}
    return {"terminated": state}


def test_foreign_and_changed_children_are_named_and_the_job_obeys(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("odd")
    jobs.run("odd")
    jobs.reaches("odd", "Running")
    own = jobs.get("odd")["metadata"]["uid"]
    owner = {"apiVersion": "rlhf.dev/v1alpha1", "kind": "RLHFJob", "name": "odd", "uid": own}
    foreign_job(jobs, "labelled", labels(jobs, "odd"))
    foreign_job(jobs, "copied", labels(jobs, "odd"), ownerReferences=[owner | {"controller": True}])
    pod = {"containers": [{"name": "a", "image": "b"}]}
    metadata = {"name": "stray", "labels": labels(jobs, "odd")}
    jobs.core.create_namespaced_pod(jobs.namespace, {"metadata": metadata, "spec": pod})
    template = {
        "metadata": {"labels": labels(jobs, "odd")},
        "spec": pod | {"restartPolicy": "Never"},
    }
    # Without labels of its own a Job gets those of its pods.
    metadata = {"name": "hidden", "labels": {"app": "other"}}
    hidden = {"metadata": metadata, "spec": {"template": template}}
    jobs.batch.create_namespaced_job(jobs.namespace, hidden)
    change_labels(jobs, "odd-sft-1", stage=None)
    words = (
        "Job labelled",
        "Job copied",
        "Pod stray",
        "Pod hidden-",
        "Job odd-sft-1",
        "is missing",
    )
    named(jobs, "odd", *words)
    assert jobs.condition("odd", "ChildrenIntact")["reason"] == "ForeignChild"
    assert (jobs.stage("odd")["state"], jobs.stage("odd")["restarts"]) == ("Running", 0)
    jobs.patch("odd", suspend=True)
    eventually(lambda: jobs.phase("odd") == "Suspended")
    left = {each.metadata.name for each in jobs.batch.list_namespaced_job(jobs.namespace).items}
    assert {"labelled", "copied"} <= left
    jobs.core.delete_namespaced_pod("stray", jobs.namespace, grace_period_seconds=0)
    for name in ("labelled", "copied", "hidden"):
        jobs.batch.delete_namespaced_job(name, jobs.namespace, propagation_policy="Background")
    eventually(lambda: jobs.condition("odd", "ChildrenIntact")["status"] == "True")


def copy(jobs: Jobs, child: str, name: str) -> None:
    """As whoever has taken a child's YAML for a Job of his own: other names, the rest as it is."""
    path = f"/apis/batch/v1/namespaces/{jobs.namespace}/jobs"
    found = json.loads(jobs.access.kubectl("get", "--raw", f"{path}/{child}").stdout)
    metadata = {key: found["metadata"][key] for key in ("ownerReferences", "annotations", "labels")}
    labels = {k: v for k, v in metadata["labels"].items() if k.startswith(("rlhf.dev/", "app."))}
    template = found["spec"]["template"]
    template["metadata"]["labels"] = labels
    template["spec"]["containers"][0]["image"] = "registry.test/other:1"
    spec = {key: found["spec"][key] for key in ("completionMode", "completions", "parallelism")}
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata | {"name": name, "labels": labels},
        "spec": spec | {"template": template},
    }
    jobs.access.kubectl("create", "--raw", path, "-f", "-", text=json.dumps(body))


def test_copies_called_as_attempts_are_left_alone_and_stand_in_for_none(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("twin")
    jobs.run("twin")
    jobs.reaches("twin", "Running")
    copies = ("twin-sft-2", "twin-sft-9999999999")
    for name in copies:
        copy(jobs, "twin-sft-1", name)
    named(jobs, "twin", *(f"Job {name} names this RLHFJob as its owner" for name in copies))
    assert jobs.condition("twin", "ChildrenIntact")["reason"] == "ForeignChild"
    jobs.patch("twin", suspend=True)
    eventually(lambda: jobs.phase("twin") == "Suspended")
    jobs.patch("twin", suspend=False)
    message = children_ready(jobs, "twin", "NameConflict")
    assert message.startswith("Job twin-sft-2 exists and is not of this job")
    left = jobs.batch.list_namespaced_job(jobs.namespace).items
    kept = {each.metadata.name for each in left if each.metadata.deletion_timestamp is None}
    assert kept == set(copies)
    for name in copies:
        jobs.batch.delete_namespaced_job(name, jobs.namespace, propagation_policy="Background")
    jobs.wait_for_pods("twin", attempt=2, seconds=90.0)
    (image,) = {pod.spec.containers[0].image for pod in jobs.pods("twin", attempt=2)}
    assert image == "registry.test/trainer:1"
    eventually(lambda: jobs.condition("twin", "ChildrenIntact")["status"] == "True")


def test_deadline_and_ttl_hold_beside_odd_children(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("short")
    jobs.run("short")
    jobs.reaches("short", "Running")
    foreign_job(jobs, "beside", labels(jobs, "short"))
    change_labels(jobs, "short-sft-1", stage="dpo", job=None)
    named(jobs, "short", "Job beside", "is 'dpo'", "rlhf.dev/job is missing")
    limits = {"activeDeadlineSeconds": 1}
    jobs.patch("short", runPolicy=limits)
    eventually(lambda: jobs.stage("short").get("reason") == "DeadlineExceeded")
    jobs.patch("short", runPolicy=limits | {"ttlSecondsAfterFinished": 1})
    where = jobs.access.kubectl
    eventually(lambda: "short" not in where("get", "-n", jobs.namespace, "rlhf").stdout)
    assert jobs.batch.read_namespaced_job("beside", jobs.namespace).spec.suspend


def test_a_foreign_job_of_our_name_and_labels_is_waited_for(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("taken", suspend=True)
    eventually(lambda: jobs.phase("taken") == "Suspended")
    foreign_job(jobs, "taken-sft-1", labels(jobs, "taken"))
    named(jobs, "taken", "Job taken-sft-1")
    jobs.patch("taken", suspend=False)
    message = children_ready(jobs, "taken", "NameConflict")
    assert "Job taken-sft-1 exists and is not of this job" in message
    assert jobs.batch.read_namespaced_job("taken-sft-1", jobs.namespace).spec.suspend
    jobs.patch("taken", suspend=True)
    eventually(lambda: jobs.phase("taken") == "Suspended")
    path = "Background"
    jobs.batch.delete_namespaced_job("taken-sft-1", jobs.namespace, propagation_policy=path)
    jobs.patch("taken", suspend=False)
    jobs.run("taken", attempt=2)
    jobs.reaches("taken", "Running", attempt=2)
    assert jobs.stage("taken")["restarts"] == 0


PAGE = "".join(
    f"rlhf_train_{name} {value}\n"
    for name, value in {
        "step": "3e9",
        "total_steps": "-1",
        "eta_seconds": "1e300",
        "last_checkpoint_step": "1e300",
        "loss": "NaN",
        "learning_rate": "-Inf",
        "reward": "1e300",
        "kl": "-1e300",
        "critic_loss": "1e999",
    }.items()
)


def test_numbers_of_a_pod_do_not_keep_a_job_from_being_suspended(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    ppo = {"model": {"uri": "hf://org/base"}, "dataset": {"uri": "pvc://runs/rows.jsonl"}}
    jobs.create("wild", stages={"ppo": ppo | {"rewardModel": {"uri": "hf://org/reward"}}})
    with RankZero(1, more=PAGE) as page:
        jobs.wait_for_pods("wild", "ppo")
        jobs.reach(jobs.pods("wild", "ppo")[0], page.address)
        jobs.run("wild", "ppo")
        eventually(lambda: jobs.stage("wild", "ppo").get("metrics", {}).get("reward") == 1e300)
        status = jobs.get("wild")["status"]
        assert status["summary"]["reward"] == "1e+300"
        assert status["stages"]["ppo"]["progress"]["step"] == 2_147_483_647
        jobs.patch("wild", suspend=True)
        eventually(lambda: jobs.phase("wild") == "Suspended")


def stage_of(job: Raw) -> Raw:
    found: Raw = job.get("status", {}).get("stages", {}).get("sft", {})
    return found


def test_numbers_of_a_result_do_not_keep_a_job_from_being_suspended(
    operator: OperatorProcess, jobs: Jobs, tmp_path: Path
) -> None:
    made = jobs.create("last")
    jobs.run("last")
    jobs.reaches("last", "Running")
    numbers = {"step": HUGE, "totalSteps": -1, "lastCheckpointStep": HUGE, "metrics": {"kl": HUGE}}
    rows = {"rows": {"dataset": {"kept": HUGE}}}
    verdict = {"rule": "NegativeKL", "action": "Observe", "step": HUGE, "threshold": 0}
    told = jobs.result("last", "sft", 1, 1, **numbers, **rows, verdicts=[verdict])
    # The next attempt starts within seconds.
    with closing(Diary(jobs, made, tmp_path / "last.versions")) as diary:
        jobs.finish("last", code=1, message=told)
        version = diary.first(lambda job: stage_of(job).get("state") == "Restarting")
    found = stage_of(version)
    assert found["lastCheckpointStep"] == found["rows"]["dataset"]["kept"] == 2_147_483_647
    assert found["verdicts"]["NegativeKL"].endswith("at update 2147483647")
    jobs.patch("last", suspend=True)
    eventually(lambda: jobs.phase("last") == "Suspended")


YEARS = ("0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")


@pytest.mark.parametrize("year", YEARS)
def test_times_of_others_do_not_keep_a_job_from_being_suspended(
    operator: OperatorProcess, jobs: Jobs, year: str
) -> None:
    jobs.create("timeless")
    jobs.wait_for_pods("timeless")
    turned = {"status": "False", "lastTransitionTime": year}
    patch_status(jobs, "job", "timeless-sft-1", {"type": "Suspended"} | turned)
    jobs.run("timeless")
    jobs.reaches("timeless", "Running")
    (pod,) = jobs.pods("timeless")
    patch_status(jobs, "pod", pod.metadata.name, {"type": "Ready"} | turned)
    jobs.patch("timeless", suspend=True)
    eventually(lambda: jobs.phase("timeless") == "Suspended")


@pytest.mark.parametrize("first", ["proxy", "trainer"])
def test_the_trainer_is_read_by_name(operator: OperatorProcess, jobs: Jobs, first: str) -> None:
    jobs.create("beside")
    jobs.run("beside")
    jobs.reaches("beside", "Running")
    (pod,) = jobs.pods("beside")
    told = jobs.result("beside", "sft", 1, 65, reason="DataError", message="rows.jsonl:3: bad")
    both = [container("proxy", ended(0, "bye")), container("trainer", ended(65, told))]
    init = [container("first", ended(0, "ready"))]
    ordered = both if first == "proxy" else both[::-1]
    set_status(jobs, pod, phase="Failed", containerStatuses=ordered, initContainerStatuses=init)
    eventually(lambda: jobs.condition("beside", "Failed").get("reason") == "DataError")
    assert "rows.jsonl:3: bad" in jobs.condition("beside", "Failed")["message"]


REJECTIONS = {
    "rejected": (
        {"reason": "UnexpectedAdmissionError", "message": "Allocate failed: no healthy devices"},
        "PodRejected",
        "UnexpectedAdmissionError: Allocate failed: no healthy devices",
    ),
    "startless": (
        {"containerStatuses": [container("trainer", ended(128, 'exec: "python"', "StartError"))]},
        "StartError",
        'cannot start: exec: "python"',
    ),
    "wordy": (
        {"containerStatuses": [container("trainer", ended(1, "no module rlhf_trainer"))]},
        "Crashed",
        "no module rlhf_trainer",
    ),
    "meshed": (
        {
            "initContainerStatuses": [container("mesh-init", ended(1, "not permitted"))],
            "containerStatuses": [container("trainer", {"waiting": {"reason": "PodInitializing"}})],
        },
        "StartError",
        "container mesh-init ended with exit code 1 (not permitted) before trainer could start",
    ),
}


def test_what_a_kubelet_says_is_told_and_its_cause_not_met_again_at_once(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    for name in REJECTIONS:
        jobs.create(name)
    for name, (status, reason, words) in REJECTIONS.items():
        jobs.wait_for_pods(name)
        # Status counts whole seconds.
        before = datetime.now(UTC).replace(microsecond=0)
        set_status(jobs, jobs.pods(name)[0], phase="Failed", **status)
        found = jobs.reaches(name, "Restarting")
        pause = timedelta(seconds=PATIENT_SECONDS[0])
        assert found["reason"] == reason
        assert words in jobs.condition(name, "Running")["message"]
        due = datetime.fromisoformat(found["retryTime"])
        assert before + pause <= due <= datetime.now(UTC) + pause


def test_mounts_of_the_users_stand_in_for_ours(operator: OperatorProcess, jobs: Jobs) -> None:
    volumes = [{"name": f"own-{number}", "emptyDir": {}} for number in range(len(MOUNTS))]
    mounts = [
        {"name": volume["name"], "mountPath": path}
        for volume, path in zip(volumes, MOUNTS, strict=True)
    ]
    jobs.create("mounts", template={"volumes": volumes, "volumeMounts": mounts})
    jobs.run("mounts")
    jobs.reaches("mounts", "Running")
    (pod,) = jobs.pods("mounts")
    found = {each.mount_path: each.name for each in pod.spec.containers[0].volume_mounts}
    assert found | {each["mountPath"]: each["name"] for each in mounts} == found
    assert json.dumps(pod.spec.to_dict(), default=str).count("rlhf-tmp") == 0
