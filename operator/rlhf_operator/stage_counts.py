"""Counts what became of stages. Called by `reconcile` with statuses that were just written.

By the step from one status to the next, as Events are: so that a new leader counts nothing again.
"""

from rlhf_api.names import Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJobStatus, StageStatus
from rlhf_operator.metrics import STAGE_DISRUPTIONS, STAGE_RESTARTS, STAGE_SECONDS, UNKNOWN
from rlhf_operator.planning.stages import CLOSED
from rlhf_operator.planning.statuses import stages_of


def count_stages(old: RLHFJobStatus, new: RLHFJobStatus) -> None:
    """Count the ends, restarts and disruptions that `new` tells and `old` did not."""
    known = stages_of(old)
    for name, after in stages_of(new).items():
        before = known.get(name) or StageStatus(state=StageState.WAITING)
        if after.state in CLOSED and before.state not in CLOSED:
            _count_end(name, after)
        if after.restarts > before.restarts:
            reason = after.reason if isinstance(after.reason, Reason) else UNKNOWN
            STAGE_RESTARTS.labels(name, reason).inc(after.restarts - before.restarts)
        if after.disruptions > before.disruptions:
            STAGE_DISRUPTIONS.labels(name).inc(after.disruptions - before.disruptions)


def _count_end(name: StageName, stage: StageStatus) -> None:
    if stage.start_time is None or stage.completion_time is None:
        return
    seconds = (stage.completion_time - stage.start_time).total_seconds() - stage.idle_seconds
    STAGE_SECONDS.labels(name, stage.state).observe(max(0.0, seconds))
