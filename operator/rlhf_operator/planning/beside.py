"""What is told of an attempt that has to be deleted, which takes its logs away.

Called by `stages`. Pure. Pods that are to end are deleted, and nobody keeps the logs of a pod that
is not there: so it is with one that hangs, and with one whose place is kept by others. A container
that was injected beside the trainer, a proxy for example, knows nothing of its end; the verdict is
that of the trainers.
"""

import re

from rlhf_api.v1alpha1 import StageStatus
from rlhf_api.v1alpha1.bounds import bounded_text
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH
from rlhf_operator.planning.observed import ObservedAttempt

_ADVICE = re.compile(r"; see its log\b| \(see its log\)")
"""What `failures` and the operator's reading of pods give for want of a message."""


def of_deletion(attempt: ObservedAttempt | None, why: str) -> str:
    """The clause that tells of an attempt which is deleted; empty where its logs stay.

    Args:
        attempt: the attempt; None if it is not there.
        why: what it, or something of it, would do otherwise.
    """
    if attempt is None or attempt.leaves_logs or not attempt.occupied:
        return ""
    return f"; attempt {attempt.attempt} is deleted, and its logs with it, since {why}"


def without_log(message: str | None) -> str:
    """The message without the advice to see a log that is about to go."""
    return _ADVICE.sub("", message or "")


def with_beside(stage: StageStatus, attempt: ObservedAttempt) -> StageStatus:
    """The status of a stage that is done with the attempt, with what becomes of that."""
    if not attempt.beside or attempt.stopping:
        return stage
    names = " and ".join(attempt.beside)
    clause = of_deletion(attempt, f"{names} would run on beside it")
    kept = bounded_text(without_log(stage.message), MAX_MESSAGE_LENGTH - len(clause))
    return stage.model_copy(update={"message": kept + clause})
