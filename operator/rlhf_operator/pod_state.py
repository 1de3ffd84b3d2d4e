"""What kubelet, scheduler and trainer say of a pod. Pure; called by `observe`.

Containers are found by name: others may be injected, before the trainer, beside it or to run first.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from rlhf_api.errors import ContractVersionError
from rlhf_api.names import ExitCode, Reason
from rlhf_api.v1alpha1 import StageResult
from rlhf_operator.evictions import EVICTED, FREE_THE_NODE, remedy_of_limit
from rlhf_operator.fields import TRAINER
from rlhf_operator.planning.observed import ProcessPhase
from rlhf_operator.refusals import steady

Raw = dict[str, Any]

MOST_CHARACTERS = 1000
"""Of a text that is no result."""
CHANGE_WHAT_SETS = "change what sets that on the job's children, as an admission policy may"
_FIRST_SIGNAL_CODE = 128
_PULL_REASONS = re.compile(r"(?:Err)?Image.*|RegistryUnavailable|SignatureValidationFailed")
_INVALID_IMAGE, _IMAGE_UNREAD = "InvalidImageName", "ImageInspectError"
_ON_THE_WAY = ("ContainerCreating", "PodInitializing")
"""Why a container waits that nothing is wrong with."""
_START_FAILURES = ("StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError")
"""Why a container ended that has never run."""
_CRASH_LOOP = "CrashLoopBackOff"
_HINDRANCES = {
    "CreateContainerConfigError": (
        Reason.CONTAINER_CONFIG,
        "create what is named, or correct env or envFrom in a new job",
    ),
    _CRASH_LOOP: (Reason.CRASH_LOOP, "see its log"),
}
"""Of why a container waits: our reason, and what to do about it."""
_AS_ROOT = re.compile(r"runAsNonRoot and image |breaks non-root policy")
_NOT_AS_ROOT = "set template.securityContext.runAsUser, or take an image with a numeric user, in a "
_NOT_AS_ROOT += "new job"
_NOT_STARTED = (Reason.CONTAINER_NOT_STARTED, "correct spec.image, spec.template or the node")
_WHAT_ADDS = "correct what adds the container"
"""To a pod whose other containers the job's spec says nothing of."""
_REMEDIES_BESIDE = {
    Reason.CONTAINER_CONFIG: f"create what is named, or {_WHAT_ADDS}",
    Reason.CONTAINER_NOT_STARTED: f"{_WHAT_ADDS}, or the node",
}
"""What to do where the container is not the trainer's."""
_BACK_OFF = re.compile(r"(?<=back-off )\d[\dhms.]*")
"""How long the kubelet waits before its next try: longer each time."""
_NO_CLAIMS = "no new claims to deallocate"
_NODES = re.compile(
    rf"0/\d+ nodes are available: (.+?)(?:\. (?:[^.]*, )?preemption: .*|\. {_NO_CLAIMS}|\.)?$"
)
"""The scheduler's sentence about all nodes, and after it what making room would not do."""
_GATED, _SCHEDULER_ERROR = "SchedulingGated", "SchedulerError"


@dataclass(frozen=True)
class Told:
    """What is said of a pod.

    Attributes:
        result: the trainer's last word; None if it left nothing that can be read.
        reason: why it waits or ended in the platform's view, if that says more than the exit code.
        message: the same in a sentence, or what the trainer left in place of a result.
        patient: whether another try soon cannot help, since the trainer has not run, or is of
            another release.
    """

    result: StageResult | None = None
    reason: Reason | None = None
    message: str = ""
    patient: bool = False


def trainer_of(pod: Raw) -> Raw:
    """The state of the container that trains; empty while there is none."""
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((each for each in containers if each.get("name") == TRAINER), {})


