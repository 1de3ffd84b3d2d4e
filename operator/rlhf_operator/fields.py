"""Which fields of raw objects are read, and whose an object is. Pure; called by `store`."""

import re
import sys
from typing import Any

from rlhf_api.names import OPERATOR_NAME, PLURAL, Annotation, Label, StageName

Raw = dict[str, Any]

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
TRAINER = "trainer"
"""Name of the container that trains; others may stand beside it."""
CONFIG_VOLUME = "rlhf-config"
"""Name of the volume with the ConfigMap of an attempt, as `pod.yaml` mounts it."""

_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
)
_OWNER = ("uid", "controller")
_OUR_LABELS = (Label.JOB, Label.JOB_UID, Label.MANAGED_BY)
_JOB_ANNOTATIONS = (Annotation.CHECKPOINT_STEP, Annotation.GUARDRAILS)
_JOB_SPEC = ("completions", "parallelism", "suspend")
_JOB_STATUS = ("active", "conditions")
_ENDS = ("Complete", "Failed", "SuccessCriteriaMet", "FailureTarget")
_POD_STATUS = ("phase", "podIP", "message", "reason", "conditions")
_CONTAINER = ("name", "image", "state", "ready")


def trimmed(kind: str, raw: Raw) -> Raw:
    """The object with what is read of it.

    Args:
        kind: plural of what it is.
        raw: as the API server gives it.
    """
    of_kind = {"jobs": _trimmed_job, "pods": _trimmed_pod}.get(kind, _trimmed_rlhfjob)
    found: Raw = _with_shared_keys(of_kind(raw))
    return found


