"""What follows when the cluster refuses a child, or a pod of one. Pure.

Called by `act` with answers of the API server, and by `observe` with what the Job controller tells
of pods. An answer is judged by what it says: a policy, a quota and a mistake in the manifest come
with the same HTTP statuses.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from rlhf_api.names import Reason
from rlhf_operator.faults import is_sent
from rlhf_operator.kube import ApiError
from rlhf_operator.planning.observed import Refusal

_VARYING = re.compile(
    r"\b[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}\b"  # a UUID
    r"|\b[0-9A-HJKMNP-TV-Z]{26}\b"  # a ULID
    r"|\b0x[0-9a-f]+\b"  # an address in memory
    r"|(?<!-)\b(?=[0-9a-fA-F]*[0-9])(?=[0-9a-fA-F]*[a-fA-F])[0-9a-fA-F]{8,}\b"  # a hash, a trace
    r"|\b\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?"  # a time
    # a counter, a request's number; but not what a node lacks
    r"|(?<!-)(?<!requested: )(?<!used: )(?<!capacity: )\b\d{6,}\b"
    r"|(?:\[[\da-f:]+\]|\b\d+(?:\.\d+){3}):\d+(?=->)"  # our end of a connection
    r"|\b(?:\d+m)?\d+\.\d+m?s\b|\b\d+[nuµm]s\b"  # a time that was taken
    r"|(?<=\bused: )\S+(?=, limited: )"  # what others take of a quota, who come and go
    r"|(?<=\d-)[bcdfghjklmnpqrstvwxz2456789]{5}\b"  # the end of a pod's name
)
"""What differs from one refusal to the next of the same thing; what stands in a name stays."""

_OF_THE_SERVER = re.compile(
    r"(?<=\bused: )\S+(?=, limited: )|(?<=\d-)[bcdfghjklmnpqrstvwxz2456789]{5}\b"
)
"""The same in a sentence of the API server itself, whose numbers are what was exceeded."""
_SEVERAL = re.compile(r"(?<= \[).+(?=\]$)")
_NEXT = re.compile(
    r", (?=(?:minimum|maximum) \S+ usage per |\S+ max limit to request ratio per "
    r"|(?:spec|metadata)\.\S+: )"
)
"""Several things that the API server minds, and what stands between two of them."""

_OF_A_CONTROLLER = re.compile(r"^(?:\(combined from similar events\): )?(?:Error creating: )?")
_OBJECT = re.compile(r'^(?:\S+ "[^"]*"|\S+) is forbidden: ')
"""What stands before the sentence of whoever refused an object."""


@dataclass(frozen=True)
class _Cause:
    """One cause of refusals.

    Attributes:
        reason: its word.
        form: how its sentence begins, or what is in it.
        remedy: what to do about it.
        at_least: seconds to wait before the next try.
        is_final: whether there is none, since no try of the same can end otherwise.
        is_plain: whether the sentence is the API server's own, and the same for the same thing but
            for its order.
    """

    reason: Reason
    form: re.Pattern[str]
    remedy: str
    at_least: float = 15.0
    is_final: bool = False
    is_plain: bool = False


_CAUSES = (
    # Those that quote others come first: what they quote may read like anything below.
    _Cause(
        Reason.WEBHOOK_DENIED,
        re.compile(r'(?:Internal error occurred: )?admission webhook ".*?" denied the request'),
        "satisfy its policy in a new job, or change the policy",
    ),
    _Cause(
        Reason.POLICY_DENIED,
        re.compile(r"(?:ValidatingAdmissionPolicy|policy) ['\"].*? denied request: "),
        "satisfy the policy in a new job, or change the policy",
    ),
    _Cause(
        Reason.WEBHOOK_UNAVAILABLE,
        re.compile(r'Internal error occurred: failed calling webhook "'),
        "bring the webhook back, or remove its configuration",
        at_least=2.0,
    ),
    _Cause(
        Reason.WEBHOOK_UNAVAILABLE,
        re.compile(r'admission plugin "\w+" failed to complete (?:mutation|validation) in '),
        "see which webhooks are slow, and bring them back or remove their configuration",
        at_least=2.0,
    ),
    _Cause(
        Reason.WEBHOOK_FAILED,
        # The API server does not say whose patch it was.
        re.compile(
            r"Internal error occurred: (?:\w+ operation does not apply"
            r"|testing (?:value )?\S+ failed|unexpected kind|json: cannot unmarshal"
            r"|unable to decode )",
            re.IGNORECASE,
        ),
        "correct the mutating webhook that changes it, or remove its configuration",
    ),
    _Cause(
        Reason.WEBHOOK_FAILED,
        re.compile(r'.*?admission webhook "', re.DOTALL),
        "correct the webhook, or remove its configuration",
    ),
    _Cause(
        Reason.FORBIDDEN,
        re.compile(r'User ".*?" cannot |cannot set (?:an ownerRef|blockOwnerDeletion if) '),
        "grant it to {who}",
    ),
    _Cause(
        Reason.API_ERROR,
        # OwnerReferencesPermissionEnforcement learns of a new CRD half a minute late.
        re.compile(r"cannot set blockOwnerDeletion in this case because cannot find RESTMapping"),
        "the CRD is new, and it is tried again until the API server knows it",
        at_least=3.0,
    ),
    _Cause(
        Reason.API_ERROR,
        re.compile(r"not yet ready to handle request|status unknown for quota: "),
        "it is tried again",
        at_least=3.0,
    ),
    _Cause(
        Reason.QUOTA_EXCEEDED,
        re.compile(r"exceeded quota: |insufficient quota to "),
        "free or raise the quota",
        is_plain=True,
    ),
    _Cause(
        Reason.RESOURCES_REQUIRED,
        re.compile(r"failed quota: "),
        "give template.resources what the quota asks for in a new job, or let a LimitRange set it",
        is_plain=True,
    ),
    _Cause(
        Reason.LIMIT_RANGE_VIOLATED,
        re.compile(
            r"\[?(?:(?:minimum|maximum) \S+ usage|\S+ max limit to request ratio) per \w+ is "
        ),
        "keep resources within the LimitRange in a new job, or change the LimitRange",
        is_plain=True,
    ),
    _Cause(
        Reason.POD_SECURITY_VIOLATED,
        re.compile(r"violates PodSecurity |unable to validate against any security context"),
        "satisfy it by template.securityContext in a new job, or let the namespace allow it",
        is_plain=True,
    ),
    _Cause(
        Reason.PRIORITY_CLASS_MISSING,
        re.compile(r"no PriorityClass with name "),
        "create it, or name another one by priorityClassName in a new job",
        is_plain=True,
    ),
    _Cause(
        Reason.SERVICE_ACCOUNT_MISSING,
        re.compile(r"error looking up service account "),
        "create it, or name another one by template.serviceAccountName in a new job",
        is_plain=True,
    ),
    _Cause(
        Reason.RUNTIME_CLASS_MISSING,
        re.compile(r'pod rejected: RuntimeClass ".*?" not found'),
        "create it, or name another one by template.runtimeClassName in a new job",
        is_plain=True,
    ),
    _Cause(
        Reason.NAMESPACE_TERMINATING,
        re.compile(r"unable to create new content in namespace .* is being terminated"),
        "make the job in another namespace",
        at_least=60.0,
    ),
)
_NOT_ADMITTED = _Cause(
    Reason.ADMISSION_DENIED,
    re.compile(r""),
    "satisfy what refuses it in a new job, or have that changed",
)
_INVALID_SPEC = _Cause(
    Reason.INVALID_SPEC,
    re.compile(r""),
    "correct the spec in a new job",
    is_final=True,
    is_plain=True,
)
_TOO_LARGE = _Cause(
    Reason.INVALID_SPEC,
    re.compile(r"Request entity too large: |.*?request is too large|.*?message larger than max"),
    "take fewer or shorter env values, labels and annotations in a new job",
    is_final=True,
    is_plain=True,
)
_SMALL = 512 * 1024
"""Bytes of a manifest that fits everywhere: etcd takes 1.5 MiB unless it is told otherwise."""
_INVALID_MUTATION = _Cause(
    Reason.INVALID_MUTATION,
    re.compile(r""),
    "the operator did not send what is refused: correct the mutating webhook or policy that did",
    is_plain=True,
)
_OF_OTHERS = (Reason.WEBHOOK_DENIED, Reason.POLICY_DENIED, Reason.ADMISSION_DENIED)
"""Reasons of refusals that a manifest may satisfy."""
_INVALID_POD = _Cause(
    Reason.INVALID_POD,
    re.compile(r'Pod "[^"]*" is invalid: '),
    "see what the cluster adds to pods: defaults of a LimitRange, a mutating webhook",
    is_plain=True,
)


class ChildError(Exception):
    """A child that cannot be made, read or deleted now.

    Attributes:
        refusal: why, and what follows.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refusal(
    child: str, error: ApiError, *, making: bool = True, sent: dict[str, Any] | None = None
) -> Refusal:
    """What the answer to a request about `child` means.

    Args:
        child: kind and name, and what was to be done unless that is to make it.
        error: the answer.
        making: whether the child was to be made: else no other spec would help.
        sent: the manifest, where it was to be made.
    """
    cause = _cause(error.message)
    if cause is None and error.status == 429:
        told = f"{child}: the API server is busy (429); it is asked again when it says"
        return Refusal(Reason.API_ERROR, told, at_least=error.retry_after or 1, child=child)
    if cause is None and making:
        cause = _found_wrong(error, sent)
    if cause is None and error.status == 403:
        cause = _NOT_ADMITTED
    said = f"{child}: {_words(error.message, cause)}"
    if cause is None:
        return Refusal(Reason.API_ERROR, f"{said}; it is tried again", child=child)
    remedy = cause.remedy.format(who="the operator")
    if not making and cause.reason in _OF_OTHERS:
        remedy = "let the operator do it there"
    told = f"{said}; {remedy}"
    if cause.is_final:
        return Refusal(cause.reason, told, final=True, child=child)
    return Refusal(cause.reason, told, at_least=cause.at_least, child=child)


