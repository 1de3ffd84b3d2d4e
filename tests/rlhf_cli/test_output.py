"""Readers who leave, disks that are full, and letters that cannot be shown: nothing ends for it."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from interpreters import import_path
from waiting import PATIENCE

HERE = Path(__file__).parent
Opened = Callable[[], int]
RLHF = (sys.executable, "-m", "rlhf_cli")


def ended(
    *command: object, stdout: Opened | None = None, stderr: Opened | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """How a command ends whose output goes where it is said, or is kept."""
    outputs = [opened() if opened else subprocess.PIPE for opened in (stdout, stderr)]
    try:
        return subprocess.run(
            [*map(str, command)],
            stdout=outputs[0],
            stderr=outputs[1],
            env=os.environ | import_path() | variables,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        for descriptor in outputs:
            if descriptor != subprocess.PIPE:
                os.close(descriptor)


def reader_that_left() -> int:
    """The writing end of a pipe that nobody reads, as `head -1` leaves it."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


unreadable = pytest.mark.parametrize("opened", [reader_that_left, full_disk])


@unreadable
def test_a_job_is_valid_whoever_reads_it(bench: Any, opened: Opened) -> None:
    done = ended(*RLHF, "validate", bench.file, stdout=opened)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)


@unreadable
def test_a_run_goes_on_without_a_reader(bench: Any, opened: Opened) -> None:
    done = ended(sys.executable, HERE / "drive.py", bench.file, bench.root, stdout=opened)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bench.job.status.phase == "Succeeded"
    assert (bench.workdir / "summary.json").exists()


@unreadable
def test_a_mistake_keeps_its_code_where_nobody_hears_of_it(bench: Any, opened: Opened) -> None:
    bench.write(sead=1)
    assert ended(*RLHF, "validate", bench.file, stderr=opened).returncode == 78


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk"])
def test_letters_that_cannot_be_shown_are_escaped(bench: Any, encoding: str) -> None:
    bench.write_model("模型é")
    model = {"uri": "file://模型é"}
    bench.write(stages={"sft": {"model": model, "dataset": {"uri": "file://rows.jsonl"}}})
    done = ended(*RLHF, "validate", bench.file, PYTHONIOENCODING=encoding)
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    shown = "模型é".encode(encoding, "backslashreplace")
    assert b"model from file://" + shown in done.stdout
