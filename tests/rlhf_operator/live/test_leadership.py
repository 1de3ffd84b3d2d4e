"""Two operators at once: one leads, the other takes over, and no attempt is started twice."""

import signal
import time
from pathlib import Path

from cluster.kube_fixtures import Access
from operating import Jobs, OperatorProcess, eventually, stage


def test_the_second_takes_over_at_once_and_starts_nothing_twice(
    control_plane: Access, jobs: Jobs, tmp_path: Path
) -> None:
    first = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    first.wait_until_leading()
    second = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    try:
        jobs.create("both", stages={"sft": stage(), "reward": stage(model={"fromStage": "sft"})})
        jobs.run("both")
        jobs.reaches("both", "Running")
        assert " leads" not in second.log.read_text()
        eventually(lambda: "serving" in second.log.read_text())
        assert second.get("/readyz")[0] == 200
        assert first.end() == 0
        started = time.monotonic()
        second.wait_until_leading()
        assert time.monotonic() - started < 10
        jobs.finish("both")
        jobs.run("both", "reward")
        jobs.reaches("both", "Running", "reward")
        made = [job.metadata.name for job in jobs.batch.list_namespaced_job(jobs.namespace).items]
        assert sorted(made) == ["both-reward-1", "both-sft-1"]
        assert jobs.stage("both")["restarts"] == 0
    finally:
        first.end(signal.SIGKILL)
        second.end()


def test_a_killed_leader_is_followed_within_twenty_seconds(
    control_plane: Access, jobs: Jobs, tmp_path: Path
) -> None:
    first = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    first.wait_until_leading()
    second = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    try:
        jobs.create("orphan")
        jobs.run("orphan")
        jobs.reaches("orphan", "Running")
        first.end(signal.SIGKILL)
        killed = time.monotonic()
        jobs.finish("orphan")
        eventually(lambda: jobs.phase("orphan") == "Succeeded", seconds=20)
        print(f"taken over after {time.monotonic() - killed:.1f} s")  # noqa: T201
        assert jobs.stage("orphan")["attempt"] == 1
    finally:
        first.end(signal.SIGKILL)
        second.end()


def test_a_missing_setting_is_named(control_plane: Access, tmp_path: Path) -> None:
    operator = OperatorProcess(
        control_plane, "default", tmp_path, TRAINER_IMAGE="", LEASE_NAME="other"
    )
    assert operator.end(0) == 78
    assert "RLHF_OPERATOR_TRAINER_IMAGE" in operator.log.read_text()
