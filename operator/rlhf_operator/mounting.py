"""Why a pod that is on a node has no container yet, by the Events that the kubelet and the
attach-detach controller tell of it. Pure; called by `absences`.

Status says ContainerCreating of such a pod, whatever it waits for: volumes, Secrets that are
mounted, the network.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rlhf_api.names import Reason
from rlhf_operator.planning.observed import ObservedProcess, ProcessPhase
from rlhf_operator.refusals import steady

Raw = dict[str, Any]

_STARTABLE = "PodReadyToStartContainers"
"""Condition of a pod whose volumes are mounted and whose network is there."""
_VOLUME = "create what is named, or correct the volume, its claim or its driver"
_CAUSES = {
    "FailedAttachVolume": (Reason.VOLUME_NOT_MOUNTED, _VOLUME),
    "FailedMapVolume": (Reason.VOLUME_NOT_MOUNTED, _VOLUME),
    "FailedMount": (Reason.VOLUME_NOT_MOUNTED, _VOLUME),
    "FailedCreatePodSandBox": (
        Reason.CONTAINER_NOT_STARTED,
        "correct the node's network or runtime, or runtimeClassName in a new job",
    ),
}
"""Of the reasons of Events, those that tell most first: ours, and what to do about it."""
_SUMMARY = re.compile(r"Unable to attach or mount volumes: ")
"""How the kubelet says, every two minutes, that it has waited; others tell for what."""
_PASSED = {
    "SuccessfulAttachVolume": {"FailedAttachVolume"},
    "Pulling": set(_CAUSES),
    "Pulled": set(_CAUSES),
    "Created": set(_CAUSES),
    "Started": set(_CAUSES),
}
"""After which Events which failures are over."""


def before_start(processes: Iterable[ObservedProcess], pods: Iterable[Raw]) -> list[Raw]:
    """The pods that wait on their node for volumes or the network, as far as they say.

    Where the kubelet does not tell of that in a condition, those that pull an image are among them.

    Args:
        processes: of an attempt, as they are seen.
        pods: those that they are made from.

    Returns:
        None of them where another one says already what it waits for.
    """
    waiting = {
        each.name: each
        for each in processes
        if each.phase is ProcessPhase.PENDING and not (each.ended or each.terminating)
    }
    if any(each.reason is not None for each in waiting.values()):
        return []
    by_name = {pod["metadata"]["name"]: pod for pod in pods}
    return [by_name[name] for name in waiting if _is_before_start(by_name[name])]


def in_turn(waiting: Sequence[Raw], last: ObservedProcess | None) -> list[Raw]:
    """The pods in the order in which they are asked about.

    Args:
        waiting: the pods that wait.
        last: the one that was asked about last; it is the first again if it had a cause to tell.
    """
    names = [pod["metadata"]["name"] for pod in waiting]
    if last is None or last.name not in names:
        return list(waiting)
    first = names.index(last.name) + (last.reason is None)
    return [*waiting[first:], *waiting[:first]]


def _is_before_start(pod: Raw) -> bool:
    status = pod.get("status") or {}
    if not (pod.get("spec") or {}).get("nodeName"):
        return False
    conditions = status.get("conditions") or ()
    if any(c["type"] == _STARTABLE and c.get("status") == "True" for c in conditions):
        return False
    names = ("initContainerStatuses", "containerStatuses")
    states = (each.get("state") or {} for name in names for each in status.get(name) or ())
    return all(state.keys() <= {"waiting"} for state in states)


def hindered_pod(process: ObservedProcess, events: Sequence[Raw]) -> ObservedProcess:
    """The pod with what keeps it from its start, as the Events about it tell.

    Args:
        process: the pod as it is seen.
        events: all Events about it.
    """
    failures = [each for each in events if each.get("reason") in _CAUSES]
    failures = [each for each in failures if not any(_is_over(each, by) for by in events)]
    if not failures:
        return process
    told = min(sorted(failures, key=_time, reverse=True), key=_rank)
    reason, remedy = _CAUSES[told["reason"]]
    said = f"{told['reason']}: {steady(str(told.get('message') or ''))}"
    message = f"pod {process.name} waits on its node: {said}; {remedy}"
    return replace(process, reason=reason, message=message)


def _rank(event: Raw) -> tuple[bool, int]:
    summary = _SUMMARY.match(str(event.get("message") or "")) is not None
    return summary, list(_CAUSES).index(event["reason"])


def _is_over(failure: Raw, event: Raw) -> bool:
    ends = failure["reason"] in _PASSED.get(str(event.get("reason")), ())
    return ends and _time(event) >= _time(failure)


def _time(event: Raw) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