def owner_uid(raw: Raw) -> str | None:
    """The uid of the object that controls this one; None if none does."""
    for owner in raw["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner["uid"])
    return None


def is_watched(raw: Raw) -> bool:
    """Whether a child carries the label by which the operator's watches choose what they show."""
    return (raw["metadata"].get("labels") or {}).get(Label.MANAGED_BY) == OPERATOR_NAME


def attempt_of(job: str, child: str) -> tuple[StageName, int] | None:
    """The attempt of a job that `child_name` gives this name; None if it gives none."""
    found = re.fullmatch(rf"{re.escape(job)}-({'|'.join(StageName)})-([1-9][0-9]{{0,9}})", child)
    return None if found is None else (StageName(found[1]), int(found[2]))


def config_of(job: Raw) -> str | None:
    """The ConfigMap that the pods of a batch/v1 Job read as their configuration; None if none."""
    pod = (job["spec"].get("template") or {}).get("spec") or {}
    for volume in pod.get("volumes") or ():
        if volume.get("name") == CONFIG_VOLUME:
            return (volume.get("configMap") or {}).get("name")
    return None


def pods_of_gang(spec: Raw) -> int:
    """How many pods a batch/v1 Job with this spec has as a gang; `parallelism` anyone may lower."""
    found: Any = spec.get("completions", spec.get("parallelism", 1))
    return int(found)


def is_let_run(spec: Raw) -> bool:
    """Whether a batch/v1 Job with this spec may have pods at all."""
    return not spec.get("suspend") and spec.get("parallelism") != 0


def claimed(kind: str, raw: Raw) -> str | None:
    """The RLHFJob whose labels an object carries, by uid or else as namespace/name.

    None for what is found by its owner: a job's own Job, and its Pods.

    Args:
        kind: plural of what it is.
        raw: the object, trimmed or not.
    """
    labels = raw["metadata"].get("labels") or {}
    uid, name = labels.get(Label.JOB_UID), labels.get(Label.JOB)
    if kind == PLURAL or (kind == "pods" and _is_of_own_job(raw)):
        return None
    if uid is not None:
        return None if owner_uid(raw) == uid else str(uid)
    return None if name is None else f"{raw['metadata']['namespace']}/{name}"


def number(text: object) -> int | None:
    """The number that an annotation or a name holds; None for what is none, or beyond counting."""
    return int(str(text)) if re.fullmatch(r"[0-9]{1,10}", str(text)) else None


def is_same_but_for_status(one: Raw, other: Raw) -> bool:
    """Whether two versions of an object differ in nothing that a person changes."""
    fields = ("uid", "generation", "deletionTimestamp", "labels")
    return all(one["metadata"].get(f) == other["metadata"].get(f) for f in fields)


def has_ended(pod: Raw) -> bool:
    """Whether a Pod says how its trainer ended, or that it failed before that could run."""
    status = pod.get("status") or {}
    containers = status.get("containerStatuses") or ()
    own = (each.get("state") or {} for each in containers if each.get("name") == TRAINER)
    return status.get("phase") == "Failed" or any("terminated" in state for state in own)


def is_over(kind: str, raw: Raw) -> bool:
    """Whether a child says that it has ended, or is about to.

    Args:
        kind: plural of what it is.
        raw: the object, trimmed or not.
    """
    if kind == "pods":
        return has_ended(raw)
    conditions = (raw.get("status") or {}).get("conditions") or ()
    return any(each["type"] in _ENDS and each["status"] == "True" for each in conditions)


def is_hidden(pod: Raw) -> bool:
    """Whether a Pod that has not ended is one that no watch shows."""
    return not (is_watched(pod) or has_ended(pod))


def _trimmed_rlhfjob(raw: Raw) -> Raw:
    metadata = _metadata(raw) | _only(raw["metadata"], ("generation", "labels"))
    return {"metadata": metadata} | _only(raw, ("apiVersion", "kind", "spec", "status"))


def _trimmed_job(raw: Raw) -> Raw:
    metadata = _metadata(raw) | _only(raw["metadata"], ("labels",))
    # Those of the job's template may be large.
    annotations = _only(raw["metadata"].get("annotations") or {}, _JOB_ANNOTATIONS)
    spec = raw.get("spec") or {}
    config = config_of({"spec": spec})
    read = {"name": CONFIG_VOLUME, "configMap": {"name": config}}
    template = {} if config is None else {"template": {"spec": {"volumes": [read]}}}
    return {
        "metadata": metadata | {"annotations": annotations},
        "spec": _only(spec, _JOB_SPEC) | template,
        "status": _only(raw.get("status") or {}, _JOB_STATUS),
    }


def _trimmed_pod(raw: Raw) -> Raw:
    annotations = _only(raw["metadata"].get("annotations") or {}, (INDEX_ANNOTATION,))
    status = raw.get("status") or {}
    containers = [_only(each, _CONTAINER) for each in status.get("containerStatuses") or ()]
    first = [_only(each, _CONTAINER) for each in status.get("initContainerStatuses") or ()]
    # Those that are done have no more to tell.
    first = [each for each in first if not _is_done(each)]
    # Those of an attempt are known by its Job.
    names = (Label.MANAGED_BY,) if _is_of_own_job(raw) else _OUR_LABELS
    labels = _only(raw["metadata"].get("labels") or {}, names)
    return {
        "metadata": _metadata(raw)
        | {"annotations": annotations}
        | ({"labels": labels} if labels else {}),
        "spec": _only(raw.get("spec") or {}, ("nodeName", "schedulingGates")),
        "status": _only(status, _POD_STATUS)
        | {"containerStatuses": containers}
        | ({"initContainerStatuses": first} if first else {}),
    }


def _is_of_own_job(pod: Raw) -> bool:
    """Whether a Pod is controlled by a Job that is called as an attempt of the job in its labels.

    That Job may not have been seen yet.
    """
    job = str((pod["metadata"].get("labels") or {}).get(Label.JOB))
    owners = pod["metadata"].get("ownerReferences") or ()
    return any(
        each.get("controller")
        and each.get("kind") == "Job"
        and attempt_of(job, each.get("name", "")) is not None
        for each in owners
    )


def _is_done(container: Raw) -> bool:
    ended = (container.get("state") or {}).get("terminated")
    return ended is not None and ended.get("exitCode") == 0


def _metadata(raw: Raw) -> Raw:
    owners = [_only(each, _OWNER) for each in raw["metadata"].get("ownerReferences") or ()]
    return _only(raw["metadata"], _METADATA) | {"ownerReferences": owners}


def _with_shared_keys(value: Any) -> Any:
    """The same value; each object that is parsed comes with keys of its own."""
    if isinstance(value, dict):
        return {sys.intern(key): _with_shared_keys(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_shared_keys(each) for each in value]
    return value


def _only(mapping: Raw, names: tuple[str, ...]) -> Raw:
    return {name: mapping[name] for name in names if mapping.get(name) is not None}
