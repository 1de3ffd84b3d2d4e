"""What holds a job back, or is odd beside it, is told once, by what a person looks at."""

from collections import Counter
from pathlib import Path

import pytest
from operating import Jobs, OperatorProcess, Raw, eventually, stage
from waiting import is_still

CREATED = ("Normal", "Created")


def told(jobs: Jobs, name: str) -> Counter[tuple[str, str]]:
    return Counter(jobs.events(name))


def stays(jobs: Jobs, name: str, expected: dict[tuple[str, str], int]) -> None:
    """These Events are told, each so often, and no others after them."""
    eventually(lambda: told(jobs, name) == expected, what=lambda: str(told(jobs, name)))
    eventually(lambda: is_still(lambda: told(jobs, name).total(), 2))
    assert told(jobs, name) == expected


def test_an_attempt_under_a_quota_is_told_when_it_is_made_though_the_operator_changes(
    operator: OperatorProcess, jobs: Jobs, tmp_path: Path
) -> None:
    none = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    jobs.core.create_namespaced_resource_quota(jobs.namespace, none)
    read = jobs.core.read_namespaced_resource_quota
    eventually(lambda: (read("none", jobs.namespace).status.hard or {}).get("count/jobs.batch"))
    jobs.create("late")
    stays(jobs, "late", {("Warning", "QuotaExceeded"): 1})
    operator.end()
    second = OperatorProcess(jobs.access, jobs.namespace, tmp_path)
    try:
        second.wait_until_leading()
        jobs.core.delete_namespaced_resource_quota("none", jobs.namespace)
        jobs.wait_for_pods("late")
        stays(jobs, "late", {("Warning", "QuotaExceeded"): 1, CREATED: 1})
        assert jobs.stage("late")["createdAttempt"] == 1
    finally:
        second.end_well()
    third = OperatorProcess(jobs.access, jobs.namespace, tmp_path)
    try:
        third.wait_until_leading()
        jobs.run("late")
        jobs.reaches("late", "Running")
        stays(
            jobs,
            "late",
            {("Warning", "QuotaExceeded"): 1, CREATED: 1, ("Normal", "PodsReady"): 1},
        )
    finally:
        third.end_well()


