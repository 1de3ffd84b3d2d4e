"""The launcher as real processes: every row of the exit-code table, signals, gangs, bad input.

Launchers are forked from a server that has torch in memory; ranks are small programs.
"""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from rlhf_api.names import EnvVar, Reason, StageName
from rlhf_api.v1alpha1 import Dataset, JobReference, ModelSource, SFTStage, StageConfig, StageResult

PROGRAMS = Path(__file__).parent / "programs"
WAIT_SECONDS = 60.0

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["rlhf_trainer.gang", "rlhf_trainer.launch"])


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
    )


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
        """Send a signal once all ranks can hear one; when that was."""
        wait_for(lambda: all((self.folder / str(rank)).exists() for rank in range(ranks)))
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        return time.monotonic()


def wait_for(holds: Callable[[], bool], seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)


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
    ) -> Launched:
        """Start a launcher.

        Args:
            program: how each rank ends, see `ending.py`; or the name of a stage of `collective.py`.
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
        }
        if node is not None:
            variables[EnvVar.COMPLETION_INDEX] = str(node)
        command = (
            [str(PROGRAMS / "collective.py"), program]
            if isinstance(program, str)
            else [str(PROGRAMS / "ending.py"), json.dumps(program)]
        )
        return self.start(folder, [str(folder / "stage.json")], command, variables, subreaper)

    def start(
        self,
        folder: Path,
        arguments: list[str],
        command: list[str],
        variables: dict[str, str],
        subreaper: bool = False,
    ) -> Launched:
        """Start a launcher whose files lie in `folder`, by its command line."""
        case = {
            "arguments": arguments,
            "program": command,
            "environment": {EnvVar.TERMINATION_MESSAGE: str(folder / "message"), **variables},
            "log": str(folder / "log"),
            "subreaper": subreaper,
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
            process.join()
            process.close()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launchers]:
    launchers = Launchers(tmp_path)
    yield launchers
    launchers.end()


@pytest.fixture(scope="module")
def stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A gang that takes half a minute to end, so that other tests run in the meantime."""
    launchers = Launchers(tmp_path_factory.mktemp("stuck"))
    yield launchers({0: "deaf", 1: "0.5:exit 65"}, processes=2)
    launchers.end()


ROWS: list[tuple[str, int, Reason]] = [
    ("done", 0, Reason.FINISHED),
    ("raise UsageError", 64, Reason.USAGE),
    ("raise DataError", 65, Reason.DATA_ERROR),
    ("raise InputError", 66, Reason.INPUT_INVALID),
    ("raise SelfCheckError", 70, Reason.SELF_CHECK_FAILED),
    ("raise PermissionDenied", 77, Reason.NO_PERMISSION),
    ("raise ConfigError", 78, Reason.CONFIG_INVALID),
    ("raise MemoryEstimateError", 78, Reason.OUT_OF_MEMORY),
    ("raise ServiceUnavailable", 69, Reason.SERVICE_UNAVAILABLE),
    ("raise disk-full", 74, Reason.IO_ERROR),
    ("raise GuardrailFired", 42, Reason.GUARDRAIL),
    ("raise PeerLost", 80, Reason.PEER_LOST),
    ("raise defect", 1, Reason.CRASHED),
    ("raise OutOfMemory", 1, Reason.OUT_OF_MEMORY),
    ("exit 3", 3, Reason.CRASHED),
    ("exit 66", 66, Reason.INPUT_INVALID),
    ("signal 9", 137, Reason.CRASHED),
    ("signal 11", 139, Reason.CRASHED),
]


@pytest.mark.usefixtures("stuck")
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("way", "code", "reason"), ROWS, ids=[row[0] for row in ROWS])
def test_every_row_of_the_table(
    launch: Launchers, way: str, code: int, reason: Reason, processes: int
) -> None:
    launched = launch(
        {processes - 1: way, **({0: "hang"} if code and processes > 1 else {})}, processes=processes
    )
    assert launched.wait() == code
    result = launched.result()
    assert (result.exit_code, result.reason, result.attempt) == (code, reason, 2)
    if code and processes > 1:
        assert result.message.startswith("rank 1")
    config = StageConfig.from_json((launched.folder / "stage.json").read_text())
    assert result.config_digest == config.digest()
    assert (result.metrics == {"loss": 0.5}) == (code == 0)


def test_the_command_is_shown_and_nothing_is_left_behind(launch: Launchers) -> None:
    launched = launch({})
    assert launched.wait() == 0
    shown = f"{sys.executable} {PROGRAMS / 'ending.py'} '{{}}' {launched.folder / 'stage.json'}"
    log = launched.log.read_text()
    assert shown in log
    assert "signal handlers" not in log
    assert {path.name for path in launched.folder.iterdir()} == {"log", "message", "stage.json"}


