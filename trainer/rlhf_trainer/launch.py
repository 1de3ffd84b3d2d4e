"""PID 1 of a training pod: `python -m rlhf_trainer.launch stage.json`.

Starts this node's ranks, forwards requests to stop, writes the termination message and leaves with
the code of the rank that failed first. Local mode starts it in the same way.
"""

import logging
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rlhf_api.errors import RLHFError
from rlhf_api.names import (
    MAX_RESULT_BYTES,
    REASON_OF_EXIT_CODE,
    ContainerPath,
    EnvVar,
    ExitCode,
    FileName,
    Reason,
)
from rlhf_api.v1alpha1 import StageConfig, StageResult
from rlhf_trainer.errors import MEMORY_REMEDY, Failure, failure_of
from rlhf_trainer.process.cgroup import memory_kills, processors
from rlhf_trainer.process.device import settle_device
from rlhf_trainer.process.edge import StopRequest, leave_process, set_up_logging
from rlhf_trainer.process.outcome import (
    OUTCOME_FOLDER,
    RankEnd,
    StageOutcome,
    failed,
    first_failure,
    success,
    with_progress,
)
from rlhf_trainer.process.place import Place, place_of, stop_patience
from rlhf_trainer.process.stage_file import read_stage_config, stage_file

logger = logging.getLogger("rlhf_trainer.launch")

PROGRAM = (sys.executable, "-m", "rlhf_trainer")
"""What every rank runs, with the path of stage.json behind it."""


def main(arguments: Sequence[str], program: Sequence[str] = PROGRAM) -> int:
    """Run this node's part of a stage; returns the exit code.

    Args:
        arguments: the command line, without the program.
        program: what every rank runs.
    """
    set_up_logging("launcher")
    stop = StopRequest()
    stop.install()
    config: StageConfig | None = None
    try:
        path = stage_file(arguments, "rlhf_trainer.launch")
        config = read_stage_config(path)
        place = place_of(config, os.environ)
        patience = stop_patience(os.environ)
    except (RLHFError, OSError) as error:
        failure = failure_of(error)
        logger.error("%s: %s", failure.reason, failure.message)
        # Without a configuration there is no StageResult: text and exit code say all there is.
        plain = f"{failure.reason}: {failure.message}".encode(errors="replace")
        text = plain[:MAX_RESULT_BYTES].decode(errors="ignore")
        write_termination_message(failed(config, failure).to_message() if config else text)
        return failure.exit_code
    try:
        look_at_inputs(config)
        result = run(config, place, (*program, str(path)), stop, patience)
    except (RLHFError, OSError) as error:
        result = failed(config, failure_of(error))
    except Exception as error:
        logger.exception("the launcher failed")
        result = failed(config, failure_of(error))
    if result.exit_code != ExitCode.DONE:
        result = with_progress(result, config)
        logger.error("%s, exit code %d: %s", result.reason, result.exit_code, result.message)
    write_termination_message(result.to_message())
    return result.exit_code


def run(
    config: StageConfig, place: Place, command: Sequence[str], stop: StopRequest, patience: float
) -> StageResult:
    """Run `command` in every rank of this node; the node's result."""
    # Here, when signals are heard and the configuration is good: this imports torch.
    from rlhf_trainer.process.gang import Gang

    device = settle_device(config, place.processes, os.environ)
    threads = str(max(1, processors() // place.processes))
    # Ranks that each take all processors slow each other down.
    os.environ.setdefault("OMP_NUM_THREADS", threads)
    folder = Path(tempfile.mkdtemp(prefix="rlhf-outcomes-"))
    os.environ[OUTCOME_FOLDER] = str(folder)
    kills = memory_kills()
    try:
        # With one rank nobody is waited for; on the CPU ranks talk by gloo, which raises.
        watched = config.world_size > 1 and device == "cuda"
        gang = Gang(place, command, folder, stop, patience, watched=watched)
        logger.info(
            "node %d of %d starts ranks %d to %d on %s, which meet at %s:%d: %s",
            place.node,
            place.nodes,
            place.ranks[0],
            place.ranks[-1],
            device,
            place.address,
            gang.port,
            shlex.join(command),
        )
        ends = [] if stop.since is not None else gang.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if not ends:
        return failed(config, _not_started(gang.error))
    first = first_failure(ends, asked_to_stop=stop.since is not None)
    if first is None:
        return _success(config, ends)
    return _result_of(config, first, patience, starved=memory_kills() > kills)


def look_at_inputs(config: StageConfig) -> None:
    """Raise what models' folders and rows tell by themselves, before anything imports torch.

    See `run.model_files` and `data.preview`.
    """
    # Here, when signals are heard: this imports pyarrow.
    from rlhf_trainer.data.preview import check_rows
    from rlhf_trainer.run.model_files import check_models

    published = f"attempt-*/{FileName.ARTIFACT}/{FileName.MANIFEST}"
    # A stage that is done reads nothing any more.
    if not any(Path(config.stage_folder).glob(published)):
        check_models(config)
        check_rows(config)


def write_termination_message(text: str) -> None:
    """Leave `text` where the kubelet, or the local runner, looks for it."""
    given = os.environ.get(EnvVar.TERMINATION_MESSAGE)
    path = Path(given or ContainerPath.TERMINATION_MESSAGE)
    try:
        # The kubelet mounts the file: it cannot be replaced, and where it is not, nobody reads it.
        with path.open("r+" if given is None else "w", encoding="utf-8") as file:
            file.write(text)
            file.truncate()
    except OSError as error:
        logger.warning(
            "no termination message: %s; set %s to a file that can be written",
            error,
            EnvVar.TERMINATION_MESSAGE,
        )


def _not_started(error: BaseException | None) -> Failure:
    if error is None:
        message = "stopped on request before the ranks were started"
        return Failure(ExitCode.STOPPED, Reason.STOPPED, message)
    return failure_of(error)


def _success(config: StageConfig, ends: Sequence[RankEnd]) -> StageResult:
    """Every rank is done; the lowest with a word of its own speaks for them."""
    said = [end.outcome.result for end in ends if end.outcome is not None]
    return said[0] if said else success(config, StageOutcome(None, 0, 0))


def _result_of(config: StageConfig, end: RankEnd, patience: float, *, starved: bool) -> StageResult:
    if end.outcome is not None:
        result = end.outcome.result
        if config.world_size == 1:
            return result
        return result.model_copy(update={"message": f"rank {end.rank}: {result.message}"})
    reason = REASON_OF_EXIT_CODE.get(end.exit_code, Reason.CRASHED)
    if end.late:
        message = (
            f"rank {end.rank} did not stop within {patience:g} s of the request and was killed; "
            "raise terminationGracePeriodSeconds if a step and a save take longer"
        )
    elif end.signal == signal.SIGKILL and starved:
        reason = Reason.OUT_OF_MEMORY
        message = f"rank {end.rank} was killed: the container's memory ran out; {MEMORY_REMEDY}"
    elif end.exit_code == ExitCode.PEER_LOST and end.signal is not None:
        message = (
            f"rank {end.rank} was aborted, as NCCL's watchdog does when another rank does not "
            "answer; see its log, and the other ranks for the cause"
        )
    elif end.signal is not None:
        name = signal.strsignal(end.signal)
        message = f"rank {end.rank} was killed by signal {end.signal} ({name}); see its log"
    else:
        message = f"rank {end.rank} left with exit code {end.exit_code}; see its log"
    return failed(config, Failure(end.exit_code, reason, message))


if __name__ == "__main__":
    leave_process(main(sys.argv[1:]))
