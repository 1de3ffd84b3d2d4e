"""A rank that runs `__main__` with a stage of its own: `collective.py <stage> stage.json`."""

import os
import signal
import sys
import time
from pathlib import Path

from rlhf_api.errors import DataError
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.__main__ import Stage, main
from rlhf_trainer.errors import StopRequested
from rlhf_trainer.process.edge import leave_process
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.distributed import Ranks, any_rank, barrier, reduce_sum


def meet(ranks: Ranks) -> None:
    """Prove that all ranks are there."""
    assert reduce_sum([1.0, ranks.rank], ranks) == [
        ranks.world_size,
        sum(range(ranks.world_size)),
    ]


def killed(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
    """The last rank is killed while the others wait for it."""
    meet(ranks)
    if ranks.rank == ranks.world_size - 1:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    barrier(ranks)
    raise AssertionError("unreachable")


def bad_data(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
    """The last rank fails while the others wait for it."""
    meet(ranks)
    if ranks.rank == ranks.world_size - 1:
        time.sleep(0.3)
        raise DataError("data.jsonl:3: field chosen: None; give a text")
    barrier(ranks)
    raise AssertionError("unreachable")


def steps(config: StageConfig, ranks: Ranks, stop: StopFlag) -> StageOutcome:
    """Steps without end; when one rank is asked to stop, all do, after the same step."""
    folder = Path(os.environ["READY_FOLDER"])
    for step in range(10_000):
        if any_rank(ranks, stop.is_set):
            (folder / f"step-of-rank-{ranks.rank}").write_text(str(step))
            raise StopRequested(step, step)
        if step == 3:
            (folder / str(ranks.rank)).touch()
        time.sleep(0.01)
    return StageOutcome(None, step, step)


STAGES: dict[str, Stage] = {"killed": killed, "bad-data": bad_data, "steps": steps}

if __name__ == "__main__":
    leave_process(main(sys.argv[2:], STAGES[sys.argv[1]]))
