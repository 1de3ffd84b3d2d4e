"""Real ranks under test: processes that stay between calls, since importing torch costs seconds.

worlds.pair()(PROGRAM, "function", config=config)    # two ranks; results by rank
"""

import atexit
import importlib.util
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import lru_cache
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import ModuleType
from typing import Any

import tiny
from interpreters import import_path

RANK = Path(__file__).parent / "rlhf_trainer" / "programs_engine" / "rank.py"
CALL_SECONDS = 240.0
END_SECONDS = 60.0
"""Within which a process that was killed, or that closed its pipe, has ended."""


@lru_cache
def load(program: Path) -> ModuleType:
    """The module in a file that no package holds, such as a program for ranks."""
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class RankFailed(AssertionError):  # noqa: N818 - named as what it says
    """A function failed on a rank; the message is its traceback."""


class World:
    """Ranks in processes of their own.

    A call runs one function of a file on all of them: `function(ranks, **arguments)`. Arguments and
    results are pickled. When one fails or none answers, all are killed, and the next call starts
    new ones.
    """

    def __init__(self, size: int, environment: Mapping[str, str] | None = None) -> None:
        self.size = size
        self._environment = dict(environment or {})
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection] = []

    def __call__(self, program: Path, function: str, **arguments: Any) -> list[Any]:
        """What the function returned, by rank.

        Raises:
            RankFailed: it raised on a rank, or a rank ended or did not answer in time.
        """
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(pickle.dumps((str(program), function, arguments)))
        deadline = time.monotonic() + CALL_SECONDS
        found: dict[int, Any] = {}
        while len(found) < self.size:
            for rank, pipe in enumerate(self._pipes):
                if rank not in found and pipe.poll(0.01):
                    found[rank] = self._received(rank)
            if time.monotonic() > deadline:
                self.end()
                raise RankFailed(f"{function}: ranks {sorted(found)} of {self.size} answered")
        return [found[rank] for rank in range(self.size)]

    def end(self) -> None:
        """Kill the ranks; the next call starts new ones."""
        for process in self._processes:
            process.kill()
            process.wait(END_SECONDS)
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []

    def close(self) -> None:
        """Kill the ranks for good."""
        self.end()
        self._folder.cleanup()

    def _received(self, rank: int) -> Any:
        try:
            good, value = pickle.loads(self._pipes[rank].recv_bytes())
        except EOFError:
            good, value = False, f"the process ended with {self._processes[rank].wait(END_SECONDS)}"
        if good:
            return value
        self.end()
        raise RankFailed(f"rank {rank}: {value}\n{self._log(rank).read_text()[-2000:]}")

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"rank-{rank}.log"

    def _start(self) -> None:
        meeting = Path(self._folder.name) / f"meeting-{time.monotonic_ns()}"
        for rank in range(self.size):
            mine, theirs = Pipe()
            with self._log(rank).open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, str(RANK), str(theirs.fileno()), str(meeting)],
                    pass_fds=[theirs.fileno()],
                    stdout=log,
                    stderr=log,
                    env=os.environ
                    | {
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "WORLD_SIZE": str(self.size),
                        "LOCAL_WORLD_SIZE": str(self.size),
                        "OMP_NUM_THREADS": "1",
                        "TOKENIZERS_PARALLELISM": "false",
                        **import_path(),
                    }
                    | self._environment,
                )
            theirs.close()
            self._processes.append(process)
            self._pipes.append(mine)


@lru_cache
def pair() -> World:
    """Two ranks for all tests of a session."""
    world = World(2)
    atexit.register(world.close)
    return world


def on(program: Path, world_size: int, function: str, **arguments: Any) -> list[Any]:
    """Results by rank, of one rank in this process or of two in their own."""
    if world_size == 1:
        return [getattr(load(program), function)(tiny.ranks(), **arguments)]
    return pair()(program, function, **arguments)
