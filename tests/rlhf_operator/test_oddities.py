"""Objects that carry a job's labels and are no children of it, and children that were changed."""

from typing import Any

import pytest
from raw_gangs import UID, Raw, job_document

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.fields import claimed, trimmed
from rlhf_operator.manifests import is_disowned
from rlhf_operator.oddities import oddities
from rlhf_operator.planning.observed import Oddity
from rlhf_operator.store import Kind, Store

KEY = ("team", "demo")
LABELS = {
    "app.kubernetes.io/managed-by": "rlhf-operator",
    "rlhf.dev/job": "demo",
    "rlhf.dev/job-uid": UID,
    "rlhf.dev/stage": "sft",
    "rlhf.dev/attempt": "1",
}
FOREIGN, CHANGED = Reason.FOREIGN_CHILD, Reason.CHILD_CHANGED


def owners(uid: str, kind: str) -> list[Raw]:
    return [{"uid": uid, "kind": kind, "controller": True, "name": uid}] if uid else []


def raw(
    name: str,
    version: int,
    labels: Raw | None,
    owner: str = "",
    kind: str = "Job",
    config: str = "",
    **more: Any,
) -> Raw:
    metadata: Raw = {"name": name, "namespace": "team", "uid": name} | more
    metadata |= {"resourceVersion": str(version), "ownerReferences": owners(owner, kind)}
    read = {"name": "rlhf-config", "configMap": {"name": config or name}}
    return {
        "metadata": metadata | ({} if labels is None else {"labels": labels}),
        "spec": {"template": {"spec": {"volumes": [{"name": "other", "emptyDir": {}}, read]}}},
    }


@pytest.fixture
def job() -> RLHFJob:
    return RLHFJob.from_document(job_document(state="Running", attempt=2))


@pytest.fixture
def store() -> Store:
    """A job with a Job and a Pod of its own, as they should be."""
    found = Store()
    document = raw("demo", 1, None)
    document["metadata"]["uid"] = UID
    found.put(Kind.RLHFJOB, document)
    found.put(Kind.JOB, raw("demo-sft-1", 2, LABELS, UID, "RLHFJob"))
    found.put(Kind.POD, raw("demo-sft-1-0-abc", 3, LABELS, "demo-sft-1"))
    return found


def told(job: RLHFJob, store: Store) -> tuple[Oddity, ...]:
    return oddities(job, store.gangs(UID), store.strays(KEY, UID))


def test_nothing_is_odd_about_what_the_operator_made(job: RLHFJob, store: Store) -> None:
    assert told(job, store) == ()
    # Of a Job that has not been seen yet, or is gone; and of another job of that name.
    store.put(Kind.POD, raw("demo-sft-2-0-abc", 4, LABELS, "demo-sft-2"))
    earlier = LABELS | {"rlhf.dev/job-uid": "earlier"}
    store.put(Kind.JOB, raw("earlier", 5, earlier, "earlier-job", "RLHFJob"))
    store.put(Kind.POD, raw("plain", 6, {"app": "x"}))
    assert told(job, store) == ()


@pytest.mark.parametrize("labels", [LABELS, {"rlhf.dev/job": "demo"}, {"rlhf.dev/job-uid": UID}])
@pytest.mark.parametrize(
    ("kind", "owner", "owner_kind"),
    [
        (Kind.JOB, "", ""),
        (Kind.JOB, "cron", "CronJob"),
        (Kind.POD, "", ""),
        (Kind.POD, "set", "ReplicaSet"),
        (Kind.POD, "unlabelled", "Job"),
    ],
)
def test_what_carries_our_labels_and_is_of_another_is_named_until_it_is_gone(
    job: RLHFJob, store: Store, labels: Raw, kind: Kind, owner: str, owner_kind: str
) -> None:
    foreign = raw("mine", 7, labels, owner, owner_kind)
    assert store.put(kind, foreign) == KEY
    (odd,) = told(job, store)
    assert odd.reason == FOREIGN
    assert odd.message.startswith(f"{'Job' if kind is Kind.JOB else 'Pod'} mine carries labels of")
    assert "delete it" in odd.message
    assert not [gang for gang in store.gangs(UID) if gang.job["metadata"]["name"] == "mine"]
    assert store.put(kind, raw("mine", 8, {"app": "x"}, owner, owner_kind)) is None
    assert told(job, store) == ()
    assert store.put(kind, raw("mine", 9, labels, owner, owner_kind)) == KEY
    assert store.remove(kind, raw("mine", 10, labels, owner, owner_kind)) == KEY
    assert told(job, store) == ()


def test_the_pods_of_a_foreign_job_are_known_by_it(job: RLHFJob, store: Store) -> None:
    store.put(Kind.JOB, raw("mine", 7, LABELS))
    store.put(Kind.POD, raw("mine-0-abc", 8, LABELS, "mine"))
    (odd,) = told(job, store)
    assert odd.message.startswith("Job mine ")
    # And those of an own Job by that one, whatever their labels.
    other = LABELS | {"rlhf.dev/job": "other"}
    store.put(Kind.POD, raw("demo-sft-1-0-abc", 9, other, "demo-sft-1"))
    assert told(job, store) == (odd,)