def test_the_first_of_two_failures_in_one_poll_is_named(launch: Launchers) -> None:
    launched = launch({0: "second DataError", 1: "first InputError"}, processes=2)
    assert launched.wait() == 66
    assert launched.result().message == "rank 1: InputError of this rank"


def test_what_the_agent_stops_is_not_the_cause(launch: Launchers) -> None:
    launched = launch({0: "stop 5", 1: "0.5:signal 9"}, processes=2)
    assert launched.wait() == 137
    assert launched.result().message == "rank 1 was killed by signal 9 (Killed); see its log"


def test_a_lost_peer_is_named_only_if_no_rank_tells_more(launch: Launchers) -> None:
    launched = launch({0: "0.4:exit 80", 1: "slow 3"}, processes=2)
    assert launched.wait() == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(("kept", "code"), [("5", 75), ("none", 143)])
def test_a_request_to_stop_reaches_the_ranks(
    launch: Launchers, number: int, processes: int, kept: str, code: int
) -> None:
    launched = launch(dict.fromkeys(range(processes), f"stop {kept}"), processes=processes)
    launched.ask_to_stop(processes, number)
    assert launched.wait() == code
    result = launched.result()
    assert (result.reason, result.step) == (Reason.STOPPED, 7)
    assert result.last_checkpoint_step == (5 if code == 75 else None)


@pytest.mark.parametrize("processes", [1, 2])
def test_ranks_that_do_not_stop_are_killed_before_the_grace_period_ends(
    launch: Launchers, processes: int
) -> None:
    launched = launch({processes - 1: "deaf", 0: "deaf"}, processes=processes, grace=2.0)
    asked = launched.ask_to_stop(processes)
    assert launched.wait() == 143
    assert 1.0 <= time.monotonic() - asked < 2.0
    assert "did not stop within 1 s" in launched.result().message


def test_a_rank_that_dies_of_the_signal_left_no_checkpoint(launch: Launchers) -> None:
    launched = launch({0: "hang"})
    launched.ask_to_stop(1)
    assert launched.wait() == 143
    assert launched.result().reason == Reason.STOPPED


def test_a_node_that_waits_for_others_heeds_a_request_to_stop(launch: Launchers) -> None:
    launched = launch({}, nodes=2, node=0, port=free_port())
    wait_for(lambda: launched.log.exists() and "starts ranks" in launched.log.read_text())
    assert launched.process.pid is not None
    os.kill(launched.process.pid, signal.SIGTERM)
    assert launched.wait() == 143
    assert "before the ranks were started" in launched.result().message


def test_orphans_are_collected(launch: Launchers, tmp_path: Path) -> None:
    note = tmp_path / "orphan"
    launched = launch({0: f"orphan {note}"}, subreaper=True)
    wait_for(lambda: note.exists() and note.read_text().strip() != "")
    orphan = Path("/proc") / note.read_text().strip()
    assert orphan.exists()
    wait_for(lambda: not orphan.exists(), seconds=0.9)
    assert launched.process.is_alive()
    assert launched.wait() == 0


def test_what_a_killed_rank_started_does_not_live_on(launch: Launchers, tmp_path: Path) -> None:
    note = tmp_path / "child"
    launched = launch({0: f"child {note}"})
    assert launched.wait() == 137
    child = Path("/proc") / note.read_text().strip() / "stat"
    wait_for(lambda: not child.exists() or child.read_text().split()[2] == "Z", seconds=5)


def test_a_long_message_loses_its_end(launch: Launchers) -> None:
    launched = launch({0: "raise long"})
    assert launched.wait() == 74
    assert 3500 < len(launched.message.read_bytes()) <= 4096
    assert set(launched.result().message) == {"長"}


def test_progress_is_told_for_a_rank_that_could_not(launch: Launchers) -> None:
    launched = launch({0: "0.5:signal 9"})
    attempt = launched.folder / "storage" / "demo-12345678" / "sft" / "attempt-2"
    (attempt / "checkpoints").mkdir(parents=True)
    (attempt / "checkpoints" / "latest").write_text("step-20\n")
    event = {"type": "step", "step": 24, "totalSteps": 90}
    (attempt / "events.jsonl").write_text(json.dumps(event) + '\n{"type": "st')
    assert launched.wait() == 137
    result = launched.result()
    assert (result.step, result.total_steps, result.last_checkpoint_step) == (24, 90, 20)


@pytest.mark.parametrize(("stage", "code"), [("killed", 137), ("bad-data", 65)])
def test_a_peer_that_waits_in_a_collective_does_not_hide_the_cause(
    launch: Launchers, stage: str, code: int
) -> None:
    launched = launch(stage, processes=2)
    assert launched.wait() == code
    assert launched.result().message.startswith("rank 1")
    assert "rank 0 ERROR rlhf_trainer.rank: PeerLost" in launched.log.read_text()