def told_of(pod: Raw, phase: ProcessPhase | None) -> Told:
    """What the pod, the kubelet or the scheduler says of it.

    Args:
        pod: as the store holds it.
        phase: its phase; None for one that is not known.
    """
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    state = trainer_of(pod).get("state") or {}
    ended = state.get("terminated") or {}
    if ended.get("reason") == "OOMKilled":
        memory = "raise resources.limits.memory or lower batchSize"
        said = f"pod {name} exceeded its memory limit; {memory}"
        return Told(reason=Reason.OUT_OF_MEMORY, message=said)
    has_run = "running" in state or (ended and ended.get("reason") not in _START_FAILURES)
    failed = phase is ProcessPhase.FAILED and ended.get("exitCode") != 0
    why = status.get("reason") if failed else None
    limit = remedy_of_limit(status.get("message"))
    if why == EVICTED and (has_run or limit is not None):
        return _evicted(name, status, ended, patient=not has_run)
    if why and has_run and _was_stopped(ended):
        text = ": ".join(each for each in (why, _line(status.get("message"))) if each)
        said = f"pod {name} was ended from outside: {text}; {CHANGE_WHAT_SETS}"
        return Told(_result_of(ended), Reason.CHILD_ENDED, said)
    if ended:
        told, other = _ended(name, ended), _failed_beside(status)
        done = told.result is not None and ended.get("exitCode") == 0
        if phase is ProcessPhase.FAILED and done and other:
            said = f"pod {name}: {other} after {TRAINER} had ended well"
            return replace(told, reason=Reason.CRASHED, message=said)
        return told
    if phase is ProcessPhase.FAILED and "running" not in state:
        return _never_ran(pod)
    return _waiting(pod)


def _evicted(name: str, status: Raw, ended: Raw, *, patient: bool) -> Told:
    """The kubelet has ended the pod, for a limit of its own or for what else it says."""
    limit = remedy_of_limit(status.get("message"))
    reason = Reason.EVICTED if limit is None else Reason.STORAGE_EXCEEDED
    why = _line(status.get("message")).removesuffix(".")
    said = f"pod {name} was evicted: {why}; {limit or 'correct what it exceeded'}"
    return Told(_result_of(ended), reason, said, patient)


def _was_stopped(ended: Raw) -> bool:
    """Whether a signal may have ended the trainer, of which nobody has told it the cause."""
    code = ended.get("exitCode")
    return code in (None, ExitCode.STOPPED_WITH_CHECKPOINT) or code > _FIRST_SIGNAL_CODE


def _result_of(ended: Raw) -> StageResult | None:
    """What the trainer said, where that is not what the verdict is about."""
    with suppress(ContractVersionError):
        return StageResult.from_message(ended.get("message") or "")
    return None


def _ended(name: str, ended: Raw) -> Told:
    """The trainer's container is over."""
    code, text = ended.get("exitCode"), _line(ended.get("message"))
    if ended.get("reason") in _START_FAILURES:
        remedy = "correct spec.image, spec.template or what they name"
        said = f"pod {name}: container {TRAINER} cannot start: {text}; {remedy}"
        return Told(reason=Reason.START_ERROR, message=said, patient=True)
    try:
        result = StageResult.from_message(ended.get("message") or "")
    except ContractVersionError as error:
        # The next attempt takes the same image, unless the operator is just being replaced.
        said = f"pod {name}: {error}"
        return Told(reason=Reason.CONTRACT_VERSION, message=said, patient=True)
    if result is not None:
        return Told(result)
    # Our trainer is silent only where a signal ended it.
    foreign = isinstance(code, int) and code < _FIRST_SIGNAL_CODE
    said = f"pod {name} ended with exit code {code} and left no result but: {text}" if text else ""
    return Told(message=said, patient=foreign)


def _never_ran(pod: Raw) -> Told:
    """The pod has failed before its trainer could start: its node refused it, or another container
    that was to run first has failed."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    other = _failed_beside(status)
    # Who says why the pod has failed has ended that container, too.
    if other is not None and not status.get("reason"):
        said = f"pod {name}: {other} before {TRAINER} could start"
        return Told(reason=Reason.START_ERROR, message=said, patient=True)
    why = ": ".join(each for each in (status.get("reason"), _line(status.get("message"))) if each)
    if not why:
        return Told(patient=True)
    node = (pod.get("spec") or {}).get("nodeName", "its node")
    said = f"pod {name} was not let run by {node}: {why}; {FREE_THE_NODE}"
    return Told(reason=Reason.POD_REJECTED, message=said, patient=True)


def _failed_beside(status: Raw) -> str | None:
    """How the first container but the trainer's that has failed ended; None if none has."""
    for container in _others(status):
        ended = (container.get("state") or {}).get("terminated") or {}
        if ended.get("exitCode"):
            code, text = ended["exitCode"], _line(ended.get("message")) or "see its log"
            return f"container {container.get('name')} ended with exit code {code} ({text})"
    return None


