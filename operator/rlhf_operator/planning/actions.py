"""What is to be done about attempts, as it follows from the stages. Pure; called by `plan`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf_api.names import Reason, StageName, StageState
from rlhf_api.v1alpha1 import StageConfig, StageStatus
from rlhf_operator.planning.configs import Configs
from rlhf_operator.planning.observed import Observed
from rlhf_operator.planning.removal import RemoveAttempt, leavings
from rlhf_operator.planning.stages import is_known


@dataclass(frozen=True)
class StartAttempt:
    """Make the attempt, unless it is there already; its number is in status.

    Attributes:
        stage: the stage.
        attempt: number of the attempt.
        config: what it is given.
        checkpoint_step: step of the newest checkpoint known now, to be kept beside the attempt and
            given back by `ObservedAttempt.checkpoint_step`.
    """

    stage: StageName
    attempt: int
    config: StageConfig
    checkpoint_step: int | None = None


@dataclass(frozen=True)
class StopAttempt:
    """Ask everything of the attempt to stop, and end it by force when its grace period is over.

    Attributes:
        stage: the stage.
        attempt: number of the attempt.
        reason: why.
    """

    stage: StageName
    attempt: int
    reason: Reason | str


Action = StartAttempt | StopAttempt | RemoveAttempt


def is_unmade(name: StageName, stage: StageStatus, observed: Observed) -> bool:
    """Whether the announced attempt is not there."""
    return stage.state is StageState.STARTING and observed.find(name, stage.attempt) is None


def actions_of(
    stages: Mapping[StageName, StageStatus], observed: Observed, configs: Configs
) -> Iterator[Action]:
    """What brings the attempts to what the stages say of them."""
    for name, stage in stages.items():
        if not is_known(stage):
            continue
        wanted = stage.attempt if stage.state in (StageState.STARTING, StageState.RUNNING) else 0
        strays = [found for found in observed.occupied(name) if found.attempt != wanted]
        for found in strays:
            if not (found.stopping or found.disowned):
                yield StopAttempt(name, found.attempt, stage.reason or Reason.STOPPED)
        unmade = is_unmade(name, stage, observed) and not configs.missing(name)
        if unmade and not strays:
            config = configs.of(name, stage.attempt)
            yield StartAttempt(name, stage.attempt, config, stage.last_checkpoint_step)
            yield from leavings(name, stage.attempt, observed)
