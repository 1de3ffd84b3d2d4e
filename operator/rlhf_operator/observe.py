"""From raw Jobs and Pods to `Observed`. Pure; the LISTs are done by `reconcile`."""

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from rlhf_api.errors import ContractVersionError
from rlhf_api.names import Annotation, Label, Reason, StageName
from rlhf_api.v1alpha1 import StageResult
from rlhf_operator.planning.observed import ObservedAttempt, ObservedProcess, ProcessPhase

Raw = dict[str, Any]

NODE_SILENCE = timedelta(seconds=30)
"""How long a pod may be not ready though its containers run, or exceed its grace period."""

_INDEX = "batch.kubernetes.io/job-completion-index"
_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
_CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError")


def is_owned(child: Raw, uid: str) -> bool:
    """Whether the object with `uid` controls `child`."""
    owners = child["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner["uid"] == uid for owner in owners)


def observed_attempts(
    uid: str, jobs: Iterable[Raw], pods: Sequence[Raw], now: datetime
) -> tuple[ObservedAttempt, ...]:
    """The attempts of the RLHFJob with `uid`.

    Args:
        uid: metadata.uid of the RLHFJob; children of others are left out.
        jobs: batch/v1 Jobs.
        pods: their Pods.
        now: the time.
    """
    return tuple(_attempt(job, pods, now) for job in jobs if is_owned(job, uid))


def lacks_pods(job: Raw, pods: Sequence[Raw]) -> bool:
    """Whether the Job controller has not made all pods of a Job that is to run."""
    spec, over = job["spec"], {"Complete", "Failed", "FailureTarget", "SuccessCriteriaMet"}
    conditions = (job.get("status") or {}).get("conditions") or ()
    ended = any(each["type"] in over and each["status"] == "True" for each in conditions)
    deleted = job["metadata"].get("deletionTimestamp")
    held = ended or deleted or spec.get("suspend")
    return not held and len(pods_of(job, pods)) < spec["parallelism"]


def refused_pod(job: Raw, events: Sequence[Raw]) -> ObservedProcess:
    """The pod that the Job controller could not make, as its Events tell.

    Args:
        job: a batch/v1 Job that lacks pods.
        events: its Events with reason FailedCreate.
    """
    name = job["metadata"]["name"]
    if not events:
        return ObservedProcess(f"{name}-?", -1)
    said = str(max(events, key=lambda event: event.get("lastTimestamp") or "")["message"])
    reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in said else Reason.FORBIDDEN
    # The end names a pod that was not made, another one each time.
    text = re.sub(rf'pods "{re.escape(name)}-\S+" is ', "pods are ", said)
    return ObservedProcess(f"{name}-?", -1, reason=reason, message=f"Job {name}: {text}")


def pods_of(job: Raw, pods: Iterable[Raw]) -> list[Raw]:
    """The newest pod of each index of a batch/v1 Job."""
    own = [pod for pod in pods if is_owned(pod, job["metadata"]["uid"])]
    own.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    return list({pod_index(pod): pod for pod in own}.values())


def _attempt(job: Raw, pods: Sequence[Raw], now: datetime) -> ObservedAttempt:
    metadata, spec, status = job["metadata"], job["spec"], job.get("status") or {}
    labels, annotations = metadata["labels"], metadata.get("annotations") or {}
    true = {c["type"]: c for c in status.get("conditions") or () if c["status"] == "True"}
    deleted_at = _time(metadata.get("deletionTimestamp"))
    failing = true.get("FailureTarget") or true.get("Failed")
    failed_at = _time(failing["lastTransitionTime"]) if failing else None
    own = pods_of(job, pods)
    processes = [_process(pod, now, deleting=deleted_at is not None) for pod in own]
    if spec.get("suspend"):
        processes.append(_suspended(metadata, failed=failing is not None))
    step = annotations.get(Annotation.CHECKPOINT_STEP)
    return ObservedAttempt(
        stage=StageName(labels[Label.STAGE]),
        attempt=int(labels[Label.ATTEMPT]),
        processes=tuple(processes),
        complete="Complete" in true,
        failed=failing is not None or deleted_at is not None,
        killed_at=min((t for t in (deleted_at, failed_at) if t is not None), default=None),
        checkpoint_step=None if step is None else int(step),
    )


def _suspended(metadata: Raw, *, failed: bool) -> ObservedProcess:
    """Kueue's part: it holds the Job back, or it has preempted one that ran."""
    name = metadata["name"]
    if failed:
        phase, message = ProcessPhase.FAILED, f"Job {name} was suspended from outside"
        return ObservedProcess(name, -1, phase, disrupted=True, message=message)
    message = f"Job {name} waits in queue {metadata['labels'].get(Label.QUEUE, '(none)')}"
    return ObservedProcess(name, -1, reason=Reason.QUEUED, message=message)


def _process(pod: Raw, now: datetime, *, deleting: bool) -> ObservedProcess:
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    container: Raw = next(iter(status.get("containerStatuses") or ()), {})
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    deleted_at = _time(metadata.get("deletionTimestamp"))
    ready = conditions.get("Ready") or {}
    phase = ProcessPhase(status["phase"]) if status.get("phase") in set(ProcessPhase) else None
    over = phase in (ProcessPhase.SUCCEEDED, ProcessPhase.FAILED)
    silent_since = None if over else _silent_since(pod, state, ready, now)
    silent = silent_since is not None
    target = conditions.get("DisruptionTarget") or {}
    disrupted = silent or target.get("status") == "True"
    result, reason, message = _told(metadata["name"], ended, state, conditions, container)
    if disrupted:
        node = (pod.get("spec") or {}).get("nodeName", "its node")
        told = target.get("message") or f"{node} does not answer"
        message = f"pod {metadata['name']} was disrupted: {told}"
    return ObservedProcess(
        name=metadata["name"],
        index=pod_index(pod),
        phase=phase or ProcessPhase.PENDING,
        ready=ready.get("status") == "True",
        exit_code=ended.get("exitCode"),
        finished_at=_time(ended.get("finishedAt")) or silent_since,
        result=result,
        reason=reason,
        message=message,
        disrupted=disrupted,
        lost=silent,
        terminating=deleting or deleted_at is not None,
    )


def _silent_since(pod: Raw, state: Raw, ready: Raw, now: datetime) -> datetime | None:
    """Since when nobody can say what became of the pod, as its node does not answer.

    None if it answers, or has not been silent for long.
    """
    since = _time(ready.get("lastTransitionTime"))
    unready = ready.get("status") == "False" and "running" in state
    times = [_time(pod["metadata"].get("deletionTimestamp")), since if unready else None]
    found = [time for time in times if time is not None and now - time >= NODE_SILENCE]
    return min(found, default=None)


def _told(
    name: str, ended: Raw, state: Raw, conditions: Raw, container: Raw
) -> tuple[StageResult | None, Reason | None, str]:
    """What the pod, the kubelet or the scheduler says of it."""
    waiting, scheduled = state.get("waiting") or {}, conditions.get("PodScheduled") or {}
    if ended.get("reason") == "OOMKilled":
        memory = "raise resources.limits.memory or lower batchSize"
        return None, Reason.OUT_OF_MEMORY, f"pod {name} exceeded its memory limit; {memory}"
    if ended:
        try:
            return StageResult.from_message(ended.get("message") or ""), None, ""
        except ContractVersionError as error:
            return None, Reason.CONTRACT_VERSION, f"pod {name}: {error}"
    if waiting.get("reason") in _PULL_REASONS:
        # The kubelet's own text changes with every try, and so would status.
        image = container.get("image", "")
        remedy = "correct spec.image, push the image or give imagePullSecrets"
        return None, Reason.IMAGE_PULL, f"pod {name}: image {image} cannot be pulled; {remedy}"
    if waiting.get("reason") in _CONFIG_REASONS:
        return None, Reason.PODS_PENDING, f"pod {name}: {waiting.get('message')}"
    if scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable":
        text = re.sub(r"\s+", " ", scheduled.get("message") or "")
        return None, Reason.UNSCHEDULABLE, f"pod {name} cannot be scheduled: {text}"
    return None, None, ""


def pod_index(pod: Raw) -> int:
    """Node rank of a pod of an Indexed Job."""
    return int((pod["metadata"].get("annotations") or {}).get(_INDEX, 0))


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
