"""Which fields of raw objects are read, and whose an object is. Pure; called by `store`."""

from typing import Any

Raw = dict[str, Any]

INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
TRAINER = "trainer"
"""Name of the container that trains; others may stand beside it."""

_METADATA = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "ownerReferences",
    "labels",
)
_JOB_SPEC = ("parallelism", "suspend")
_JOB_STATUS = ("conditions",)
_POD_STATUS = ("phase", "podIP", "message", "reason", "conditions")
_CONTAINER = ("name", "image", "state")


def trimmed(kind: str, raw: Raw) -> Raw:
    """The object with what is read of it.

    Args:
        kind: plural of what it is.
        raw: as the API server gives it.
    """
    metadata = _only(raw["metadata"], _METADATA)
    if kind == "jobs":
        metadata["annotations"] = raw["metadata"].get("annotations") or {}
        spec = _only(raw.get("spec") or {}, _JOB_SPEC)
        return {
            "metadata": metadata,
            "spec": spec,
            "status": _only(raw.get("status") or {}, _JOB_STATUS),
        }
    if kind == "pods":
        return _trimmed_pod(raw, metadata)
    kept = {key: raw[key] for key in ("apiVersion", "kind", "spec", "status") if key in raw}
    return {"metadata": metadata} | kept


def owner_uid(raw: Raw) -> str | None:
    """The uid of the object that controls this one; None if none does."""
    for owner in raw["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return str(owner["uid"])
    return None


def is_same_but_for_status(one: Raw, other: Raw) -> bool:
    """Whether two versions of an object differ in nothing that a person changes."""
    fields = ("uid", "generation", "deletionTimestamp", "labels")
    return all(one["metadata"].get(f) == other["metadata"].get(f) for f in fields)


def has_ended(pod: Raw) -> bool:
    """Whether a Pod says how its trainer ended."""
    containers = (pod.get("status") or {}).get("containerStatuses") or ()
    own = (each.get("state") or {} for each in containers if each.get("name") == TRAINER)
    return any("terminated" in state for state in own)


def _trimmed_pod(raw: Raw, metadata: Raw) -> Raw:
    annotations = raw["metadata"].get("annotations") or {}
    metadata["annotations"] = _only(annotations, (INDEX_ANNOTATION,))
    spec, status = raw.get("spec") or {}, raw.get("status") or {}
    containers = [_only(each, _CONTAINER) for each in status.get("containerStatuses") or ()]
    return {
        "metadata": metadata,
        "spec": _only(spec, ("nodeName",)),
        "status": _only(status, _POD_STATUS) | {"containerStatuses": containers},
    }


def _only(mapping: Raw, names: tuple[str, ...]) -> Raw:
    return {name: mapping[name] for name in names if mapping.get(name) is not None}
