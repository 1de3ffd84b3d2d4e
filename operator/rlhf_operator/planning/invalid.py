"""What is told of a job whose spec the operator does not understand. Pure; called by `reconcile`.

Such a job has no model that a plan could be made of: its status is changed as the document that it
is, and what another release has written there stays.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rlhf_api.names import ConditionType, Phase, Reason
from rlhf_api.v1alpha1.bounds import bounded_text
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH

Raw = dict[str, Any]

_ENDS = (ConditionType.SUCCEEDED, ConditionType.FAILED)


def invalid_status(status: Mapping[str, Any], message: str, generation: int, now: datetime) -> Raw:
    """The status that says so: the same where all of it is said already.

    Args:
        status: as it is.
        message: what is wrong, and the remedy.
        generation: of the spec.
        now: the time.
    """
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    old = conditions.get(ConditionType.ACCEPTED) or {}
    turned = old.get("status") != "False"
    since = now.strftime("%Y-%m-%dT%H:%M:%SZ") if turned else old["lastTransitionTime"]
    conditions[ConditionType.ACCEPTED] = old | {
        "type": ConditionType.ACCEPTED,
        "status": "False",
        "reason": Reason.INVALID_SPEC,
        "message": bounded_text(message, MAX_MESSAGE_LENGTH),
        "lastTransitionTime": since,
        "observedGeneration": generation,
    }
    changes: Raw = {"conditions": list(conditions.values()), "observedGeneration": generation}
    if not any((conditions.get(kind) or {}).get("status") == "True" for kind in _ENDS):
        # How a job has ended stays; of any other nobody decides now what its phase is.
        changes["phase"] = status.get("phase") or Phase.PENDING
        changes["summary"] = (status.get("summary") or {}) | {"reason": Reason.INVALID_SPEC}
    return {**status, **changes}


def says_invalid(status: Mapping[str, Any], message: str) -> bool:
    """Whether a status says already that the spec is not understood, in these words."""
    told = (bounded_text(message, MAX_MESSAGE_LENGTH), "False")
    accepted = [
        (each.get("message"), each.get("status"))
        for each in status.get("conditions") or ()
        if each["type"] == ConditionType.ACCEPTED
    ]
    return told in accepted
