"""`rlhf run` with the trainer itself: a run that was stopped ends as one that was not.

Everything else about the runner is tested with a stand-in, which starts in no time.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import sft_rows, tokenizer_folder, write_rows
from waiting import eventually

from rlhf_api.v1alpha1 import RLHFJob, StageStatus

STEPS = 300
WAIT_SECONDS = 180.0


def write_job(folder: Path) -> Path:
    """One stage of one rank, with a model of one layer."""
    rows = write_rows(folder / "rows.jsonl", sft_rows())
    sizes = {"layers": 1, "hiddenSize": 16, "heads": 2, "maxPositions": 64}
    tokenizer = f"file://{tokenizer_folder(folder / 'tokenizer')}"
    sft = {
        "model": {"uri": "scratch://llama", "scratch": sizes | {"tokenizer": tokenizer}},
        "dataset": {"uri": f"file://{rows}"},
        "evalDataset": {"uri": f"file://{rows}"},
        "precision": "FP32",
        "zeroStage": 0,
        "maxLength": 32,
        "batchSize": 4,
        "microBatchSize": 4,
        "maxSteps": STEPS,
        "learningRate": 0.01,
    }
    document = {
        "apiVersion": "rlhf.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": "tiny"},
        "spec": {"stages": {"sft": sft}},
    }
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@contextmanager
def running(file: Path, workdir: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`rlhf run` in a process of its own, asked to stop at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf_cli", "run", str(file), "--workdir", str(workdir), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=WAIT_SECONDS)


def steps(workdir: Path, attempt: int) -> list[dict[str, Any]]:
    """What the attempt has told of its steps so far."""
    lines = [
        line
        for path in workdir.glob(f"tiny/tiny-*/sft/attempt-{attempt}/events.jsonl")
        for line in path.read_text().split("\n")[:-1]
    ]
    return [event for event in map(json.loads, lines) if event["type"] == "step"]


def stop_in_the_middle(process: subprocess.Popen[str], workdir: Path, attempt: int) -> None:
    eventually(
        lambda: len(steps(workdir, attempt)) >= 5 or process.poll() is not None,
        WAIT_SECONDS,
        0.02,
        what="five steps are told",
    )
    assert process.poll() is None, process.communicate(timeout=WAIT_SECONDS)[0]
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=WAIT_SECONDS)
    assert process.returncode == 130, said
    assert said.splitlines()[-1].startswith("rlhf: tiny was stopped")


def sft_of(workdir: Path) -> StageStatus:
    """The stage's status."""
    found = RLHFJob.from_file(workdir / "tiny" / "status.yaml").status.stages.sft
    assert found is not None
    return found


def rewritten(file: Path, folder: Path, **changed: Any) -> Path:
    """The job in `folder`, which its URIs refer to, with `changed` fields of its stage."""
    text = file.read_text().replace(f"file://{file.parent}/", "file://")
    document = yaml.safe_load(text)
    document["spec"]["stages"]["sft"] |= changed
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder / "job.yaml"


@dataclass
class Stopped:
    """A run that was stopped twice, taken for other work in between, and changed at the end.

    Attributes:
        begun: the stage's status after the first stop.
        again: and after the second.
        refused: and when its files were others.
        said: what was printed then.
    """

    workdir: Path
    whole: Path
    begun: StageStatus
    again: StageStatus
    refused: StageStatus
    said: str


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """A start of the trainer costs seconds: one run for all that is asked of a run."""
    folder = tmp_path_factory.mktemp("real")
    whole, parted, other = (folder / name for name in ("whole", "parted", "other"))
    file = rewritten(write_job(folder), folder)
    with running(file, whole) as uninterrupted:
        found = []
        for attempt in (1, 2):
            with running(file, parted) as stopped:
                stop_in_the_middle(stopped, parted, attempt)
            found.append(sft_of(parted))

        # The same text beside other files is other work.
        other.mkdir()
        shutil.copy(folder / "rows.jsonl", other)
        shutil.copytree(folder / "tokenizer", other / "tokenizer")
        with running(rewritten(file, other), parted) as moved:
            refusal, _ = moved.communicate(timeout=WAIT_SECONDS)
            assert moved.returncode == 66, refusal
        refused = sft_of(parted)

        policy, env = {"everySteps": 150, "keep": 1}, [{"name": "NCCL_DEBUG", "value": "INFO"}]
        changed = rewritten(file, folder, checkpoint=policy, env=env)
        with running(changed, parted, "--retry") as last:
            said, _ = last.communicate(timeout=WAIT_SECONDS)
            assert last.returncode == 0, said
        said, _ = uninterrupted.communicate(timeout=WAIT_SECONDS)
        assert uninterrupted.returncode == 0, said
    return Stopped(parted, whole, *found, refused, refusal)


def numbers(workdir: Path, attempt: int) -> list[int]:
    """The attempt's steps."""
    return [event["step"] for event in steps(workdir, attempt)]


@pytest.mark.timeout(600)
def test_the_same_command_goes_on_where_a_run_was_stopped(story: Stopped) -> None:
    first, second = numbers(story.workdir, 1), numbers(story.workdir, 2)
    assert first == list(range(1, len(first) + 1))
    assert second == list(range(first[-1] + 1, second[-1] + 1))
    assert 10 <= second[-1] < STEPS
    assert (story.begun.attempt, story.again.attempt) == (1, 2)
    assert (story.again.restarts, story.again.disruptions) == (0, 2)


@pytest.mark.timeout(600)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(story: Stopped) -> None:
    resumed, uncut = steps(story.workdir, 4), steps(story.whole, 1)
    assert resumed[-1]["metrics"]["loss"] == pytest.approx(uncut[-1]["metrics"]["loss"], abs=1e-5)
    assert uncut[-1]["metrics"]["loss"] < uncut[0]["metrics"]["loss"] / 2
    perplexities = [
        json.loads((folder / "tiny" / "summary.json").read_text())["sftPerplexity"]
        for folder in (story.whole, story.workdir)
    ]
    assert perplexities[1] == pytest.approx(perplexities[0], abs=1e-5)


@pytest.mark.timeout(600)
def test_what_was_done_is_kept_for_the_same_work_and_never_dropped(story: Stopped) -> None:
    done = numbers(story.workdir, 2)[-1]
    assert story.again.config_digest == story.begun.config_digest
    assert story.refused.config_digest != story.begun.config_digest
    words = (story.begun.config_digest, story.refused.config_digest, f"checkpoints/step-{done};")
    for word in words:
        assert str(word) in story.said.splitlines()[-1]
    assert numbers(story.workdir, 4) == list(range(done + 1, STEPS + 1))