def test_a_suspension_is_one_event_and_leaves_nothing_in_the_queue(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("pair", stages={"sft": stage(), "reward": stage()}, queueName="team")
    queued = {CREATED: 2, ("Normal", "Queued"): 2}
    stays(jobs, "pair", queued)
    jobs.patch("pair", suspend=True)
    eventually(lambda: jobs.phase("pair") == "Suspended")
    admitted = jobs.condition("pair", "Admitted")
    assert (admitted["status"], admitted["reason"]) == ("False", "UserRequested")
    stays(jobs, "pair", queued | {("Normal", "UserRequested"): 1})


def test_what_is_odd_beside_a_job_is_an_event_when_it_begins_and_when_it_ends(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("odd", suspend=True)
    eventually(lambda: jobs.phase("odd") == "Suspended")
    uid = jobs.get("odd")["metadata"]["uid"]
    labels = {"app.kubernetes.io/managed-by": "rlhf-operator", "rlhf.dev/job-uid": uid}
    pod = {"containers": [{"name": "a", "image": "b"}]}
    for name in ("one", "two"):
        body = {"metadata": {"name": name, "labels": labels}, "spec": pod}
        jobs.core.create_namespaced_pod(jobs.namespace, body)
        eventually(
            lambda name=name: name in jobs.condition("odd", "ChildrenIntact").get("message", "")
        )
    known = {("Normal", "UserRequested"): 1, ("Warning", "ForeignChild"): 1}
    stays(jobs, "odd", known)
    for name in ("one", "two"):
        jobs.core.delete_namespaced_pod(name, jobs.namespace, grace_period_seconds=0)
    stays(jobs, "odd", known | {("Normal", "Intact"): 1})


def let_run(jobs: Jobs, child: str, *, run: bool) -> None:
    """As Kueue: admit a Job, or take it back."""
    jobs.batch.patch_namespaced_job(child, jobs.namespace, {"spec": {"suspend": not run}})


def row(jobs: Jobs, name: str) -> list[str]:
    place = ("-n", jobs.namespace, name, "-o", "wide", "--no-headers")
    return jobs.access.kubectl("get", "rlhf", *place).stdout.split()


@pytest.mark.parametrize("watched", [True, False])
def test_a_preempted_attempt_waits_in_its_queue_and_goes_on(
    operator: OperatorProcess, jobs: Jobs, tmp_path: Path, watched: bool
) -> None:
    """Whether or not an operator is there when its pods go, and what they say at their end."""
    jobs.create("taken", queueName="team")
    eventually(lambda: jobs.stage("taken").get("reason") == "Queued")
    let_run(jobs, "taken-sft-1", run=True)
    jobs.wait_for_pods("taken")
    jobs.bind(jobs.pods("taken")[0])
    jobs.run("taken")
    jobs.reaches("taken", "Running")
    known = {CREATED: 1, ("Normal", "Queued"): 1, ("Normal", "PodsReady"): 1}
    stays(jobs, "taken", known)
    if not watched:
        operator.end()
    let_run(jobs, "taken-sft-1", run=False)
    eventually(lambda: jobs.pods("taken")[0].metadata.deletion_timestamp)
    (pod,) = jobs.pods("taken")
    result = jobs.result("taken", "sft", 1, 75, reason="Stopped", lastCheckpointStep=3)
    jobs.end_pod(pod, 75, result)
    jobs.remove_pod(pod)
    again = operator if watched else OperatorProcess(jobs.access, jobs.namespace, tmp_path)
    try:
        found = jobs.reaches("taken", "Starting")
        assert (found["reason"], found["attempt"]) == ("Queued", 1)
        assert {"Pending", "Queued"} <= set(row(jobs, "taken"))
        for kind in ("Admitted", "Running"):
            told_by = jobs.condition("taken", kind)
            assert (told_by["status"], told_by["reason"]) == ("False", "Queued"), kind
        stays(jobs, "taken", known | {("Normal", "Queued"): 2})
        let_run(jobs, "taken-sft-1", run=True)
        jobs.run("taken")
        found = jobs.reaches("taken", "Running")
        assert (found["restarts"], found["disruptions"]) == (0, 0)
        # It was held for the two seconds at least in which no further Event came.
        assert found["idleSeconds"] >= 2
        assert jobs.condition("taken", "Admitted")["status"] == "True"
        jobs.finish("taken")
        eventually(lambda: jobs.phase("taken") == "Succeeded")
        assert jobs.stage("taken")["attempt"] == 1
    finally:
        if not watched:
            again.end_well()


def disowned(jobs: Jobs, name: str) -> list[Raw]:
    """The running attempt of a job is taken from it, and named for that; gives its owners."""
    jobs.create(name)
    jobs.run(name)
    jobs.reaches(name, "Running")
    owners = jobs.own(f"{name}-sft-1", [])
    said = f"Job {name}-sft-1 has no ownerReference to RLHFJob {name}"
    eventually(lambda: said in jobs.condition(name, "ChildrenIntact").get("message", ""))
    assert jobs.condition(name, "ChildrenIntact")["reason"] == "ChildChanged"
    return owners


def made(jobs: Jobs) -> list[str]:
    return [each.metadata.name for each in jobs.batch.list_namespaced_job(jobs.namespace).items]


@pytest.mark.parametrize("hidden", [False, True])
def test_an_attempt_that_has_lost_its_owner_is_seen_to_its_end(
    operator: OperatorProcess, jobs: Jobs, tmp_path: Path, hidden: bool
) -> None:
    """Whether or not the watches show it, and by an operator that never saw it owned."""
    disowned(jobs, "orphan")
    if hidden:
        jobs.relabel("orphan-sft-1", None)
    operator.end()
    second = OperatorProcess(jobs.access, jobs.namespace, tmp_path)
    try:
        second.wait_until_leading()
        jobs.patch("orphan", runPolicy={"maxRestarts": 7})
        eventually(lambda: jobs.get("orphan")["status"]["observedGeneration"] == 2)
        assert (jobs.stage("orphan")["state"], made(jobs)) == ("Running", ["orphan-sft-1"])
        told = jobs.result("orphan", "sft", 1, 1, reason="Crashed", message="it broke")
        jobs.finish("orphan", code=1, message=told)
        jobs.run("orphan", attempt=2)
        found = jobs.reaches("orphan", "Running", attempt=2)
        assert (found["restarts"], found["disruptions"]) == (1, 0)
        jobs.wait_for_events("orphan", ("Warning", "Crashed"))
        assert ("Warning", "Disrupted") not in jobs.events("orphan")
    finally:
        second.end_well()


def test_no_attempt_is_started_beside_one_that_has_lost_its_owner(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    owners = disowned(jobs, "taken")
    jobs.patch("taken", suspend=True)
    jobs.reaches("taken", "Stopping")
    jobs.patch("taken", suspend=False)
    eventually(lambda: jobs.get("taken")["status"]["observedGeneration"] == 3)
    eventually(lambda: is_still(lambda: (jobs.stage("taken"), made(jobs)), 3))
    assert (jobs.stage("taken")["state"], made(jobs)) == ("Stopping", ["taken-sft-1"])
    assert jobs.pods("taken")[0].metadata.deletion_timestamp is None
    jobs.own("taken-sft-1", owners)
    jobs.run("taken", attempt=2)
    jobs.reaches("taken", "Running", attempt=2)
    assert made(jobs) == ["taken-sft-2"]
    assert jobs.condition("taken", "ChildrenIntact")["status"] == "True"


def test_a_job_without_parallelism_runs_no_more_and_goes_on_with_it(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("scaled")
    jobs.run("scaled")
    jobs.reaches("scaled", "Running")
    (pod,) = jobs.pods("scaled")
    jobs.batch.patch_namespaced_job("scaled-sft-1", jobs.namespace, {"spec": {"parallelism": 0}})
    jobs.reaches("scaled", "Starting")
    eventually(lambda: "spec.parallelism of 0" in jobs.stage("scaled")["message"])
    assert jobs.phase("scaled") == "Pending"
    said = jobs.condition("scaled", "ChildrenIntact")
    assert (said["status"], said["reason"]) == ("False", "ChildChanged")
    assert "Job scaled-sft-1: spec.parallelism is 0; set it to 1 again" in said["message"]
    jobs.batch.patch_namespaced_job("scaled-sft-1", jobs.namespace, {"spec": {"parallelism": 1}})
    eventually(lambda: {each.metadata.uid for each in jobs.pods("scaled")} - {pod.metadata.uid})
    jobs.run("scaled")
    found = jobs.reaches("scaled", "Running")
    assert (found["restarts"], found["disruptions"]) == (0, 0)
    eventually(lambda: jobs.condition("scaled", "ChildrenIntact")["status"] == "True")
