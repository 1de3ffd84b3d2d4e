"""Pods in which containers that the cluster has injected run on when the trainer has ended.

Pure; called by `observe`. Their Job is neither complete nor failed for as long, and may never be.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from rlhf_operator.fields import TRAINER
from rlhf_operator.planning.observed import ObservedProcess, ProcessPhase

Raw = dict[str, Any]

TIME_TO_END = timedelta(seconds=10)
"""How long others may take to end after the trainer before that counts as ended without them."""


def without_others(
    pod: Raw, now: datetime, process: ObservedProcess, look_at: datetime | None
) -> tuple[ObservedProcess, datetime | None]:
    """The process as its trainer left it, and when to look again.

    Args:
        pod: whose trainer it is.
        now: the time.
        process: what the pod as a whole shows.
        look_at: when that will be something else by the mere passing of time; None if never.
    """
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    beside = tuple(
        each["name"]
        for each in statuses
        if each["name"] != TRAINER and "terminated" not in (each.get("state") or {})
    )
    if process.exit_code is None or process.ended or not beside:
        return process, look_at
    end = (process.finished_at or now - TIME_TO_END) + TIME_TO_END
    if now < end:
        return process, min(end, look_at or end)
    phase = ProcessPhase.SUCCEEDED if process.exit_code == 0 else ProcessPhase.FAILED
    return replace(process, phase=phase, beside=beside), look_at


def is_done(spec: Raw, processes: list[ObservedProcess]) -> bool:
    """Whether a Job with this spec would be complete but for what was injected into its pods."""
    done = all(each.phase is ProcessPhase.SUCCEEDED for each in processes)
    whole = len(processes) == spec.get("parallelism", 1)
    return done and whole and any(each.beside for each in processes)
