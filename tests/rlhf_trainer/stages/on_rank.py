"""What the ranks of `worlds.pair()` run for the tests of whole stages."""

import io
import math
from contextlib import redirect_stdout
from typing import Any

import stage_runs
import torch

from rlhf_api.errors import RLHFError
from rlhf_api.v1alpha1 import StageConfig
from rlhf_trainer.__main__ import stage_named
from rlhf_trainer.errors import failure_of
from rlhf_trainer.ppo.experience import global_moments
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.distributed import Ranks


def run(ranks: Ranks, config: StageConfig, looks: int | None) -> dict[str, Any]:
    """Run the stage; asked to stop, if at all, at the n-th look of rank 0 alone."""
    stop = StopFlag() if looks is None or ranks.rank else stage_runs.StopAt(looks)
    told = io.StringIO()
    found: dict[str, Any] = {}
    with redirect_stdout(told):
        try:
            found["outcome"] = stage_named(config.stage)(config, ranks, stop)
        except RLHFError as error:
            found["error"] = failure_of(error)
    return found | {"stdout": told.getvalue()}


def run_spoilt(ranks: Ranks, config: StageConfig, name: str, update: int) -> dict[str, Any]:
    """Run the stage; rank 1 alone has a number that is not finite in that update's experience."""
    if ranks.rank == 0:
        return run(ranks, config, None)
    with stage_runs.spoilt_rollout(name, update):
        return run(ranks, config, None)


def refused_moments(ranks: Ranks) -> str:
    """What moments say where rank 1 alone has a number that is not finite."""
    values = torch.tensor([1.0, math.inf if ranks.rank == 1 else 2.0])
    try:
        return str(global_moments(values, torch.ones(2, dtype=torch.bool), ranks))
    except FloatingPointError as error:
        return str(error)


def run_with_fixed_answers(ranks: Ranks, config: StageConfig) -> None:
    """PPO on rollouts that depend on the prompts alone."""
    stage_runs.run_with_fixed_answers(config, ranks)
