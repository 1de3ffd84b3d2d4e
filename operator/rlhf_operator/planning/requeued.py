"""An attempt that ran and is held back: Kueue has preempted it, or somebody has suspended its Job.

Called by `stages`. Pure. It is the same attempt when it is let run again, since nothing of it has
failed: its pods were asked to end, and the next ones go on from what those have saved.
"""

from datetime import datetime

from rlhf_api.names import Reason, StageState
from rlhf_api.v1alpha1 import StageStatus
from rlhf_operator.planning.clocks import is_held, pending_since
from rlhf_operator.planning.observed import ObservedAttempt


def requeued(stage: StageStatus, attempt: ObservedAttempt | None, now: datetime) -> StageStatus:
    """The status of a stage that starts again, since its attempt is held back or was meanwhile.

    Args:
        stage: the stage.
        attempt: its current attempt; None if it is not there.
        now: the time.
    """
    if stage.state is not StageState.RUNNING or attempt is None:
        return stage
    if attempt.complete or attempt.failed:
        return stage
    ran = stage.last_progress_time or pending_since(stage) or now
    if is_held(attempt):
        # What shows its pods may be ahead of what shows that it is let run.
        return stage if attempt.ready else _begun_anew(stage, _since(attempt, ran, now))
    released, counted = attempt.released_at, pending_since(stage)
    if released is None or counted is None or released <= counted:
        return stage
    if released <= ran:
        return stage.model_copy(update={"pending_since": released})
    # Held back and let run while nobody was looking: the last step is the last that is known.
    return _begun_anew(stage, ran)


def _since(attempt: ObservedAttempt, ran: datetime, now: datetime) -> datetime:
    """Since when the attempt is held back, which it was not while it ran."""
    since = attempt.held_since
    return now if since is None or since < ran else min(since, now)


def _begun_anew(stage: StageStatus, since: datetime) -> StageStatus:
    # The step stays for people to see; the time left does not hold while nothing runs.
    progress = stage.progress and stage.progress.model_copy(update={"eta_seconds": None})
    return stage.model_copy(
        update={
            "state": StageState.STARTING,
            "idle_since": since,
            "progress": progress,
            "disruption": None,
            "disruption_reason": None,
            "reason": Reason.QUEUED,
            "message": f"attempt {stage.attempt} is held back",
        }
    )
