"""A rank that ends in a given way, without torch: `ending.py '{"0": "exit 3"}' stage.json`.

Ways without a word of its own: `exit <code>`, `signal <number>`, `hang`, `deaf` (hangs and ignores
SIGTERM), `slow <code>` (ignores SIGTERM and exits a little later), `child <file>` (is killed and
leaves a process behind, its number in the file). Ways with: `done`, `raise <error>`, `stop
<checkpoint step or none>` (leaves when asked), `orphan <file>` (leaves a process behind, its number
in the file, and ends when that was collected), `first <error>` and `second <error>` (two ranks that
end at once, their words in that order). With `@<name>:` before it, each waits until a
file of that name is there; a rank that can hear a signal leaves one of its number.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from waiting import eventually

WAIT_SECONDS = 50.0
"""Less than what a test waits for its launcher."""


def end(verb: str, word: str) -> None:
    """End in the given way, if it is one without a word."""
    if verb == "exit":
        os._exit(int(word))
    if verb == "signal":
        os.kill(os.getpid(), int(word))
    if verb in ("deaf", "slow"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if verb == "slow":
        ready()
        time.sleep(0.8)
        os._exit(int(word))
    if verb == "child":
        leave_process_behind(Path(word), seconds=300)
        os.kill(os.getpid(), signal.SIGKILL)
    if verb in ("hang", "deaf"):
        ready()
        time.sleep(600)


def ready() -> None:
    """Tell the test that a signal would now be heard."""
    (Path(os.environ["READY_FOLDER"]) / os.environ["RANK"]).touch()


def leave_process_behind(note: Path, seconds: float) -> None:
    """Start a process whose parent is gone when it ends."""
    command = ["sh", "-c", f"sleep {seconds} & echo $! > {note}"]
    subprocess.run(command, check=True, timeout=WAIT_SECONDS)


def wait_for_outcomes(count: int) -> None:
    """Wait until as many ranks have left a word."""
    from rlhf_trainer.process.outcome import OUTCOME_FOLDER

    outcomes = Path(os.environ[OUTCOME_FOLDER])
    eventually(lambda: len(list(outcomes.glob("outcome-*"))) >= count, WAIT_SECONDS, 0.005)


def error_named(name: str) -> BaseException:
    """An error by the name of its class, or a foreign one."""
    from rlhf_trainer import errors

    if name == "disk-full":
        return OSError(errno.ENOSPC, "No space left on device", "/data/x")
    if name == "defect":
        return ZeroDivisionError("division by zero")
    if name == "long":
        return errors.StorageError("長" * 20_000)
    from rlhf_api import errors as contract

    kind = getattr(errors, name, None) or getattr(contract, name)
    error: BaseException = kind(f"{name} of this rank")
    return error


def speak(verb: str, word: str) -> int:
    """End with a word as `__main__` does; returns the exit code."""
    from rlhf_trainer.errors import StopRequested, failure_of
    from rlhf_trainer.process.outcome import StageOutcome, failed, leave_outcome, success
    from rlhf_trainer.process.stage_file import read_stage_config

    config = read_stage_config(Path(sys.argv[2]))
    result = success(config, StageOutcome(None, 3, 4, 2, {"loss": 0.5}))
    if verb == "orphan":
        leave_process_behind(Path(word), seconds=0.2)
        orphan = Path("/proc") / Path(word).read_text().strip()
        eventually(lambda: not orphan.exists(), WAIT_SECONDS, what="the orphan is collected")
    if verb == "second":
        wait_for_outcomes(1)
    if verb in ("raise", "first", "second"):
        result = failed(config, failure_of(error_named(word)))
    if verb == "stop":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        ready()
        signal.sigtimedwait({signal.SIGTERM}, 600)
        stopped = StopRequested(7, None if word == "none" else int(word))
        result = failed(config, failure_of(stopped))
    leave_outcome(result, int(os.environ["RANK"]))
    if verb == "first":
        wait_for_outcomes(2)
    return result.exit_code


if __name__ == "__main__":
    way = json.loads(sys.argv[1]).get(os.environ["RANK"], "done")
    if way.startswith("@"):
        name, _, way = way.removeprefix("@").partition(":")
        eventually((Path(os.environ["READY_FOLDER"]) / name).exists, WAIT_SECONDS, what=name)
    verb, _, word = way.partition(" ")
    end(verb, word)
    os._exit(speak(verb, word))
