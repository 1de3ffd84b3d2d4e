"""One rank: `python -m rlhf_trainer stage.json`, started by `launch` in torchrun's environment.

Everything that a stage raises rises to here and becomes an outcome and an exit code.
"""

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

import transformers

from rlhf_api.errors import RLHFError
from rlhf_api.names import StageName
from rlhf_api.v1alpha1 import StageConfig, StageResult
from rlhf_trainer.errors import Failure, failure_of
from rlhf_trainer.process.edge import leave_process, set_up_logging
from rlhf_trainer.process.outcome import StageOutcome, failed, leave_outcome, success
from rlhf_trainer.process.stage_file import read_stage_config, stage_file
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.distributed import Ranks, start_ranks, stop_ranks

logger = logging.getLogger("rlhf_trainer.rank")

Stage = Callable[[StageConfig, Ranks, StopFlag], StageOutcome]


def main(arguments: Sequence[str], stage: Stage | None = None) -> int:
    """Run one rank to its end; returns its exit code.

    Args:
        arguments: the command line, without the program.
        stage: what to run instead of the stage that stage.json names.
    """
    rank = int(os.environ.get("RANK", "0"))
    set_up_logging(f"rank {rank}")
    _quieten()
    stop = StopFlag()
    stop.install()
    config: StageConfig | None = None
    try:
        config = read_stage_config(stage_file(arguments, "rlhf_trainer"))
        ranks = start_ranks(config)
        run = stage or stage_named(config.stage)
        result = success(config, run(config, ranks, stop))
    except BaseException as error:  # noqa: BLE001 - the edge: every error becomes an exit code
        return _end(config, rank, failure_of(error), error)
    _leave(result, rank)
    stop_ranks()
    return result.exit_code


def stage_named(name: StageName) -> Stage:
    """The stage's `run`; the other stages' imports cost nothing."""
    run: Stage = importlib.import_module(f"rlhf_trainer.stages.{name}").run
    return run


def _quieten() -> None:
    """Keep out of the log what nobody can act on.

    DeepSpeed calls deprecated collectives at every step, and a progress bar makes one long line.
    """
    warnings.filterwarnings("ignore", message="`torch.distributed", category=FutureWarning)
    transformers.logging.disable_progress_bar()


def _end(config: StageConfig | None, rank: int, failure: Failure, error: BaseException) -> int:
    # A traceback helps with what nobody foresaw; our own messages say all there is to do.
    ours = isinstance(error, RLHFError)
    logger.error("%s: %s", failure.reason, failure.message, exc_info=None if ours else error)
    if config is not None:
        _leave(failed(config, failure), rank)
    return failure.exit_code


def _leave(result: StageResult, rank: int) -> None:
    try:
        leave_outcome(result, rank)
    except OSError as error:
        logger.warning("no outcome left, only exit code %d: %s", result.exit_code, error)


if __name__ == "__main__":
    leave_process(main(sys.argv[1:]))
