"""Whose doing it is that a kubelet evicts a pod: the pod's own, or that of its node. Pure.

Called by `observe`, `pod_state` and `disruptions`. Both come with the same reason, and only the
sentence tells them apart: a node under pressure is a disruption, and a pod above its own limit a
failure that would come again on any node. A pod that its node never let run is neither.
"""

import re
from typing import Any

Raw = dict[str, Any]

EVICTED = "Evicted"
"""Reason of the pod's status, and of the Event."""

_OF_ITS_OWN = (
    (
        re.compile(r"Usage of EmptyDir volume "),
        "raise sizeLimit of that emptyDir in a new job, or write less there",
    ),
    (
        re.compile(
            r"Pod ephemeral local storage usage exceeds the total limit "
            r"|Container \S+ exceeded its local ephemeral storage limit "
        ),
        "raise resources.limits.ephemeral-storage in a new job, or write less outside of volumes",
    ),
)
"""How the kubelet begins to tell of a limit of the pod's, and what to do about it."""
_OF_THE_NODE = re.compile(r"(?:Pod )?The node was low on resource")
_NOT_LET_RUN = re.compile(r"(?:Pod )?The node had condition")
_REFUSING = re.compile(
    r"OutOf[a-z].*|UnexpectedAdmissionError|Node(?:Affinity|Name|Ports|Shutdown)|TaintToleration"
    r"|(?:TopologyAffinity|SMTAlignment)Error|SysctlForbidden|AppArmor|Pod(?:OS|Feature|Level).*"
)
"""Reasons of a kubelet that does not admit a pod. One that ran on a node which is being shut down
has another."""

FREE_THE_NODE = "free the node, or correct resources, nodeSelector or affinity"
"""What to do where a node does not let a pod run."""


def remedy_of_limit(message: str | None) -> str | None:
    """What to do about the limit of its own that a pod exceeded; None if it was another cause."""
    said = (message or "").strip()
    return next((remedy for form, remedy in _OF_ITS_OWN if form.match(said)), None)


def is_of_node(message: str | None) -> bool:
    """Whether the kubelet says that its node lacked something."""
    return _OF_THE_NODE.match((message or "").strip()) is not None


def remedy_of_event(event: Raw) -> str | None:
    """What to do about the limit of its own for which a pod was evicted; None for other Events."""
    return remedy_of_limit(event.get("message")) if event.get("reason") == EVICTED else None


def is_not_let_run(event: Raw) -> bool:
    """Whether the kubelet's Event says of a pod that its node did not let it run at all."""
    reason = event.get("reason") or ""
    if reason == EVICTED:
        return _NOT_LET_RUN.match((event.get("message") or "").strip()) is not None
    return _REFUSING.fullmatch(reason) is not None