def test_what_is_being_deleted_and_what_stands_elsewhere_is_not_named(
    job: RLHFJob, store: Store
) -> None:
    store.put(Kind.POD, raw("going", 7, LABELS, deletionTimestamp="2026-01-01T00:00:00Z"))
    store.put(Kind.POD, raw("elsewhere", 8, LABELS, namespace="other"))
    assert told(job, store) == ()


def test_a_copy_that_names_the_job_as_its_owner_is_no_attempt(job: RLHFJob, store: Store) -> None:
    store.put(Kind.JOB, raw("demo-sft-1-copy", 7, LABELS, UID, "RLHFJob"))
    (odd,) = told(job, store)
    assert odd.reason == FOREIGN
    assert "Job demo-sft-1-copy names this RLHFJob as its owner and is none of its" in odd.message


@pytest.mark.parametrize(
    ("label", "value", "found"),
    [
        ("rlhf.dev/stage", None, "label rlhf.dev/stage is missing; write sft again"),
        ("rlhf.dev/stage", "dpo", "label rlhf.dev/stage is 'dpo'; write sft again"),
        ("rlhf.dev/attempt", "x", "label rlhf.dev/attempt is 'x'; write 1 again"),
        ("rlhf.dev/attempt", "9" * 60, "write 1 again"),
        ("rlhf.dev/job", None, "label rlhf.dev/job is missing; write demo again"),
        ("rlhf.dev/job-uid", "other", f"label rlhf.dev/job-uid is 'other'; write {UID} again"),
    ],
)
def test_a_changed_label_is_named(
    job: RLHFJob, store: Store, label: str, value: str | None, found: str
) -> None:
    labels = {key: each for key, each in (LABELS | {label: value}).items() if each is not None}
    store.put(Kind.JOB, raw("demo-sft-1", 7, labels, UID, "RLHFJob"))
    (odd,) = told(job, store)
    assert odd.reason == CHANGED
    assert odd.message.startswith("Job demo-sft-1: ")
    assert found in odd.message
    store.put(Kind.JOB, raw("demo-sft-1", 8, LABELS, UID, "RLHFJob"))
    assert told(job, store) == ()


@pytest.mark.parametrize(
    ("field", "value"), [("parallelism", 0), ("parallelism", 2), ("completions", 3)]
)
def test_a_changed_number_of_pods_is_named(
    job: RLHFJob, store: Store, field: str, value: int
) -> None:
    changed = raw("demo-sft-1", 7, LABELS, UID, "RLHFJob")
    changed["spec"] |= {"parallelism": 1, "completions": 1} | {field: value}
    store.put(Kind.JOB, changed)
    (odd,) = told(job, store)
    assert odd == Oddity(CHANGED, f"Job demo-sft-1: spec.{field} is {value}; set it to 1 again")


@pytest.mark.parametrize("value", [None, "platform"])
def test_a_pod_that_no_watch_shows_is_named_until_it_has_its_label_again(
    job: RLHFJob, store: Store, value: str | None
) -> None:
    label = "app.kubernetes.io/managed-by"
    labels = {key: each for key, each in (LABELS | {label: value}).items() if each is not None}
    hidden = raw("demo-sft-1-0-abc", 7, labels, "demo-sft-1")
    store.replace_pods("demo-sft-1", [hidden], 7)
    (odd,) = told(job, store)
    said = "is missing" if value is None else "is 'platform'"
    assert odd.reason == CHANGED
    assert odd.message == f"Pod demo-sft-1-0-abc: label {label} {said}; write rlhf-operator again"
    store.put(Kind.POD, raw("demo-sft-1-0-abc", 8, LABELS, "demo-sft-1"))
    assert told(job, store) == ()


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Failed"},
        {"containerStatuses": [{"name": "trainer", "state": {"terminated": {"exitCode": 0}}}]},
    ],
)
def test_nobody_is_asked_to_write_the_label_of_a_pod_that_has_ended(
    job: RLHFJob, store: Store, status: Raw
) -> None:
    hidden = raw("demo-sft-1-0-abc", 7, {}, "demo-sft-1")
    store.replace_pods("demo-sft-1", [hidden], 7)
    assert len(told(job, store)) == 1
    hidden["metadata"]["resourceVersion"] = "8"
    store.replace_pods("demo-sft-1", [hidden | {"status": status}], 8)
    assert told(job, store) == ()
    # It counts still, and its last word is kept when it is gone.
    store.replace_pods("demo-sft-1", [], 9)
    assert [len(gang.pods) for gang in store.gangs(UID)] == [1]
    assert told(job, store) == ()


def test_a_changed_annotation_is_named_and_what_is_foreign_comes_first(
    job: RLHFJob, store: Store
) -> None:
    annotations = {"rlhf.dev/checkpoint-step": "many"}
    changed = raw("demo-sft-1", 7, LABELS, UID, "RLHFJob", annotations=annotations)
    store.put(Kind.JOB, changed)
    store.put(Kind.POD, raw("mine", 8, LABELS))
    assert [odd.reason for odd in told(job, store)] == [FOREIGN, CHANGED]
    assert "annotation rlhf.dev/checkpoint-step is no number" in told(job, store)[1].message


