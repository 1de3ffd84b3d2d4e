"""Launchers that do not go by themselves; see test_runner for whole runs."""

import sys
import time
from pathlib import Path

import pytest
from waiting import eventually

from rlhf_api.names import EnvVar, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus, StageStatus, StageStatuses
from rlhf_cli.launchers import Launchers
from rlhf_cli.workdir import LOG, Workdir
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.configs import Placement, stage_config

DEAF = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.stdout.write("deaf")
sys.stdout.flush()
time.sleep(300)
"""

NEWER = f"""
import os, pathlib, sys
message = pathlib.Path(os.environ["{EnvVar.TERMINATION_MESSAGE}"])
message.write_text('{{"contractVersion": 99, "later": 1}}')
sys.exit(int(sys.argv[1]))
"""


EVALUATING = """
import json, pathlib, sys
at = pathlib.Path(sys.argv[1]).parent
kind = "evaluating" if at.name == "attempt-1" else "step"
(at / "events.jsonl").write_text(json.dumps({"type": kind, "step": 4, "totalSteps": 8}) + chr(10))
"""


def running_job(attempt: int = 1) -> RLHFJob:
    """A job whose stage sft has begun an attempt."""
    sft = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "hf://a/b"}}
    job = RLHFJob.from_document(
        {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "reviews", "uid": "0123456789"},
            "spec": {"stages": {"sft": sft}},
        }
    )
    running = StageStatus(state=StageState.RUNNING, attempt=attempt)
    status = RLHFJobStatus(stages=StageStatuses(sft=running))
    return job.model_copy(update={"status": status})


def test_one_that_does_not_stop_is_killed_after_its_grace_period(tmp_path: Path) -> None:
    job = running_job()
    workdir = Workdir(tmp_path, "reviews")
    launchers = Launchers(workdir, (sys.executable, "-c", DEAF), grace_seconds=3.0)
    assert launchers.observe(job).attempts == ()

    placement = Placement(storage=str(workdir.folder))
    config = stage_config(job, StageName.SFT, 1, {}, placement)
    launchers.start(StartAttempt(StageName.SFT, 1, config, checkpoint_step=5), {})
    (seen,) = launchers.observe(job).attempts
    assert (seen.live, seen.ready, seen.stopping, seen.checkpoint_step) == (True, True, False, 5)

    log = workdir.attempt_folder(job, StageName.SFT, 1) / LOG
    eventually(lambda: log.read_text() == "deaf")
    asked = time.monotonic()
    launchers.stop(StageName.SFT, 1)
    assert launchers.observe(job).attempts[0].stopping

    def killed() -> bool:
        launchers.kill_late()
        return not launchers.any_alive()

    eventually(killed, what="the launcher is killed")
    assert time.monotonic() - asked >= 3.0
    (seen,) = launchers.observe(job).attempts
    assert (seen.live, seen.failed, seen.processes[0].exit_code) == (False, True, 137)


def test_a_stage_evaluates_if_its_last_attempt_does(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path, "reviews")
    placement = Placement(storage=str(workdir.folder))
    launchers = Launchers(workdir, (sys.executable, "-c", EVALUATING), grace_seconds=3.0)

    def begin(attempt: int) -> None:
        job = running_job(attempt)
        config = stage_config(job, StageName.SFT, attempt, {}, placement)
        launchers.start(StartAttempt(StageName.SFT, attempt, config, checkpoint_step=None), {})
        eventually(lambda: not launchers.any_alive())
        launchers.observe(job)

    begin(1)
    assert launchers.evaluations().running == {StageName.SFT}
    begin(2)
    assert launchers.evaluations().running == set()


@pytest.mark.parametrize("code", [0, 78])
def test_a_result_of_another_release_is_told_apart(tmp_path: Path, code: int) -> None:
    job, workdir = running_job(), Workdir(tmp_path, "reviews")
    launchers = Launchers(workdir, (sys.executable, "-c", NEWER, str(code)), grace_seconds=3.0)
    config = stage_config(job, StageName.SFT, 1, {}, Placement(storage=str(workdir.folder)))
    launchers.start(StartAttempt(StageName.SFT, 1, config), {})
    eventually(lambda: not launchers.any_alive())
    (seen,) = launchers.observe(job).attempts
    (process,) = seen.processes
    assert (process.exit_code, process.result) == (code, None)
    assert process.reason is Reason.CONTRACT_VERSION
    assert "result.json: the stage's result: contractVersion is 99, but this" in process.message