def _waiting(pod: Raw) -> Told:
    """Why a pod that is not over is not ready, where anybody says so."""
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    for container in (trainer_of(pod), *_others(status)):
        waiting = (container.get("state") or {}).get("waiting") or {}
        who = "" if container.get("name") == TRAINER else f"container {container.get('name')}: "
        unavailable = _image_unavailable(waiting.get("reason"), own=not who)
        if unavailable is not None:
            said = f"pod {name}: {who}image {container.get('image', '')} {unavailable}"
            return Told(reason=Reason.IMAGE_PULL, message=said)
        if waiting.get("reason") and waiting["reason"] not in _ON_THE_WAY:
            return _hindered(f"pod {name}: {who}", waiting, own=not who)
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    scheduled = conditions.get("PodScheduled") or {}
    return _unscheduled(pod, scheduled) if scheduled.get("status") == "False" else Told()


def _unscheduled(pod: Raw, scheduled: Raw) -> Told:
    """Why a pod has no node, as its condition PodScheduled tells."""
    name, why = pod["metadata"]["name"], scheduled.get("reason")
    if why == "Unschedulable":
        said = f"pod {name} cannot be scheduled: {_unsuited(scheduled.get('message'))}"
        return Told(reason=Reason.UNSCHEDULABLE, message=said)
    text = _line(scheduled.get("message")).removesuffix(".")
    if why == _GATED:
        gates = (pod.get("spec") or {}).get("schedulingGates") or ()
        named = ", ".join(sorted(str(each.get("name")) for each in gates))
        who = f"pod {name} is kept from being scheduled by its schedulingGates ({named})"
        remedy = "have who sets them take them away, or keep them off the job's pods"
        return Told(reason=Reason.SCHEDULING_GATED, message=f"{who}: {text}; {remedy}")
    if why == _SCHEDULER_ERROR:
        remedy = "the scheduler tries again; where it lasts, correct what is named"
        said = f"pod {name} cannot be scheduled: {why}: {text}; {remedy}"
        return Told(reason=Reason.SCHEDULER_ERROR, message=said)
    return Told()


def _image_unavailable(why: str | None, *, own: bool) -> str | None:
    """What is wrong with the image of a container that waits, and what to do about it.

    Args:
        why: the kubelet's reason.
        own: whether the container is the trainer's.
    """
    if why == _INVALID_IMAGE:
        remedy = "correct spec.image in a new job" if own else _WHAT_ADDS
        return f"is no valid name of an image; {remedy}"
    if why == _IMAGE_UNREAD:
        return "cannot be read on its node; remove it there, so that it is pulled anew"
    if why is not None and _PULL_REASONS.fullmatch(why):
        # The kubelet's own reason and text change with every try, and so would status.
        given = "correct spec.image, push the image or give imagePullSecrets"
        return f"cannot be pulled; {given if own else f'push it, or {_WHAT_ADDS}'}"
    return None


def _hindered(who: str, waiting: Raw, *, own: bool) -> Told:
    """What keeps a container waiting, in words that stay the same from try to try.

    Args:
        who: pod and container.
        waiting: the state of the latter.
        own: whether it is the trainer's.
    """
    why = waiting["reason"]
    reason, remedy = _HINDRANCES.get(why, _NOT_STARTED)
    # Of one that crashes the kubelet tells names and times alone.
    text = "" if why == _CRASH_LOOP else _BACK_OFF.sub("...", _line(waiting.get("message")))
    as_root = reason is Reason.CONTAINER_CONFIG and _AS_ROOT.search(text) is not None
    if not own:
        remedy = _WHAT_ADDS if as_root else _REMEDIES_BESIDE.get(reason, remedy)
    elif as_root:
        remedy = _NOT_AS_ROOT
    said = ": ".join(each for each in (why, text) if each)
    return Told(reason=reason, message=f"{who}{said}; {remedy}")


def _unsuited(message: str | None) -> str:
    """The scheduler's causes without its counts of nodes, which come and go."""
    text = " ".join((message or "").split())
    found = _NODES.match(text)
    if found is None:
        return _line(text)
    causes = {re.sub(r"^\d+ ", "", each) for each in re.split(r", (?=\d+ )", found[1])}
    return f"no node is available: {', '.join(sorted(causes))}"


def _others(status: Raw) -> Iterator[Raw]:
    """The state of all containers but the trainer's, in the order in which they start."""
    for container in status.get("initContainerStatuses") or ():
        yield container
    for container in status.get("containerStatuses") or ():
        if container.get("name") != TRAINER:
            yield container


def _line(text: object) -> str:
    """One line without what would make it another one each time; of a long text its end."""
    line = steady(" ".join(str(text or "").split()))
    return line if len(line) <= MOST_CHARACTERS else f"... {line[-MOST_CHARACTERS:]}"
