"""What keeps a stage's attempt from running, told in words that last as long as the cause does.

Called by `stages` while an attempt starts. Pure; conditions and Events repeat what is told here.
"""

import re

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import StageStatus
from rlhf_operator.planning.observed import ObservedAttempt

UNHINDERED = (None, Reason.CREATED, Reason.PODS_PENDING)
"""Reasons of a stage that starts as it should."""
_POD = re.compile(r"^pod \S+")


def hindrance(stage: StageStatus, attempt: ObservedAttempt) -> tuple[Reason | str, str]:
    """Reason and sentence of an attempt that does not run yet.

    Args:
        stage: as it was; a cause that is told is not told anew of another pod.
        attempt: the current one.
    """
    # What is disrupted is about to end, and tells why then.
    waiting = (p for p in attempt.processes if not (p.ready or p.ended or p.disrupted))
    held = next((p for p in waiting if p.reason is not None), None)
    if held is None or held.reason is None:
        if stage.reason is Reason.CRASH_LOOP:
            # For a moment it runs, or has just ended, between two tries.
            return Reason.CRASH_LOOP, stage.message or ""
        return (
            Reason.PODS_PENDING,
            f"attempt {attempt.attempt} waits until all of its processes run",
        )
    told = stage.message or ""
    if stage.reason is held.reason and _POD.sub("", told) == _POD.sub("", held.message):
        return held.reason, told
    return held.reason, held.message or f"attempt {attempt.attempt} waits"
