"""A job in a folder of its own, run with the stand-in launcher in this process or in another."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from waiting import PATIENCE, eventually

from rlhf_api.errors import RLHFError
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_cli.app import run_job

HERE = Path(__file__).parent
ROW = {"prompt": "the cat", "response": "sat", "chosen": "sat", "rejected": "hat"}
"""A row that every stage takes."""
STANDIN = (sys.executable, str(HERE / "standin.py"))


class Bench:
    """A job file `job.yaml` and a root for workdirs, `runs`, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "job.yaml"
        self.root = folder / "runs"
        self.workdir = self.root / "reviews"
        self.processes: list[subprocess.Popen[bytes]] = []
        (self.folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
        self.go()
        self.write()

    def write_model(self, name: str, **settings: Any) -> None:
        """What a model's folder holds at least, with one weight of two numbers."""
        folder = self.folder / name
        folder.mkdir()
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]} | settings
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer.json").write_text("{}")
        header = b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
        (folder / "model.safetensors").write_bytes(
            len(header).to_bytes(8, "little") + header + bytes(8)
        )

    def go(self, **stages: Any) -> None:
        """How the attempts of each stage go, from now on."""
        (self.folder / "ways.json").write_text(json.dumps(stages))

    def write(self, names: tuple[str, ...] = ("sft",), **spec: Any) -> None:
        """The job file; every stage reads the one before it."""
        dataset = {"uri": "file://rows.jsonl"}
        known: dict[str, Any] = {
            "sft": {"model": {"uri": "hf://org/base"}, "dataset": dataset},
            "reward": {"model": {"fromStage": "sft"}, "dataset": dataset},
            "ppo": {
                "model": {"fromStage": "sft"},
                "rewardModel": {"fromStage": "reward"},
                "dataset": dataset,
            },
        }
        document = {
            "apiVersion": "rlhf.dev/v1alpha1",
            "kind": "RLHFJob",
            "metadata": {"name": "reviews"},
            "spec": {"stages": {name: known[name] for name in names}} | spec,
        }
        self.file.write_text(yaml.safe_dump(document, allow_unicode=True))

    def run(self, **options: Any) -> int:
        """`rlhf run` here."""
        return run_job(self.file, self.root, [], **({"launcher": STANDIN} | options))

    def spawn(self) -> subprocess.Popen[bytes]:
        """`rlhf run` in a process of its own."""
        with (self.folder / "run.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(HERE / "drive.py"), str(self.file), str(self.root)],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.processes.append(process)
        return process

    @property
    def log(self) -> str:
        return (self.folder / "run.log").read_text()

    @property
    def job(self) -> RLHFJob:
        return RLHFJob.from_file(self.workdir / "status.yaml")

    def stage(self, name: str = "sft") -> Any:
        return getattr(self.job.status.stages, name)

    def attempt(self, number: int, name: str = "sft") -> Path:
        (found,) = self.workdir.glob(f"reviews-*/{name}/attempt-{number}")
        return found

    def attempts(self, name: str = "sft") -> list[str]:
        return sorted(path.name for path in self.workdir.glob(f"reviews-*/{name}/attempt-*"))

    def wait(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Until `condition` holds; what is not there yet is waited for."""
        eventually(
            condition,
            seconds,
            what=lambda: f"what the test waits for; the log says:\n{self.log}\n",
            not_yet=(OSError, RLHFError, AttributeError),
        )

    def step(self, name: str = "sft") -> int:
        progress = self.stage(name).progress
        return 0 if progress is None else int(progress.step)

    def alive(self) -> list[psutil.Process]:
        """Everything that runs with a file of this bench."""
        found = []
        for process in psutil.process_iter():
            try:
                line = process.cmdline()
                if any(str(self.workdir) in part for part in line) and (
                    process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except psutil.Error:
                continue
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)
    for found in made.alive():
        found.kill()
