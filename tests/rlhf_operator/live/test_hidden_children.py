"""Children that the operator's watches show no more, since somebody took the label of ours away.

They train on: named, counted, and reached by all that ends a job.
"""

from pathlib import Path

import pytest
from operating import Jobs, OperatorProcess, eventually
from rank_zero import RankZero

from rlhf_api.names import OPERATOR_NAME

LABEL = "app.kubernetes.io/managed-by"


def hidden(jobs: Jobs, name: str, value: str | None = None) -> None:
    """A job whose running attempt has lost the label, or has another one, and is named for it."""
    jobs.run(name)
    jobs.reaches(name, "Running")
    jobs.relabel(f"{name}-sft-1", value)
    found = eventually(
        lambda: (
            told
            if (told := jobs.condition(name, "ChildrenIntact")).get("status") == "False"
            else None
        )
    )
    assert found["reason"] == "ChildChanged"
    said = "is missing" if value is None else f"is {value!r}"
    assert (
        f"Job {name}-sft-1: label {LABEL} {said}; write {OPERATOR_NAME} again" in found["message"]
    )


def is_gone(jobs: Jobs, name: str) -> bool:
    made = jobs.batch.list_namespaced_job(jobs.namespace).items
    return f"{name}-sft-1" not in {each.metadata.name for each in made}


def test_no_second_gang_is_made_beside_a_hidden_one_which_is_suspended(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("veiled")
    hidden(jobs, "veiled")
    jobs.patch("veiled", suspend=True)
    eventually(lambda: jobs.phase("veiled") == "Suspended")
    eventually(lambda: is_gone(jobs, "veiled"))
    assert jobs.stage("veiled")["attempt"] == 1
    assert jobs.stage("veiled")["restarts"] == 0
    jobs.patch("veiled", suspend=False)
    jobs.run("veiled", attempt=2)
    jobs.reaches("veiled", "Running", attempt=2)
    eventually(lambda: jobs.condition("veiled", "ChildrenIntact")["status"] == "True")


def test_the_end_of_a_hidden_attempt_is_seen(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("ends")
    hidden(jobs, "ends", "helm")
    jobs.finish("ends")
    eventually(lambda: jobs.phase("ends") == "Succeeded")
    assert jobs.stage("ends")["attempt"] == 1


def test_a_hidden_attempt_that_is_deleted_is_lost(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("lost")
    hidden(jobs, "lost")
    path = "Background"
    jobs.batch.delete_namespaced_job("lost-sft-1", jobs.namespace, propagation_policy=path)
    jobs.run("lost", attempt=2)
    jobs.reaches("lost", "Running", attempt=2)
    assert is_gone(jobs, "lost")


@pytest.mark.parametrize("limit", ["activeDeadlineSeconds", "stageDeadlineSeconds"])
def test_deadlines_reach_a_hidden_attempt_though_the_operator_begins_anew(
    control_plane: None, jobs: Jobs, tmp_path: Path, limit: str
) -> None:
    first = OperatorProcess(jobs.access, jobs.namespace, tmp_path, RESYNC_SECONDS="2")
    first.wait_until_leading()
    try:
        jobs.create("late")
        hidden(jobs, "late")
    finally:
        first.end_well()
    second = OperatorProcess(jobs.access, jobs.namespace, tmp_path, RESYNC_SECONDS="2")
    second.wait_until_leading()
    try:
        jobs.patch("late", runPolicy={limit: 1})
        eventually(lambda: jobs.phase("late") == "Failed")
        assert jobs.condition("late", "Failed")["reason"] == "DeadlineExceeded"
        # Its pods are gone, and the garbage collector removes it after them.
        eventually(lambda: is_gone(jobs, "late"))
        assert jobs.stage("late")["attempt"] == 1
    finally:
        second.end_well()


def named(jobs: Jobs, name: str, pod: str, said: str) -> None:
    """Wait until ChildrenIntact names a pod for its label."""

    def told() -> bool:
        found = jobs.condition(name, "ChildrenIntact")
        words = f"Pod {pod}: label {LABEL} {said}; write {OPERATOR_NAME} again"
        return found.get("reason") == "ChildChanged" and words in found["message"]

    eventually(told)


@pytest.mark.parametrize("value", [None, "platform"])
def test_a_pod_that_loses_its_label_is_asked_on_how_far_it_is(
    operator: OperatorProcess, jobs: Jobs, value: str | None
) -> None:
    with RankZero(7) as page:
        jobs.create("asked")
        jobs.run("asked")
        jobs.reaches("asked", "Running")
        (pod,) = jobs.pods("asked")
        jobs.relabel_pod(pod, value)
        named(jobs, "asked", pod.metadata.name, "is missing" if value is None else f"is {value!r}")
        jobs.reach(pod, page.address)
        eventually(lambda: (jobs.stage("asked").get("progress") or {}).get("step") == 7)
    jobs.finish("asked")
    eventually(lambda: jobs.phase("asked") == "Succeeded")
    assert jobs.stage("asked")["restarts"] == 0


def test_a_gang_runs_whose_pods_no_watch_shows_from_before_they_run(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    """As where a policy, or another tool, writes a label of its own on every pod."""
    jobs.create("unseen", runPolicy={"pendingDeadlineSeconds": 60})
    jobs.wait_for_pods("unseen")
    (pod,) = jobs.pods("unseen")
    jobs.relabel_pod(pod, "platform")
    jobs.run("unseen")
    jobs.reaches("unseen", "Running")
    named(jobs, "unseen", pod.metadata.name, "is 'platform'")
    jobs.relabel_pod(pod, OPERATOR_NAME)
    eventually(lambda: jobs.condition("unseen", "ChildrenIntact")["status"] == "True")
    assert jobs.stage("unseen")["attempt"] == 1
