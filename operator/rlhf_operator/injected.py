"""Pods in which containers that the cluster has injected do otherwise than the trainer.

Pure; called by `observe`. Where they run on when it has ended, their Job is neither complete nor
failed for as long, and may never be; where they fail, it has failed, whatever the trainer did.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from rlhf_operator.fields import TRAINER, pods_of_gang
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
    beside = _beside(pod)
    if process.exit_code is None or process.ended or not beside:
        return process, look_at
    end = (process.finished_at or now - TIME_TO_END) + TIME_TO_END
    if now < end:
        return process, min(end, look_at or end)
    phase = ProcessPhase.SUCCEEDED if process.exit_code == 0 else ProcessPhase.FAILED
    return replace(process, phase=phase, beside=beside), look_at


def as_trainers_ended(
    spec: Raw, pods: Sequence[Raw], processes: list[ObservedProcess], *, given_up: bool
) -> tuple[list[ObservedProcess], bool]:
    """The processes, and whether their trainers have ended well though their Job may never say so.

    Args:
        spec: of the Job.
        pods: of the gang, one an index.
        processes: what they show.
        given_up: whether the Job has failed; it ends the pods that are left.
    """
    whole = len(processes) == pods_of_gang(spec)
    if not whole or any(each.exit_code != 0 for each in processes):
        return processes, False
    if given_up or any(each.failed for each in processes):
        # Then no trainer has failed, but something beside one.
        named = {pod["metadata"]["name"]: pod for pod in pods}
        processes = [
            each
            if each.phase is ProcessPhase.SUCCEEDED
            else replace(
                each,
                phase=ProcessPhase.SUCCEEDED,
                beside=() if each.lost else _beside(named[each.name]),
            )
            for each in processes
        ]
        return processes, True
    done = all(each.phase is ProcessPhase.SUCCEEDED for each in processes)
    return processes, done and any(each.beside for each in processes)


def _beside(pod: Raw) -> tuple[str, ...]:
    """The containers that have not ended, but for the trainer."""
    status = pod.get("status") or {}
    if status.get("phase") in (ProcessPhase.SUCCEEDED, ProcessPhase.FAILED):
        return ()
    return tuple(
        each["name"]
        for each in status.get("containerStatuses") or ()
        if each["name"] != TRAINER and "terminated" not in (each.get("state") or {})
    )
