"""Jobs and Pods as the API server gives them, and what is seen of them at a moment."""

from datetime import UTC, datetime, timedelta
from typing import Any

from rlhf_api.names import CONTRACT_VERSION
from rlhf_operator.observe import SeenAttempt, seen_attempts
from rlhf_operator.planning.observed import ObservedAttempt, ObservedProcess
from rlhf_operator.store import Gang

UID = "0123456789abcdef"
NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)

Raw = dict[str, Any]

STOPPED = {
    "contractVersion": CONTRACT_VERSION,
    "stage": "sft",
    "attempt": 3,
    "configDigest": "sha256:" + "a" * 64,
    "exitCode": 75,
    "reason": "Stopped",
    "message": "stopped on request",
}
"""The result of an attempt that was asked to stop."""


def job_document(**stage: Any) -> Raw:
    """An RLHFJob `demo` of one stage, with what its status says of that."""
    data = {"uri": "pvc://data/x"}
    status = {"status": {"stages": {"sft": stage}}} if stage else {}
    return {
        "apiVersion": "rlhf.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": "demo", "namespace": "team", "uid": UID, "resourceVersion": "1"},
        "spec": {
            "storage": {"uri": "pvc://runs/x"},
            "stages": {"sft": {"model": {"uri": "hf://a/b"}, "dataset": data}},
        },
    } | status


def at(seconds: float) -> str:
    """A time `seconds` before now."""
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def owner(uid: str) -> list[Raw]:
    return [{"uid": uid, "controller": True}]


def make_job(conditions: tuple[str, ...] = (), *, uid: str = UID, **more: Any) -> Raw:
    labels = {"rlhf.dev/stage": "sft", "rlhf.dev/attempt": "3"}
    metadata: Raw = {"name": "demo-sft-3", "namespace": "team", "uid": "job", "labels": labels}
    metadata["ownerReferences"] = owner(uid)
    metadata["creationTimestamp"] = at(110)
    metadata["annotations"] = {"rlhf.dev/checkpoint-step": "40"}
    found = [{"type": c, "status": "True", "lastTransitionTime": at(5)} for c in conditions]
    spec = {"parallelism": 1} | more.pop("spec", {})
    return {"metadata": metadata | more, "spec": spec, "status": {"conditions": found}}


def make_pod(index: int = 0, phase: str = "Running", **more: Any) -> Raw:
    metadata = {
        "name": f"demo-sft-3-{index}-x",
        "ownerReferences": owner("job"),
        "creationTimestamp": at(100),
        "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
    } | more.pop("metadata", {})
    state = more.pop("state", {"running": {}} if phase == "Running" else {})
    conditions = more.pop("conditions", [ready(phase == "Running")])
    status = {"phase": phase, "conditions": conditions}
    status["containerStatuses"] = [
        # Injected containers may stand before ours, and have ended with another code.
        {"name": "proxy", "image": "proxy:1", "state": {"terminated": {"exitCode": 3}}},
        {"name": "trainer", "image": "i:1", "state": state},
    ]
    return {"metadata": metadata, "spec": {"nodeName": "node-b"}, "status": status}


def ready(value: bool, since: float = 90) -> Raw:
    return {"type": "Ready", "status": str(value), "lastTransitionTime": at(since)}


def ended(code: int, reason: str = "Error", message: str = "") -> Raw:
    state = {"exitCode": code, "reason": reason, "finishedAt": at(20), "message": message}
    return {"terminated": state}


def look(job: Raw, *pods: Raw, now: datetime = NOW) -> SeenAttempt:
    (found,) = seen_attempts("demo", [Gang(job, pods)], now)
    return found


def seen(job: Raw, *pods: Raw) -> ObservedAttempt:
    return look(job, *pods).attempt


def one(pod: Raw, job: Raw | None = None) -> ObservedProcess:
    (found,) = seen(job or make_job(), pod).processes
    return found
