"""What follows when the API server refuses something about a child. Pure; called by `act`."""

import re

from rlhf_api.names import Reason
from rlhf_operator.kube import ApiError
from rlhf_operator.planning.observed import Refusal

_VARYING = re.compile(
    r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"  # a UUID
    r"|(?<!-)\b(?=[0-9a-fA-F]*[0-9])(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{8,}\b"  # a hash, a trace
    r"|\b\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?"  # a time
    r"|(?<!-)\b\d{6,}\b"  # a counter, a request's number
    r"|(?<=\d-)[bcdfghjklmnpqrstvwxz2456789]{5}\b"  # the end of a pod's name
)
"""What differs from one refusal to the next of the same thing; what stands in a name stays."""
_DENIED = re.compile(r"\bdenied (?:the )?request\b")
"""Of a webhook or a ValidatingAdmissionPolicy: whoever made it may take it back."""


class ChildError(Exception):
    """A child that cannot be made, read or deleted now.

    Attributes:
        refusal: why, and what follows.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal(child: str, error: ApiError) -> Refusal:
    """What the answer to a request about `child` means."""
    said = f"{child}: {steady(error.message)}"
    if error.status == 403 and "exceeded quota" in error.message:
        return Refusal(Reason.QUOTA_EXCEEDED, f"{said}; free or raise the quota", at_least=15)
    if error.has_cause("NamespaceTerminating"):
        told = f"{said}; make the job in another namespace"
        return Refusal(Reason.NAMESPACE_TERMINATING, told, at_least=60)
    if _DENIED.search(error.message):
        # Whatever its status, which is 400 or 422 unless the policy says otherwise.
        remedy = "satisfy the admission policy in a new job, or change the policy"
        return Refusal(Reason.FORBIDDEN, f"{said}; {remedy}", at_least=15)
    if error.status == 403 and "cannot find RESTMapping" in error.message:
        # OwnerReferencesPermissionEnforcement learns of a new CRD half a minute late.
        told = f"{said}; the CRD is new, and it is tried again until the API server knows it"
        return Refusal(Reason.API_ERROR, told, at_least=3)
    if error.status == 403:
        return Refusal(Reason.FORBIDDEN, f"{said}; grant it to the operator", at_least=15)
    if error.status in (400, 422):
        return Refusal(Reason.INVALID_SPEC, f"{said}; correct the spec in a new job", final=True)
    if error.status == 429:
        told = f"{child}: the API server is busy (429); it is asked again when it says"
        return Refusal(Reason.API_ERROR, told, at_least=error.retry_after or 1)
    return Refusal(Reason.API_ERROR, f"{said}; it is tried again")


def steady(text: str) -> str:
    """The text without what would make it another one each time: a status would be, too."""
    return _VARYING.sub("...", text)
