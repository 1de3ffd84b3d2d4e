"""When a job is looked at again of which a pass is over.

Called by `reconcile`.
"""

import random
import time
from datetime import UTC, datetime

from rlhf_operator.memory import LACKING_SECONDS, Memory, ident_of
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.plan import Plan

SPARE_SECONDS = (1.0, 5.0)
"""Until a write that nobody waits for is tried again; spread, since many jobs may wait at once."""


def next_look(decided: Plan, memory: Memory) -> float | None:
    """Seconds until a job is looked at again of which all is written."""
    wait = _seconds_until(decided.look_at, memory.next_try())
    starts = {ident_of(each) for each in decided.actions if isinstance(each, StartAttempt)}
    if starts - memory.refused.keys():
        # Where no pod is made nothing else wakes the job.
        return min(wait, LACKING_SECONDS) if wait is not None else LACKING_SECONDS
    return wait


def spare_look(decided: Plan, memory: Memory) -> float:
    """Seconds until a write that was put off is tried again, or something else is due."""
    first, last = SPARE_SECONDS
    due = _seconds_until(decided.look_at, memory.next_try())
    return random.uniform(first, last if due is None else min(last, max(first, due)))


def _seconds_until(look_at: datetime | None, next_try: float | None) -> float | None:
    """Seconds to the earlier of a time of day and a time on the monotonic clock."""
    waits = []
    if look_at is not None:
        waits.append((look_at - datetime.now(UTC)).total_seconds())
    if next_try is not None:
        waits.append(next_try - time.monotonic())
    return max(0.0, min(waits)) if waits else None
