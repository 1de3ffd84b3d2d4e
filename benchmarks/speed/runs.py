"""Runs jobs as `rlhf run` does, and reads what they tell while they run."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_api.loading import dump_yaml
from rlhf_api.names import FileName, StageName
from speed.figures import Events, PhaseSeconds, phase_seconds
from speed.jobs import PREPARE, Raw, models

RUN_SECONDS = 3600
ASK_EVERY_SECONDS = 0.5
ANSWER_SECONDS = 5.0


class RunError(RuntimeError):
    """A run did not end well."""


def command_line(about: str) -> argparse.ArgumentParser:
    """What both benchmarks can be asked; `about` is a docstring, whose first line is shown."""
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--json", type=Path, required=True, help="file for the figures")
    parser.add_argument("--peer", choices=["trl"], help="measure that as well (takes minutes more)")
    parser.add_argument("--threads", type=int, help="of each run (all processors)")
    parser.add_argument("--folder", type=Path, help="keeps models for the next time (none is kept)")
    return parser


@dataclass(frozen=True)
class Prepared:
    """What all measured stages start from."""

    data: Path
    sft: Path
    reward: Path


@dataclass
class Endpoint:
    """The metrics of a stage, asked as long as it runs."""

    events: Path
    told: list[PhaseSeconds] = field(default_factory=list)
    _url: str | None = None

    def ask(self) -> None:
        """Note what it has spent on its phases; nothing before it learns, or when it has gone."""
        url = self._url or self._find()
        if url is None:
            return
        try:
            with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:
                told = phase_seconds(answer.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return
        if told is not None:
            self.told.append(told)

    def _find(self) -> str | None:
        """Its address, from the stage's first event."""
        try:
            line = self.events.read_text("utf-8").splitlines(keepends=True)[0]
        except (FileNotFoundError, IndexError):
            return None
        if not line.endswith("\n"):
            return None
        port = json.loads(line)["metricsPort"]
        self._url = f"http://127.0.0.1:{port}/metrics"
        return self._url


def environment(threads: int) -> dict[str, str]:
    """Of each process that is measured; a peer has the same."""
    given = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    return os.environ | given


def run(
    document: Raw, folder: Path, variables: Mapping[str, str]
) -> tuple[Path, list[PhaseSeconds]]:
    """Run a job; the folder of its runs, and what the endpoint of a stage told.

    Raises:
        RunError: a stage failed, with the end of what it printed; or it took RUN_SECONDS.
    """
    name = document["metadata"]["name"]
    path = folder / f"{name}.yaml"
    path.write_text(dump_yaml(document), "utf-8")
    (stage, *_) = document["spec"]["stages"]
    command = [sys.executable, "-m", "rlhf_cli", "run", str(path), "--workdir", str(folder)]
    begun = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(
            [*command, "--quiet"], stdout=printed, stderr=subprocess.STDOUT, env=dict(variables)
        )
        try:
            told = _watch(process, folder / name, stage, begun)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode:
            printed.seek(0)
            text = printed.read().decode(errors="replace")[-3000:]
            raise RunError(f"job {name} ended with {process.returncode}: {text}")
    sys.stderr.write(f"{name}: {time.monotonic() - begun:.0f} s\n")
    return folder / name, told


def _watch(
    process: "subprocess.Popen[bytes]", folder: Path, stage: str, begun: float
) -> list[PhaseSeconds]:
    """Ask its endpoint from time to time, until the process ends."""
    endpoint: Endpoint | None = None
    while time.monotonic() - begun < RUN_SECONDS:
        try:
            process.wait(ASK_EVERY_SECONDS)
        except subprocess.TimeoutExpired:
            if endpoint is None:
                attempts = list(folder.glob(f"*/{stage}/attempt-1"))
                endpoint = Endpoint(attempts[0] / FileName.EVENTS) if attempts else None
            if endpoint is not None:
                endpoint.ask()
        else:
            return endpoint.told if endpoint is not None else []
    raise RunError(
        f"job {folder.name} took longer than {RUN_SECONDS} s: ask for fewer updates or steps"
    )


def events_of(folder: Path, stage: StageName) -> Events:
    """What a job's stage told in its only attempt."""
    (path,) = folder.glob(f"*/{stage}/attempt-*/{FileName.EVENTS}")
    return Events.parse(path.read_text("utf-8").splitlines())


def prepare(folder: Path) -> Prepared:
    """Data, SFT model and reward model, made once in a folder.

    Raises:
        RunError: as `run`; or the data could not be made.
    """
    data = folder / "data"
    done = subprocess.run(
        [sys.executable, str(PREPARE), "prepare", "--output", str(data)],
        check=False,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
    )
    if done.returncode:
        raise RunError(f"{PREPARE} ended with {done.returncode}: {done.stderr[-3000:]}")
    # The two stages have two ranks each.
    made, _ = run(models(data), folder, environment(1))
    return Prepared(data, _artifact(made, StageName.SFT), _artifact(made, StageName.REWARD))


def _artifact(folder: Path, stage: StageName) -> Path:
    """Of the attempt that finished."""
    (manifest,) = folder.glob(f"*/{stage}/attempt-*/{FileName.ARTIFACT}/{FileName.MANIFEST}")
    return manifest.parent


def threads_of(given: int | None) -> int:
    """As many as are asked for, or as there are processors."""
    return given or len(os.sched_getaffinity(0))


def run_peer(
    command: Sequence[str], task: Mapping[str, object], folder: Path, variables: Mapping[str, str]
) -> Path:
    """Run a peer's script on a task; the file with what it measured.

    Raises:
        RunError: it failed, with the end of what it printed; or it took RUN_SECONDS.
    """
    given, made = folder / "task.json", folder / "measured.json"
    folder.mkdir(parents=True)
    given.write_text(json.dumps(task), "utf-8")
    begun = time.monotonic()
    try:
        done = subprocess.run(
            [*command, str(given), str(made)],
            check=False,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            env=dict(variables),
            cwd=folder,
        )
    except subprocess.TimeoutExpired as error:
        raise RunError(
            f"{folder.name} took longer than {RUN_SECONDS} s: ask for fewer updates or steps"
        ) from error
    if done.returncode:
        raise RunError(f"{folder.name} ended with {done.returncode}: {done.stderr[-3000:]}")
    sys.stderr.write(f"{folder.name}: {time.monotonic() - begun:.0f} s\n")
    return made
