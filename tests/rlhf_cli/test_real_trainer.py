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
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import sft_rows, tokenizer_folder, write_rows
from waiting import eventually

from rlhf_api.v1alpha1 import RLHFJob

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


def stop_in_the_middle(process: subprocess.Popen[str], workdir: Path) -> None:
    eventually(
        lambda: len(steps(workdir, 1)) >= 5 or process.poll() is not None,
        WAIT_SECONDS,
        0.02,
        what="five steps are told",
    )
    assert process.poll() is None, process.communicate(timeout=WAIT_SECONDS)[0]
    process.send_signal(signal.SIGINT)


@pytest.mark.timeout(600)
def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    file = write_job(tmp_path)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    with running(file, whole) as uninterrupted:
        with running(file, parted) as first:
            stop_in_the_middle(first, parted)
            said, _ = first.communicate(timeout=WAIT_SECONDS)
            assert first.returncode == 130, said
            assert said.splitlines()[-1].startswith("rlhf: tiny was stopped")
        done = len(steps(parted, 1))
        assert 5 <= done < STEPS
        with running(file, parted) as second:
            said, _ = second.communicate(timeout=WAIT_SECONDS)
            assert second.returncode == 0, said
        said, _ = uninterrupted.communicate(timeout=WAIT_SECONDS)
        assert uninterrupted.returncode == 0, said

    stage = RLHFJob.from_file(parted / "tiny" / "status.yaml").status.stages.sft
    assert stage is not None
    assert (stage.attempt, stage.restarts, stage.disruptions) == (2, 0, 1)
    resumed, uncut = steps(parted, 2), steps(whole, 1)
    assert [event["step"] for event in resumed] == list(range(done + 1, STEPS + 1))
    assert resumed[-1]["metrics"]["loss"] == pytest.approx(uncut[-1]["metrics"]["loss"], abs=1e-5)
    assert uncut[-1]["metrics"]["loss"] < uncut[0]["metrics"]["loss"] / 2
    perplexities = [
        json.loads((folder / "tiny" / "summary.json").read_text())["sftPerplexity"]
        for folder in (whole, parted)
    ]
    assert perplexities[1] == pytest.approx(perplexities[0], abs=1e-5)


def rewritten(file: Path, folder: Path, **changed: Any) -> Path:
    """The job in `folder`, which its URIs refer to, with `changed` fields of its stage."""
    text = file.read_text().replace(f"file://{file.parent}/", "file://")
    document = yaml.safe_load(text)
    document["spec"]["stages"]["sft"] |= changed
    (folder / "job.yaml").write_text(yaml.safe_dump(document))
    return folder / "job.yaml"


@pytest.mark.timeout(600)
def test_what_was_done_is_kept_for_the_same_work_and_never_dropped(tmp_path: Path) -> None:
    file, workdir, other = write_job(tmp_path), tmp_path / "runs", tmp_path / "other"
    file = rewritten(file, tmp_path)
    with running(file, workdir) as first:
        stop_in_the_middle(first, workdir)
        said, _ = first.communicate(timeout=WAIT_SECONDS)
        assert first.returncode == 130, said
    done = len(steps(workdir, 1))
    begun = RLHFJob.from_file(workdir / "tiny" / "status.yaml").status.stages.sft
    assert begun is not None

    # The same text beside other files is other work.
    other.mkdir()
    shutil.copy(tmp_path / "rows.jsonl", other)
    shutil.copytree(tmp_path / "tokenizer", other / "tokenizer")
    with running(rewritten(file, other), workdir) as moved:
        said, _ = moved.communicate(timeout=WAIT_SECONDS)
        assert moved.returncode == 66, said
    refused = RLHFJob.from_file(workdir / "tiny" / "status.yaml").status.stages.sft
    assert refused is not None
    assert refused.config_digest != begun.config_digest
    for word in (begun.config_digest, refused.config_digest, f"checkpoints/step-{done};"):
        assert str(word) in said.splitlines()[-1]

    policy, env = {"everySteps": 150, "keep": 1}, [{"name": "NCCL_DEBUG", "value": "INFO"}]
    changed = rewritten(file, tmp_path, checkpoint=policy, env=env)
    with running(changed, workdir, "--retry") as again:
        said, _ = again.communicate(timeout=WAIT_SECONDS)
        assert again.returncode == 0, said
    assert [event["step"] for event in steps(workdir, 3)] == list(range(done + 1, STEPS + 1))
