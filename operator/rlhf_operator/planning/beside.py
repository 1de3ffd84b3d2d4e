"""What is told of an attempt whose place is kept by others after its end. Pure; called by `stages`.

A container that was injected beside the trainer, a proxy for example, knows nothing of its end. The
verdict is that of the trainers; the attempt is then deleted, which takes its logs away.
"""

from rlhf_api.v1alpha1 import StageStatus
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH
from rlhf_operator.planning.observed import ObservedAttempt


def with_beside(stage: StageStatus, attempt: ObservedAttempt) -> StageStatus:
    """The status of a stage that is done with the attempt, with what becomes of that."""
    if not attempt.beside or attempt.stopping:
        return stage
    names = " and ".join(attempt.beside)
    clause = (
        f"; attempt {attempt.attempt} is deleted, and its logs with it, since {names} would run on "
        "beside it"
    )
    message = (stage.message or "")[: MAX_MESSAGE_LENGTH - len(clause)] + clause
    return stage.model_copy(update={"message": message})