def test_what_is_found_by_its_owner_is_not_looked_for_by_its_labels() -> None:
    assert claimed("jobs", raw("demo-sft-1", 1, LABELS, UID, "RLHFJob")) is None
    assert claimed("pods", raw("demo-sft-1-0-abc", 1, LABELS, "demo-sft-1")) is None
    assert claimed("rlhfjobs", raw("demo", 1, LABELS)) is None
    assert claimed("jobs", raw("mine", 1, LABELS)) == UID


def test_labels_of_pods_are_kept_where_nothing_else_says_whose_they_are() -> None:
    own = trimmed("pods", raw("a", 1, LABELS, "demo-sft-1"))["metadata"]
    assert own["labels"] == {"app.kubernetes.io/managed-by": "rlhf-operator"}
    loose = trimmed("pods", raw("a", 1, LABELS))
    assert loose["metadata"]["labels"] == {
        "app.kubernetes.io/managed-by": "rlhf-operator",
        "rlhf.dev/job": "demo",
        "rlhf.dev/job-uid": UID,
    }
    assert trimmed("pods", loose) == loose


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("demo-sft-2", "demo-sft-1"),
        ("demo-sft-3", "demo-sft-3"),
        ("demo-sft-9999999999", "demo-sft-1"),
        ("demo-ppo-1", "demo-ppo-1"),
        ("demo-sft-2", "other"),
    ],
)
def test_a_copy_whose_name_fits_is_none_of_the_attempts(
    job: RLHFJob, store: Store, name: str, config: str
) -> None:
    store.put(Kind.JOB, raw(name, 4, LABELS, UID, "RLHFJob", config))
    (found,) = told(job, store)
    assert found.reason is FOREIGN
    assert found.message.startswith(f"Job {name} names this RLHFJob as its owner and is none of")
    store.put(Kind.JOB, raw(name, 5, LABELS, UID, "RLHFJob", config) | {"spec": {}})
    assert [odd.reason for odd in told(job, store)] == [FOREIGN]


@pytest.mark.parametrize(
    ("owner", "named"),
    [("demo-cron", True), ("demo-sft", True), ("demo-sft-1-x", True), ("demo-sft-2", False)],
)
def test_pods_of_a_job_whose_name_only_begins_as_ours_are_foreign(
    job: RLHFJob, store: Store, owner: str, named: bool
) -> None:
    store.put(Kind.POD, raw("pod", 4, LABELS, owner))
    assert bool(told(job, store)) is named


OTHER_LABELS = {"app.kubernetes.io/managed-by": "helm", "rlhf.dev/job-uid": UID}


@pytest.mark.parametrize("labels", [LABELS, OTHER_LABELS])
@pytest.mark.parametrize("owner", ["", "other"])
def test_an_attempt_that_has_lost_its_owner_is_named_with_the_remedy(
    job: RLHFJob, store: Store, labels: Raw, owner: str
) -> None:
    assert store.put(Kind.JOB, raw("demo-sft-1", 4, labels, owner, "Other")) == KEY
    (odd,) = told(job, store)
    assert odd.reason is CHANGED
    assert odd.message.startswith("Job demo-sft-1 has no ownerReference to RLHFJob demo, whose")
    assert f"write it again (uid {UID}, controller true), or delete the Job" in odd.message
    # What becomes of its pods is news of the job still.
    assert store.put(Kind.POD, raw("demo-sft-1-0-abc", 5, LABELS, "demo-sft-1")) == KEY
    (gang,) = store.claiming_gangs(UID)
    assert [pod["metadata"]["name"] for pod in gang.pods] == ["demo-sft-1-0-abc"]
    assert is_disowned(job, gang.job)
    going = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    store.put(Kind.JOB, raw("demo-sft-1", 6, labels, owner, "Other", **going))
    assert told(job, store) == ()
    store.put(Kind.JOB, raw("demo-sft-1", 7, LABELS, UID, "RLHFJob"))
    assert (told(job, store), store.claiming_gangs(UID)) == ((), [])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mine", {}),
        ("demo-sft-3", {}),
        ("demo-sft-2", {"config": "demo-sft-1"}),
        ("demo-sft-2", {"namespace": "other"}),
        ("demo-sft-2", {"labels": {"rlhf.dev/job": "demo"}}),
        ("demo-sft-2", {"labels": LABELS | {"rlhf.dev/job-uid": "earlier"}}),
        ("demo-sft-2", {"owner": UID}),
    ],
)
def test_what_is_no_attempt_in_all_but_its_owner_stands_in_for_none(
    job: RLHFJob, name: str, change: dict[str, Any]
) -> None:
    assert is_disowned(job, raw("demo-sft-2", 4, LABELS))
    assert not is_disowned(job, raw(name, 4, **({"labels": LABELS} | change)))
