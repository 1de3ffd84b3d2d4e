"""Which attempts are kept for their logs, and which go. Pure; called by `plan`.

What is left of an attempt that failed are its Job, the pods with their logs, and its ConfigMap. An
attempt that had to be stopped lost its Job by that, so that only a ConfigMap may be left of it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf_api.names import StageName, StageState
from rlhf_api.v1alpha1 import RunPolicy, StageStatus
from rlhf_operator.planning.observed import Observed
from rlhf_operator.planning.stages import ACTIVE, is_known


@dataclass(frozen=True)
class RemoveAttempt:
    """Remove what is left of an attempt that is over: its Job with the pods, and its ConfigMap.

    `rlhf run` leaves the folder of every attempt where it is.

    Attributes:
        stage: the stage.
        attempt: number of the attempt.
    """

    stage: StageName
    attempt: int


def surplus(
    stages: Mapping[StageName, StageStatus], observed: Observed, policy: RunPolicy
) -> Iterator[RemoveAttempt]:
    """The failed attempts of each stage but for the newest `runPolicy.keepFailedAttempts`, and what
    was to be removed before and may not be gone.

    How the stage has ended since makes no difference: the attempts before a success tell what it
    took. The attempt that succeeded is none of them and stays.
    """
    for name, stage in stages.items():
        if not is_known(stage):
            continue
        current = stage.state in ACTIVE or stage.state is StageState.SUCCEEDED
        failed = sorted(
            (
                found.attempt
                for found in observed.attempts
                if found.stage is name
                and not (found.occupied or found.deleting or found.disowned)
                and found.attempt < stage.attempt + (not current)
            ),
            reverse=True,
        )
        for attempt in failed[policy.keep_failed_attempts :]:
            yield RemoveAttempt(name, attempt)
        for each in sorted(observed.unremoved):
            if each[0] is name and _has_no_job(observed, *each):
                yield RemoveAttempt(*each)


def leavings(name: StageName, attempt: int, observed: Observed) -> Iterator[RemoveAttempt]:
    """The attempt before number `attempt`, which is to be made now, if it has no Job any more.

    It was stopped, deleted from outside or never made; whether a ConfigMap of it is left is not
    observed. It is asked for when the next one starts, so that there is never more than one such
    ConfigMap a stage, and after that by `surplus` if it has to be.
    """
    before = name, attempt - 1
    if attempt > 1 and before not in observed.unremoved and _has_no_job(observed, *before):
        yield RemoveAttempt(*before)


def _has_no_job(observed: Observed, name: StageName, attempt: int) -> bool:
    """Whether no Job of an attempt is there, or none that stays."""
    found = observed.find(name, attempt)
    return found is None or found.deleting
