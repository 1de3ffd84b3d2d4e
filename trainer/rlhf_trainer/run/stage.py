"""What every stage begins with: it does nothing that an earlier attempt has finished.

Called by the stages. Nothing is read or trained here.
"""

from collections.abc import Callable
from typing import TypeVar

from rlhf_api.errors import ConfigError
from rlhf_api.v1alpha1 import StageConfig, StageSpec
from rlhf_trainer.process.outcome import StageOutcome
from rlhf_trainer.process.stopping import StopFlag
from rlhf_trainer.run.artifact import finished_outcome
from rlhf_trainer.run.distributed import Ranks
from rlhf_trainer.run.report import Reporter

S = TypeVar("S", bound=StageSpec)


def run_unless_finished(
    train: Callable[[S, StageConfig, Ranks, StopFlag, Reporter], StageOutcome],
    spec: S | None,
    config: StageConfig,
    ranks: Ranks,
    stop: StopFlag,
) -> StageOutcome:
    """What `train` returns, or at once the outcome of an earlier attempt that finished.

    Args:
        train: the work of the stage; its reporter is closed when it returns or raises.
        spec: the stage's own part of `config`.
        config: of this attempt.
        ranks: all of them call this together.
        stop: whether this attempt is asked to end.

    Raises:
        ConfigError: there is no specification.
    """
    if spec is None:
        raise ConfigError(f"stage.json: stage {config.stage} has no specification")
    outcome = finished_outcome(config, ranks)
    if outcome is not None:
        return outcome
    with Reporter(config, ranks) as reporter:
        return train(spec, config, ranks, stop, reporter)
