"""Launcher processes of this machine: started, found again, seen, stopped.

Called by `runner` alone. A launcher is a session of its own, so that Ctrl-C in the terminal reaches
the runner only, and it outlives a runner that is killed: the next one finds it by its command line.
Nothing is decided here.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import psutil

from rlhf_api.errors import ContractVersionError
from rlhf_api.names import EnvVar, FileName, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJob, StageResult
from rlhf_cli.event_log import EventLog
from rlhf_cli.files import write_atomically
from rlhf_cli.view import Evaluations
from rlhf_cli.workdir import LOG, Workdir
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.observed import Observed, ObservedAttempt, ObservedProcess, ProcessPhase

STAGE_FILE = "stage.json"
RESULT_FILE = "result.json"
RECORD_FILE = "launcher.json"
_LAST_LINE_BYTES = 4096
_MAX_LINE_LENGTH = 500


@dataclass
class Launcher:
    """One attempt's launcher.

    Attributes:
        stage: the stage.
        attempt: number of the attempt.
        folder: of the attempt.
        checkpoint_step: step of the newest checkpoint when it was started.
        child: the process, if this runner started it.
        found: the process, if an earlier runner did and it still lives.
        events: what it tells.
        asked_at: when it was asked to stop, on the monotonic clock.
        ended_at: when it was first seen ended.
    """

    stage: StageName
    attempt: int
    folder: Path
    checkpoint_step: int | None
    child: subprocess.Popen[bytes] | None = None
    found: psutil.Process | None = None
    events: EventLog = field(init=False)
    asked_at: float | None = None
    ended_at: datetime | None = None

    def __post_init__(self) -> None:
        self.events = EventLog(self.folder / FileName.EVENTS)

    @property
    def pid(self) -> int | None:
        """Process id; None if there is no process any more."""
        if not self.alive:
            return None
        process = self.child or self.found
        return process.pid if process is not None else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        if self.child is not None:
            return self.child.poll() is None
        if self.found is None:
            return False
        with suppress(psutil.NoSuchProcess):
            return self.found.is_running() and self.found.status() != psutil.STATUS_ZOMBIE
        return False

    def exit_code(self, result: StageResult | None) -> int | None:
        """As a shell gives it; of a process that is not ours, what it says itself."""
        if self.child is not None and self.child.returncode is not None:
            code = self.child.returncode
            return code if code >= 0 else 128 - code
        return result.exit_code if result is not None else None


class Launchers:
    """The launchers of one job."""

    def __init__(self, workdir: Workdir, command: tuple[str, ...], grace_seconds: float) -> None:
        """Prepare; nothing is started.

        Args:
            workdir: of the job.
            command: what runs a stage, with the path of its stage.json behind it.
            grace_seconds: how long a launcher may take to stop.
        """
        self._workdir = workdir
        self._command = command
        self._grace = grace_seconds
        self._known: dict[tuple[StageName, int], Launcher] = {}
        self._absent: set[tuple[StageName, int]] = set()

    def observe(self, job: RLHFJob) -> Observed:
        """The current attempt of each stage that is not done."""
        attempts = []
        for name in StageName:
            stage = getattr(job.status.stages, name)
            if stage is None or not stage.attempt or stage.state is StageState.SUCCEEDED:
                continue
            launcher = self._find(job, name, stage.attempt)
            if launcher is not None:
                attempts.append(self._seen(launcher))
        return Observed(tuple(attempts))

    def take_notes(self) -> list[tuple[StageName, str]]:
        """What stages have found before they began to train, each told once."""
        return [
            (launcher.stage, note)
            for launcher in self._known.values()
            for note in launcher.events.take_notes()
        ]

    def evaluations(self) -> Evaluations:
        """Those that run, by each stage's last attempt, and the steps of those told last."""
        known = sorted(self._known.values(), key=lambda launcher: launcher.attempt)
        newest = {each.stage: each for each in known}
        return Evaluations(
            steps={
                each.stage: each.events.evaluated_step
                for each in known
                if each.events.evaluated_step is not None
            },
            running={name for name, each in newest.items() if each.events.evaluating},
        )

    def start(self, action: StartAttempt, environment: Mapping[str, str]) -> None:
        """Make the attempt's folder and start its launcher."""
        folder = Path(action.config.attempt_folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT_FILE).unlink(missing_ok=True)
        stage_file = folder / STAGE_FILE
        write_atomically(stage_file, action.config.to_json())
        given = os.environ | dict(environment)
        given[EnvVar.TERMINATION_MESSAGE] = str(folder / RESULT_FILE)
        given[EnvVar.GRACE_PERIOD_SECONDS] = f"{self._grace:g}"
        given.pop(EnvVar.COMPLETION_INDEX, None)
        with (folder / LOG).open("ab") as log:
            child = subprocess.Popen(
                [*self._command, str(stage_file)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=given,
                start_new_session=True,
            )
        record = {"pid": child.pid, "checkpointStep": action.checkpoint_step}
        key = action.stage, action.attempt
        self._known[key] = Launcher(*key, folder, action.checkpoint_step, child=child)
        write_atomically(folder / RECORD_FILE, json.dumps(record) + "\n")

    def stop(self, stage: StageName, attempt: int) -> None:
        """Ask the launcher to save and leave; it is killed when its grace period is over."""
        launcher = self._known[stage, attempt]
        if launcher.asked_at is None:
            launcher.asked_at = time.monotonic()
            _send(launcher, signal.SIGTERM)

    def kill_late(self) -> None:
        """Kill those whose grace period is over."""
        for launcher in self._alive():
            asked = launcher.asked_at
            if asked is not None and time.monotonic() - asked >= self._grace:
                _kill(launcher)

    def kill_all(self) -> None:
        """Kill all at once, without a checkpoint."""
        for launcher in self._alive():
            _kill(launcher)

    def stop_all(self) -> None:
        """Ask all to stop."""
        for launcher in self._alive():
            self.stop(launcher.stage, launcher.attempt)

    def any_alive(self) -> bool:
        """Whether any launcher runs."""
        return any(True for _ in self._alive())

    def _alive(self) -> Iterator[Launcher]:
        return (launcher for launcher in list(self._known.values()) if launcher.alive)

    def _find(self, job: RLHFJob, stage: StageName, attempt: int) -> Launcher | None:
        """The launcher that is known, or one that an earlier runner left."""
        key = stage, attempt
        if key in self._known or key in self._absent:
            return self._known.get(key)
        folder = self._workdir.attempt_folder(job, stage, attempt)
        record = _read_record(folder / RECORD_FILE)
        process = self._running(folder / STAGE_FILE)
        if record is None and process is None:
            self._absent.add(key)
            return None
        step = (record or {}).get("checkpointStep")
        self._known[key] = Launcher(*key, folder, step, found=process)
        return self._known[key]

    def _running(self, stage_file: Path) -> psutil.Process | None:
        """The launcher of `stage_file`; asked of the system, since a runner can be killed between
        starting a process and writing down its id."""
        arguments = [*self._command[1:], str(stage_file)]
        for process in _sessions_with(stage_file):
            with suppress(psutil.Error):
                if process.cmdline()[-len(arguments) :] == arguments:
                    return process
        return None

    def _seen(self, launcher: Launcher) -> ObservedAttempt:
        alive = launcher.alive
        if not alive and launcher.ended_at is None:
            launcher.ended_at = datetime.now(UTC)
            # Ranks whose launcher was killed would go on beside those of the next attempt.
            _kill_leftovers(launcher.folder / STAGE_FILE)
        process = _running_process(launcher) if alive else _ended_process(launcher)
        return ObservedAttempt(
            stage=launcher.stage,
            attempt=launcher.attempt,
            processes=(process,),
            complete=process.phase is ProcessPhase.SUCCEEDED,
            failed=process.phase is ProcessPhase.FAILED,
            checkpoint_step=launcher.checkpoint_step,
            progress=launcher.events.read(),
            leaves_logs=True,
        )


def read_exit_code(folder: Path) -> int | None:
    """What the attempt in `folder` said that it left with; None if it said nothing."""
    result, _, _ = _read_result(folder)
    return result.exit_code if result is not None else None


def _read_result(folder: Path) -> tuple[StageResult | None, Reason | None, str]:
    """The last word of an attempt: a result, or else why it has none, or a text, or nothing."""
    try:
        text = (folder / RESULT_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None, None, ""
    try:
        result = StageResult.from_message(text)
    except ContractVersionError as error:
        return None, Reason.CONTRACT_VERSION, f"{folder / RESULT_FILE}: {error}"
    return result, None, "" if result is not None else text.strip()


def _running_process(launcher: Launcher) -> ObservedProcess:
    return ObservedProcess(
        name=_name(launcher),
        phase=ProcessPhase.RUNNING,
        ready=True,
        terminating=launcher.asked_at is not None,
    )


def _ended_process(launcher: Launcher) -> ObservedProcess:
    result, reason, text = _read_result(launcher.folder)
    code = launcher.exit_code(result)
    # Nobody saw it end, and it said nothing: the machine went down, or somebody killed it.
    disrupted = code is None
    if disrupted:
        text = f"{_name(launcher)} ended while no rlhf run watched it"
    elif result is None and not text:
        text = f"{_name(launcher)} ended with exit code {code}{_last_line(launcher)}"
    return ObservedProcess(
        name=_name(launcher),
        phase=ProcessPhase.SUCCEEDED if code == 0 else ProcessPhase.FAILED,
        exit_code=code,
        finished_at=launcher.ended_at,
        result=result,
        reason=reason,
        message=text,
        disrupted=disrupted,
    )


def _name(launcher: Launcher) -> str:
    return f"the launcher of stage {launcher.stage}, attempt {launcher.attempt},"


def _last_line(launcher: Launcher) -> str:
    """Where its log is, and what it ends with."""
    path = launcher.folder / LOG
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LAST_LINE_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip()]
    return f"; {path} ends with: {told[-1][:_MAX_LINE_LENGTH]}" if told else f"; see {path}"


def _read_record(path: Path) -> dict[str, int | None] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sessions_with(stage_file: Path) -> Iterator[psutil.Process]:
    """Session leaders whose last argument is `stage_file`: the launcher and its ranks, but no
    editor that a person has opened it with."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if (
                process.cmdline()[-1:] == [str(stage_file)]
                and os.getsid(process.pid) == process.pid
            ):
                yield process


def _send(launcher: Launcher, number: signal.Signals) -> None:
    pid = launcher.pid
    if pid is not None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _kill(launcher: Launcher) -> None:
    pid = launcher.pid
    if pid is None:
        return
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _kill_leftovers(stage_file: Path) -> None:
    for process in _sessions_with(stage_file):
        with suppress(psutil.NoSuchProcess):
            process.kill()
