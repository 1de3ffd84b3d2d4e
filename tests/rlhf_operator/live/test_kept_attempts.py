"""What is left of failed attempts: the newest ones for their logs, and nothing of all others."""

from operating import Jobs, OperatorProcess, eventually


def children(jobs: Jobs, name: str) -> tuple[list[str], list[str]]:
    """Names of the Jobs and of the ConfigMaps of an RLHFJob, but for those being deleted."""
    found = (
        jobs.batch.list_namespaced_job(jobs.namespace).items,
        jobs.core.list_namespaced_config_map(jobs.namespace).items,
    )
    made, maps = (
        sorted(
            each.metadata.name
            for each in items
            if each.metadata.name.startswith(f"{name}-") and not each.metadata.deletion_timestamp
        )
        for items in found
    )
    return made, maps


def crash(jobs: Jobs, name: str, attempt: int) -> None:
    """Let an attempt run and fail, and wait until the next one is there."""
    jobs.run(name, attempt=attempt)
    jobs.reaches(name, "Running", attempt=attempt)
    jobs.finish(name, attempt=attempt, code=1)
    jobs.wait_for_pods(name, attempt=attempt + 1)


def test_the_newest_failed_attempts_stay_with_their_pods_and_older_ones_go(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("kept", runPolicy={"maxRestarts": 9, "keepFailedAttempts": 1})
    crash(jobs, "kept", 1)
    assert children(jobs, "kept") == (["kept-sft-1", "kept-sft-2"],) * 2
    crash(jobs, "kept", 2)
    eventually(lambda: children(jobs, "kept") == (["kept-sft-2", "kept-sft-3"],) * 2)
    eventually(lambda: not jobs.pods("kept", attempt=1))
    (pod,) = jobs.pods("kept", attempt=2)
    assert pod.status.phase == "Failed"
    jobs.patch("kept", runPolicy={"keepFailedAttempts": 0})
    eventually(lambda: children(jobs, "kept") == (["kept-sft-3"],) * 2)
    jobs.run("kept", attempt=3)
    jobs.reaches("kept", "Running", attempt=3)
    jobs.finish("kept", attempt=3)
    eventually(lambda: jobs.phase("kept") == "Succeeded")
    assert children(jobs, "kept") == (["kept-sft-3"],) * 2
    ready = jobs.condition("kept", "ChildrenReady")
    assert (ready["status"], ready["reason"]) == ("True", "Created")


def test_the_last_attempt_of_a_failed_job_goes_when_none_is_to_be_kept(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("spoilt")
    jobs.run("spoilt")
    told = jobs.result("spoilt", "sft", 1, 65, reason="DataError", message="no rows")
    jobs.finish("spoilt", code=65, message=told)
    eventually(lambda: jobs.phase("spoilt") == "Failed")
    assert children(jobs, "spoilt") == (["spoilt-sft-1"],) * 2
    jobs.patch("spoilt", runPolicy={"keepFailedAttempts": 0})
    eventually(lambda: children(jobs, "spoilt") == ([], []))
    assert "no rows" in jobs.condition("spoilt", "Failed")["message"]


def test_stopped_attempts_leave_no_config_maps_behind_but_a_foreign_one(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("pause")
    for attempt in (1, 2):
        jobs.run("pause", attempt=attempt)
        jobs.reaches("pause", "Running", attempt=attempt)
        jobs.patch("pause", suspend=True)
        eventually(lambda: jobs.phase("pause") == "Suspended")
        if attempt == 2:
            jobs.core.delete_namespaced_config_map("pause-sft-2", jobs.namespace)
            foreign = {"metadata": {"name": "pause-sft-2"}, "data": {"mine": "yes"}}
            jobs.core.create_namespaced_config_map(jobs.namespace, foreign)
        jobs.patch("pause", suspend=False)
    jobs.run("pause", attempt=3)
    jobs.reaches("pause", "Running", attempt=3)
    assert children(jobs, "pause") == (["pause-sft-3"], ["pause-sft-2", "pause-sft-3"])
    left = jobs.core.read_namespaced_config_map("pause-sft-2", jobs.namespace)
    assert left.data == {"mine": "yes"}
