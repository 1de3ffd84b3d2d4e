"""What stands among a job's children and is none, and children that somebody has changed.

Called by `reconcile`. Pure. Both are named and left alone. Whose child an object is, and of which
attempt, follows from its owner, its name and what its pods read: whoever copies an object, or edits
its labels, changes nothing of that. Where the owner is gone the labels tell, so that nothing is
started beside what may train.
"""

from collections.abc import Iterable, Iterator

from rlhf_api.names import KIND, OPERATOR_NAME, Annotation, Label, Reason, StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.fields import Raw, attempt_of, is_hidden, number
from rlhf_operator.manifests import is_attempt, is_disowned
from rlhf_operator.planning.observed import Oddity
from rlhf_operator.store import Gang, Kind

_OURS = (Label.MANAGED_BY, OPERATOR_NAME)
_NAMES = {Kind.JOB: "Job", Kind.POD: "Pod"}


def oddities(
    job: RLHFJob, gangs: Iterable[Gang], strays: Iterable[tuple[Kind, Raw]]
) -> tuple[Oddity, ...]:
    """What is to be told of the objects that carry the job's labels, or its ownership.

    Args:
        job: the job.
        gangs: what it owns.
        strays: what carries its labels and has another owner, or none.
    """
    found = [*_strays(job, strays), *(odd for gang in gangs for odd in _of_child(job, gang))]
    return tuple(sorted(found, key=lambda odd: (odd.reason != Reason.FOREIGN_CHILD, odd.message)))


def _strays(job: RLHFJob, strays: Iterable[tuple[Kind, Raw]]) -> Iterator[Oddity]:
    for kind, raw in strays:
        if raw["metadata"].get("deletionTimestamp") is not None:
            continue
        if kind is Kind.JOB and is_disowned(job, raw):
            yield _disowned(job, raw["metadata"]["name"])
        else:
            said = (
                f"{_NAMES[kind]} {raw['metadata']['name']} carries labels of this job and is not "
                f"its own; remove its labels {Label.JOB} and {Label.JOB_UID}, or delete it"
            )
            yield Oddity(Reason.FOREIGN_CHILD, said)


def _disowned(job: RLHFJob, name: str) -> Oddity:
    said = (
        f"Job {name} has no ownerReference to {KIND} {job.metadata.name}, whose attempt it is; "
        f"write it again (uid {job.metadata.uid}, controller true), or delete the Job: it is not "
        "stopped, and nothing is started beside it"
    )
    return Oddity(Reason.CHILD_CHANGED, said)


def _of_child(job: RLHFJob, gang: Gang) -> Iterator[Oddity]:
    """What is odd about a batch/v1 Job that names the job as its owner, and about its pods."""
    child, pods = gang.job, gang.pods
    name = child["metadata"]["name"]
    attempt = attempt_of(job.metadata.name, name)
    if attempt is None or not is_attempt(job, child):
        said = f"Job {name} names this {KIND} as its owner and is none of its attempts; delete it"
        yield Oddity(Reason.FOREIGN_CHILD, said)
        return
    labels = child["metadata"].get("labels") or {}
    for label, value in _labels(job, *attempt).items():
        if labels.get(label) != value:
            yield _changed_label(f"Job {name}", child, label, value)
    nodes = job.spec.nodes(attempt[0])
    for field in ("parallelism", "completions"):
        if child["spec"].get(field, nodes) != nodes:
            said = f"Job {name}: spec.{field} is {child['spec'][field]}; set it to {nodes} again"
            yield Oddity(Reason.CHILD_CHANGED, said)
    for pod in pods:
        if is_hidden(pod):
            yield _changed_label(f"Pod {pod['metadata']['name']}", pod, *_OURS)
    step = (child["metadata"].get("annotations") or {}).get(Annotation.CHECKPOINT_STEP)
    if step is not None and number(step) is None:
        said = f"Job {name}: annotation {Annotation.CHECKPOINT_STEP} is no number; its end counts"
        yield Oddity(Reason.CHILD_CHANGED, f"{said} as a restart without progress")


def _changed_label(who: str, child: Raw, label: str, value: str) -> Oddity:
    labels = child["metadata"].get("labels") or {}
    found = f"is {labels[label]!r}" if label in labels else "is missing"
    return Oddity(Reason.CHILD_CHANGED, f"{who}: label {label} {found}; write {value} again")


def _labels(job: RLHFJob, stage: StageName, attempt: int) -> dict[str, str]:
    return {
        Label.MANAGED_BY: OPERATOR_NAME,
        Label.JOB: job.metadata.name,
        Label.JOB_UID: job.metadata.uid,
        Label.STAGE: stage.value,
        Label.ATTEMPT: str(attempt),
    }
