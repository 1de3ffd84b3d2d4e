"""What holds a job back, or is odd beside it, is told once, by what a person looks at."""

from collections import Counter
from pathlib import Path

from operating import Jobs, OperatorProcess, eventually, stage
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