def test_all_ranks_stop_after_the_same_step(launch: Launchers) -> None:
    launched = launch("steps", processes=2)
    launched.ask_to_stop(2)
    assert launched.wait() == 75
    steps = {(launched.folder / f"step-of-rank-{rank}").read_text() for rank in range(2)}
    assert steps == {str(launched.result().step)}


def test_the_node_with_the_cause_tells_it_and_the_other_a_lost_peer(launch: Launchers) -> None:
    port = free_port()
    first, second = (launch("bad-data", nodes=2, node=node, port=port) for node in range(2))
    assert (first.wait(), second.wait()) == (80, 65)
    assert first.result().reason == Reason.PEER_LOST
    assert second.result().message == ("rank 1: data.jsonl:3: field chosen: None; give a text")


def test_a_rank_that_neither_fails_nor_stops_does_not_hold_the_gang(stuck: Launched) -> None:
    assert stuck.wait() == 65
    assert stuck.result().message == "rank 1 left with exit code 65; see its log"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def document(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "stage.json"
    found = json.loads(stage_config(tmp_path).to_json())
    path.write_text(json.dumps(found | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "environment", "code", "words"),
    [
        ({"nodes": 2}, {"JOB_COMPLETION_INDEX": "0"}, 78, "masterPort is 0 with 2 nodes"),
        ({"nodes": 2, "masterPort": 29500}, {}, 64, "JOB_COMPLETION_INDEX is None"),
        (
            {"nodes": 2, "masterPort": 29500},
            {"JOB_COMPLETION_INDEX": "2"},
            64,
            "JOB_COMPLETION_INDEX is '2'; with 2 nodes it must be a number from 0 to 1",
        ),
        (
            {},
            {"RLHF_GRACE_PERIOD_SECONDS": "soon"},
            64,
            "RLHF_GRACE_PERIOD_SECONDS is 'soon'",
        ),
    ],
)
def test_a_bad_environment_ends_before_any_rank_starts(
    launch: Launchers,
    tmp_path: Path,
    changes: dict[str, Any],
    environment: dict[str, str],
    code: int,
    words: str,
) -> None:
    path = document(tmp_path, **changes)
    launched = launch.start(tmp_path, [str(path)], [], environment)
    assert launched.wait() == code
    result = launched.result()
    assert (result.exit_code, result.attempt) == (code, 2)
    assert words in result.message
    log = launched.log.read_text()
    assert "starts ranks" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("arguments", "content", "code", "words"),
    [
        ([], {}, 64, "Usage: arguments: none: usage is python -m rlhf_trainer.launch stage.json"),
        (["--help"], {}, 64, "Usage: arguments: --help"),
        (["missing.json"], {}, 64, "missing.json: No such file or directory"),
        (["stage.json"], b"{", 78, "ConfigInvalid: stage.json is not JSON"),
        (["stage.json"], b"\xff", 78, "stage.json: not UTF-8 at byte 0"),
        (["stage.json"], b"[1]", 78, "ConfigInvalid: stage.json: contractVersion is None"),
        (["stage.json"], {"nodez": 2}, 78, "nodez"),
        (
            ["stage.json"],
            {"contractVersion": 99, "later": 1},
            78,
            "ContractVersion: stage.json: contractVersion is 99, but this trainer image speaks 1",
        ),
    ],
)
def test_a_bad_stage_json_ends_before_any_rank_starts(
    launch: Launchers,
    tmp_path: Path,
    arguments: list[str],
    content: bytes | dict[str, Any],
    code: int,
    words: str,
) -> None:
    if isinstance(content, bytes):
        (tmp_path / "stage.json").write_bytes(content)
    else:
        document(tmp_path, **content)
    paths = [name if name.startswith("-") else str(tmp_path / name) for name in arguments]
    launched = launch.start(tmp_path, paths, [], {})
    assert launched.wait() == code
    assert words in launched.message.read_text()
    log = launched.log.read_text()
    assert "starts ranks" not in log
    assert "Traceback" not in log


def test_without_a_place_for_the_message_the_code_still_counts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rlhf_trainer.launch", document(tmp_path, contractVersion=99)],
        env=os.environ | {EnvVar.TERMINATION_MESSAGE: str(tmp_path / "missing" / "message")},
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_SECONDS,
    )
    assert done.returncode == 78
    assert f"{tmp_path}/missing/message" in done.stderr
    assert "set RLHF_TERMINATION_MESSAGE to a file" in done.stderr


def test_a_launcher_that_ends_early_never_imports_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from rlhf_trainer.launch import main; "
        "print(main(sys.argv[1:]), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "missing.json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_SECONDS,
    )
    assert done.stdout == "64 False\n"
