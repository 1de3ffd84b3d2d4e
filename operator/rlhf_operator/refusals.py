"""What follows when the API server refuses a child. Pure; called by `reconcile`."""

from dataclasses import dataclass

from rlhf_api.names import Reason
from rlhf_operator.kube import ApiError


@dataclass(frozen=True)
class Refusal:
    """A refusal in our vocabulary.

    Attributes:
        reason: of the condition ChildrenReady.
        message: object, what the API server said, remedy.
        final: whether trying again cannot help.
        at_least: seconds to wait before the next try.
    """

    reason: Reason
    message: str
    final: bool = False
    at_least: float = 0.0


class ChildError(Exception):
    """A child that cannot be made now.

    Attributes:
        refusal: why, and what follows.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal(child: str, error: ApiError) -> Refusal:
    """What the answer to a request about `child` means."""
    said = f"{child}: {error.message}"
    if error.status == 403 and "exceeded quota" in error.message:
        return Refusal(Reason.QUOTA_EXCEEDED, f"{said}; free or raise the quota", at_least=15)
    if error.status == 403 and error.has_cause("NamespaceTerminating"):
        return Refusal(Reason.NAMESPACE_TERMINATING, said, at_least=60)
    if error.status == 403:
        return Refusal(Reason.FORBIDDEN, f"{said}; grant it to the operator", at_least=15)
    if error.status in (400, 422):
        return Refusal(Reason.INVALID_SPEC, f"{said}; correct the spec in a new job", final=True)
    if error.status == 429:
        told = f"{child}: the API server is busy (429)"
        return Refusal(Reason.API_ERROR, told, at_least=error.retry_after or 1)
    return Refusal(Reason.API_ERROR, said)
