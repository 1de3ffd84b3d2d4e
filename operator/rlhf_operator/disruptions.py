"""Which cause a disruption has, by what the platform says of the pod that it ended. Pure.

Called by `observe`. Each cause has a reason of its own; `Disrupted` is left for what is none of
them.
"""

from typing import Any

from rlhf_api.names import Reason
from rlhf_operator.evictions import (
    EVICTED,
    is_not_let_run,
    is_of_node,
    remedy_of_event,
    remedy_of_limit,
)

Raw = dict[str, Any]

_OF_TARGET = {
    "PreemptionByScheduler": Reason.PREEMPTED,
    "EvictionByEvictionAPI": Reason.DRAINED,
    "DeletionByTaintManager": Reason.DRAINED,
    "DeletionByPodGC": Reason.NODE_LOST,
}
"""Of the reasons of a pod's condition DisruptionTarget."""
_BY_KUBELET = "TerminationByKubelet"
_PREEMPTING = "Preempting"
"""Reason of the pod's status, and of the Event, where a kubelet makes room for a critical pod."""
_OF_KUBELET = {
    EVICTED: Reason.NODE_PRESSURE,
    _PREEMPTING: Reason.PREEMPTED,
    "Terminated": Reason.NODE_SHUTDOWN,
}
"""Of the reasons of a pod's status, where its kubelet ended it."""
_BY_TAINT = "DeletionByTaintManager"

_OF_EVENTS = {
    "Preempted": Reason.PREEMPTED,
    _PREEMPTING: Reason.PREEMPTED,
    "TaintManagerEviction": Reason.DRAINED,
    EVICTED: Reason.EVICTED,
    "NodeNotReady": Reason.NODE_LOST,
}
"""Of the Events about a pod that the platform ended."""


def disruption_reason(status: Raw, target: Raw, *, unready: bool, silent: bool) -> Reason | None:
    """Why a pod was, or is about to be, ended; None if it is not.

    Args:
        status: of the pod.
        target: its condition DisruptionTarget; empty if it has none.
        unready: whether it is not ready though its containers are, as on a node that is silent.
        silent: whether its node has not answered for too long.
    """
    if target.get("status") != "True":
        return Reason.NODE_LOST if silent else None
    why = target.get("reason")
    if why == _BY_KUBELET:
        told = status.get("reason")
        if told == EVICTED and remedy_of_limit(status.get("message")) is not None:
            return None
        return _OF_KUBELET.get(str(told), Reason.DISRUPTED)
    if why == _BY_TAINT and unready:
        # The taint is that of a node which does not answer.
        return Reason.NODE_LOST
    return _OF_TARGET.get(str(why), Reason.DISRUPTED)


def reason_of_event(event: Raw) -> Reason | None:
    """Why the platform ended a pod, by an Event about it; None if this one tells of no such end."""
    why, message = event.get("reason"), event.get("message")
    if is_not_let_run(event) or remedy_of_event(event) is not None:
        return None
    if why == EVICTED and is_of_node(message):
        return Reason.NODE_PRESSURE
    return _OF_EVENTS.get(str(why))