def _found_wrong(error: ApiError, sent: dict[str, Any] | None) -> _Cause | None:
    """What the API server itself finds wrong; a webhook may name fields, too, and is known by now.

    It looks at what mutating webhooks and policies have made of the manifest.
    """
    faults = error.faults() if error.status == 422 else ()
    if faults:
        is_ours = sent is None or any(is_sent(sent, each) for each in faults)
        return _INVALID_SPEC if is_ours else _INVALID_MUTATION
    if _TOO_LARGE.form.match(error.message):
        is_ours = sent is None or error.status == 413 or len(json.dumps(sent)) > _SMALL
        return _TOO_LARGE if is_ours else _INVALID_MUTATION
    return None


def refusal_of_pods(job_name: str, told: str) -> Refusal:
    """What it means that pods of a batch/v1 Job could not be made.

    Args:
        job_name: of the Job.
        told: the message of its Event FailedCreate.
    """
    child, said = f"Job {job_name}", _OF_A_CONTROLLER.sub("", told)
    cause = _cause(said)
    if cause is None and _INVALID_POD.form.match(said):
        cause = _INVALID_POD
    if cause is None and _OBJECT.match(said):
        cause = _NOT_ADMITTED
    # Each try is of another pod, by the number of its index and by what is made up for it.
    own = rf"(?<![a-z0-9.-]){re.escape(job_name)}-\d+(?:-[a-z0-9]*)?(?![a-z0-9])"
    text = _words(re.sub(own, f"{job_name}-...", said), cause)
    text = text.replace(f'pods "{job_name}-..." is forbidden', "pods are forbidden")
    if cause is None:
        return Refusal(Reason.API_ERROR, f"{child}: {text}; it is tried again", child=child)
    remedy = cause.remedy.format(who="the Job controller")
    return Refusal(cause.reason, f"{child}: {text}; {remedy}", child=child)


def _cause(said: str) -> _Cause | None:
    sentence = _OBJECT.sub("", said)
    return next((cause for cause in _CAUSES if cause.form.match(sentence)), None)


def _words(said: str, cause: _Cause | None) -> str:
    """What was said, in words that are the same for the same thing."""
    if cause is None or not cause.is_plain:
        return steady(said)
    # The API server walks its maps in another order each time.
    text = _SEVERAL.sub(lambda found: ", ".join(sorted(_NEXT.split(found[0]))), _one_line(said))
    return _OF_THE_SERVER.sub("...", text)


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def steady(text: str) -> str:
    """The text in one line, without what would make it, and a status, another one each time."""
    return _VARYING.sub("...", _one_line(text))
