"""Launchers as real processes, for tests: forked from a server that has torch in memory.

Ranks are the small programs of `rlhf_trainer/programs`.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import time
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from interpreters import import_path
from waiting import eventually

from rlhf_api.names import EnvVar, StageName
from rlhf_api.v1alpha1 import Dataset, JobReference, ModelSource, SFTStage, StageConfig, StageResult

PROGRAMS = Path(__file__).parent / "rlhf_trainer" / "programs"
WAIT_SECONDS = 60.0

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["rlhf_trainer.process.gang", "rlhf_trainer.launch"])


def stage_config(folder: Path, nodes: int = 1, processes: int = 1, port: int = 0) -> StageConfig:
    return StageConfig(
        job=JobReference(name="demo", uid="12345678-aaaa"),
        stage=StageName.SFT,
        attempt=2,
        nodes=nodes,
        processes_per_node=processes,
        master_port=port,
        storage=str(folder / "storage"),
        sft=SFTStage(model=ModelSource(uri="hf://a/b"), dataset=Dataset(uri="hf://a/c")),
    ).with_digest()


@dataclass
class Launched:
    """A launcher under test."""

    process: ForkServerProcess
    folder: Path
    log: Path
    message: Path

    def wait(self) -> int:
        """Its exit code."""
        self.process.join(WAIT_SECONDS)
        assert self.process.exitcode is not None, self.log.read_text()
        return self.process.exitcode

    def result(self) -> StageResult:
        """What it left as termination message."""
        found = StageResult.from_message(self.message.read_text())
        assert found is not None, self.message.read_text()
        return found

    def ask_to_stop(self, ranks: int, number: int = signal.SIGTERM) -> float:
        """Send a signal once all ranks can hear one; the monotonic clock just before."""
        eventually(
            lambda: all((self.folder / str(rank)).exists() for rank in range(ranks)),
            WAIT_SECONDS,
            what="every rank can hear a signal",
        )
        assert self.process.pid is not None
        asked = time.monotonic()
        os.kill(self.process.pid, number)
        return asked


@dataclass
class Launchers:
    """Starts launchers, and ends those that a failed test leaves."""

    folder: Path
    started: list[ForkServerProcess] = field(default_factory=list)

    def __call__(
        self,
        program: dict[int, str] | str,
        *,
        nodes: int = 1,
        processes: int = 1,
        node: int | None = None,
        port: int = 0,
        grace: float = 300.0,
        subreaper: bool = False,
        gpu: bool = False,
    ) -> Launched:
        """Start a launcher.

        Args:
            program: how each rank ends, see `ending.py`; or the name of a stage of `collective.py`.
            gpu: whether the launcher takes the machine for one with a GPU.
        """
        folder = self.folder / f"launcher-{len(self.started)}"
        folder.mkdir()
        config = stage_config(folder, nodes, processes, port)
        (folder / "stage.json").write_text(config.to_json())
        variables = {
            EnvVar.GRACE_PERIOD_SECONDS: str(grace),
            "READY_FOLDER": str(folder),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder),
            **import_path(),
        }
        if node is not None:
            variables[EnvVar.COMPLETION_INDEX] = str(node)
        command = (
            [str(PROGRAMS / "collective.py"), program]
            if isinstance(program, str)
            else [str(PROGRAMS / "ending.py"), json.dumps(program)]
        )
        return self.start(
            folder,
            [str(folder / "stage.json")],
            command,
            variables,
            subreaper=subreaper,
            gpu=gpu,
        )

    def start(
        self,
        folder: Path,
        arguments: list[str],
        command: list[str],
        variables: dict[str, str],
        *,
        subreaper: bool = False,
        gpu: bool = False,
    ) -> Launched:
        """Start a launcher whose files lie in `folder`, by its command line."""
        case = {
            "arguments": arguments,
            "program": command,
            "environment": {EnvVar.TERMINATION_MESSAGE: str(folder / "message"), **variables},
            "log": str(folder / "log"),
            "subreaper": subreaper,
            "gpu": gpu,
        }
        process = FORKSERVER.Process(
            target=runpy.run_path,
            args=(str(PROGRAMS / "launcher.py"),),
            kwargs={"init_globals": {"CASE": case}, "run_name": "__main__"},
        )
        process.start()
        self.started.append(process)
        return Launched(process, folder, folder / "log", folder / "message")

    def end(self) -> None:
        """Kill what is left."""
        for process in self.started:
            if process.is_alive():
                process.kill()
            process.join(WAIT_SECONDS)
            process.close()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
