"""The store: whatever order news comes in, it ends as the cluster is."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_api.names import OPERATOR_NAME, Annotation, Label
from rlhf_operator.fields import owner_uid, trimmed
from rlhf_operator.store import REMEMBER_SECONDS, Kind, Store

Raw = dict[str, Any]
KEY = ("team", "demo")


def raw(uid: str, version: int, owner: str = "", name: str = "", **more: Any) -> Raw:
    metadata: Raw = {"uid": uid, "resourceVersion": str(version), "namespace": "team"}
    metadata["name"] = name or uid
    metadata["labels"] = {Label.MANAGED_BY: OPERATOR_NAME}
    if owner:
        metadata["ownerReferences"] = [{"uid": owner, "controller": True}]
    return {"apiVersion": "v1", "kind": "X", "metadata": metadata} | more


def demo(version: int, uid: str = "demo-1") -> Raw:
    return raw(uid, version, name="demo")


def filled() -> Store:
    """A job with one Job of one pod."""
    store = Store()
    store.put(Kind.RLHFJOB, demo(1))
    store.put(Kind.JOB, raw("job", 2, owner="demo-1"))
    store.put(Kind.POD, raw("pod", 3, owner="job"))
    return store


def test_news_of_a_child_is_news_of_its_job() -> None:
    store = filled()
    assert store.put(Kind.POD, raw("pod", 4, owner="job")) == KEY
    assert store.put(Kind.JOB, raw("job", 5, owner="demo-1")) == KEY
    (gang,) = store.gangs("demo-1")
    assert [pod["metadata"]["resourceVersion"] for pod in gang.pods] == ["4"]
    assert store.remove(Kind.POD, raw("pod", 6, owner="job")) == KEY
    (gang,) = store.gangs("demo-1")
    assert gang.pods == ()


@pytest.mark.parametrize("owner", ["", "job-2"])
def test_a_pod_that_its_job_let_go_is_found_by_that_job_no_more(owner: str) -> None:
    store = filled()
    store.put(Kind.JOB, raw("job-2", 4, owner="demo-1"))
    store.put(Kind.POD, raw("pod", 5, owner=owner))
    assert [len(gang.pods) for gang in store.gangs("demo-1")] == [0, bool(owner)]
    store.remove(Kind.POD, raw("pod", 6, owner=owner))
    assert [gang.pods for gang in store.gangs("demo-1")] == [(), ()]


@pytest.mark.parametrize("version", [2, 3])
def test_what_is_not_newer_is_no_news(version: int) -> None:
    store = filled()
    assert store.put(Kind.POD, raw("pod", version, owner="job", status={"phase": "Old"})) is None
    (gang,) = store.gangs("demo-1")
    assert "phase" not in gang.pods[0]["status"]


@pytest.mark.parametrize("kind", Kind)
def test_what_was_trimmed_before_is_taken_in_as_it_is(kind: Kind) -> None:
    """A LIST trims each page, and the store whatever it is given."""
    whole = raw("uid", 1, owner="owner", spec={"nodeName": "n", "parallelism": 2, "containers": []})
    whole["metadata"] |= {"labels": {"a": "b"}, "annotations": {"c": "d"}, "managedFields": [{}]}
    state = {"name": "trainer", "image": "i", "state": {"running": {}}, "ready": True}
    whole["status"] = {
        "phase": "Running",
        "containerStatuses": [state],
        "conditions": [{"type": "A"}],
    }
    once = trimmed(kind, whole)
    assert trimmed(kind, once) == once
    assert "managedFields" not in once["metadata"]
    assert owner_uid(once) == "owner"


def test_of_the_annotations_of_a_job_those_are_kept_that_are_read() -> None:
    """Those of its template are there, too, and may be large."""
    own = {Annotation.CHECKPOINT_STEP: "4", Annotation.GUARDRAILS: "sha256:0"}
    whole = raw("uid", 1, owner="owner")
    whole["metadata"]["annotations"] = own | {"notes": "x" * 10_000}
    assert trimmed(Kind.JOB, whole)["metadata"]["annotations"] == own


def test_objects_share_their_keys() -> None:
    """Each text that is parsed gives keys of its own, a quarter of what is kept of a job."""
    store, statuses = Store(), []
    for uid in ("one", "two"):
        text = json.dumps(raw(uid, 1, status={"conditions": [{"lastTransitionTime": uid}]}))
        store.put(Kind.RLHFJOB, json.loads(text))
        found = store.job(("team", uid))
        assert found is not None
        statuses.append(found["status"])
    (one,), (two,) = statuses
    assert one is two
    (one,), (two,) = (status["conditions"][0] for status in statuses)
    assert one is two


def test_versions_are_numbers() -> None:
    store = Store()
    store.put(Kind.RLHFJOB, demo(9))
    assert store.put(Kind.RLHFJOB, demo(10)) == KEY


def test_a_pod_may_come_before_its_job() -> None:
    store = Store()
    store.put(Kind.RLHFJOB, demo(1))
    assert store.put(Kind.POD, raw("pod", 3, owner="job")) is None
    assert store.put(Kind.JOB, raw("job", 2, owner="demo-1")) == KEY
    (gang,) = store.gangs("demo-1")
    assert len(gang.pods) == 1


def test_a_deleted_uid_does_not_come_back_by_late_news() -> None:
    now = 0.0
    store = Store(lambda: now)
    store.put(Kind.RLHFJOB, demo(1))
    assert store.remove(Kind.RLHFJOB, demo(3)) == KEY
    assert store.put(Kind.RLHFJOB, demo(2)) is None
    assert store.job(KEY) is None
    now = REMEMBER_SECONDS + 1
    store.remove(Kind.RLHFJOB, raw("other", 4))
    # Forgotten by now, so that memory stays bounded.
    assert store.put(Kind.RLHFJOB, demo(2)) == KEY


@pytest.mark.parametrize("told_by", ["watch", "list"])
def test_a_child_that_lost_the_label_of_ours_comes_back_with_it(told_by: str) -> None:
    store = filled()
    if told_by == "watch":
        assert store.remove(Kind.JOB, raw("job", 6, owner="demo-1")) == KEY
    else:
        assert store.replace(Kind.JOB, "team", [], 6) == {KEY}
    assert store.put(Kind.JOB, raw("job", 6, owner="demo-1")) is None
    assert store.gangs("demo-1") == []
    assert store.put(Kind.JOB, raw("job", 7, owner="demo-1")) == KEY
    (gang,) = store.gangs("demo-1")
    assert [pod["metadata"]["uid"] for pod in gang.pods] == ["pod"]
    # It is gone for good later, and what was said of it before is late.
    store.remove(Kind.JOB, raw("job", 9, owner="demo-1"))
    assert store.put(Kind.JOB, raw("job", 8, owner="demo-1")) is None


@pytest.mark.parametrize("labels", [{}, {Label.MANAGED_BY: "other"}])
def test_a_child_that_no_watch_shows_is_there_once_it_is_read(labels: Raw) -> None:
    store, hidden = filled(), raw("job", 6, owner="demo-1")
    hidden["metadata"]["labels"] = labels
    store.remove(Kind.JOB, hidden)
    assert store.gangs("demo-1") == []
    store.put_read(Kind.JOB, hidden)
    # No LIST shows it.
    store.replace(Kind.JOB, "team", [], 9)
    (gang,) = store.gangs("demo-1")
    assert [pod["metadata"]["uid"] for pod in gang.pods] == ["pod"]
    # What is watched may have been deleted since it was read, and nothing would tell.
    store.remove(Kind.JOB, hidden)
    store.put_read(Kind.JOB, raw("job", 6, owner="demo-1"))
    assert store.gangs("demo-1") == []


@pytest.mark.parametrize("labels", [{}, {Label.MANAGED_BY: "other"}])
def test_a_pod_that_no_watch_shows_is_there_once_those_of_its_job_are_listed(labels: Raw) -> None:
    store, hidden = filled(), raw("pod", 6, owner="job")
    hidden["metadata"]["labels"] = labels
    store.remove(Kind.POD, hidden)
    store.replace_pods("job", [hidden], 6)
    # No LIST of a namespace shows it, and that of its Job does not when it is gone.
    store.replace(Kind.POD, "team", [], 9)
    (gang,) = store.gangs("demo-1")
    assert [pod["metadata"]["uid"] for pod in gang.pods] == ["pod"]
    store.replace_pods("job", [], 10)
    assert store.gangs("demo-1")[0].pods == ()


@pytest.mark.parametrize("by_list", [False, True])
def test_pods_that_no_watch_shows_are_kept_no_longer_than_their_job(by_list: bool) -> None:
    store, hidden = filled(), raw("hidden", 6, owner="job")
    hidden["metadata"]["labels"] = {}
    store.replace_pods("job", [hidden, raw("pod", 6, owner="job")], 6)
    if by_list:
        store.replace(Kind.JOB, "team", [], 9)
    else:
        store.remove(Kind.JOB, raw("job", 9, owner="demo-1"))
    # The end of the other one is told.
    assert store.count(Kind.POD) == 1
    store.remove(Kind.POD, raw("pod", 10, owner="job"))
    assert store.count(Kind.POD) == 0
    # A Job may be gone for the watches alone, as one that has lost its label.
    store.put_read(Kind.JOB, raw("job", 11, owner="demo-1"))
    store.replace_pods("job", [hidden], 11)
    assert len(store.gangs("demo-1")[0].pods) == 1


def test_the_latest_news_of_a_removal_counts() -> None:
    store = filled()
    store.remove(Kind.JOB, raw("job", 6, owner="demo-1"))
    store.remove(Kind.JOB, raw("job", 4, owner="demo-1"))
    assert store.put(Kind.JOB, raw("job", 5, owner="demo-1")) is None


def test_a_job_applied_again_is_another_job() -> None:
    store = filled()
    assert store.put(Kind.RLHFJOB, demo(7, "demo-2")) == KEY
    found = store.job(KEY)
    assert found is not None
    assert found["metadata"]["uid"] == "demo-2"
    assert store.gangs("demo-2") == []
    # The deletion of the first comes late.
    store.remove(Kind.RLHFJOB, demo(6))
    assert store.job(KEY) is found


def test_an_older_job_of_the_same_name_changes_nothing() -> None:
    store = Store()
    store.put(Kind.RLHFJOB, demo(7, "demo-2"))
    store.put(Kind.RLHFJOB, demo(3, "demo-1"))
    found = store.job(KEY)
    assert found is not None
    assert found["metadata"]["uid"] == "demo-2"


def test_a_list_removes_what_it_lacks_unless_that_is_newer() -> None:
    store = Store()
    for uid, version in (("old", 3), ("new", 30)):
        store.put(Kind.RLHFJOB, raw(uid, version))
    other = raw("elsewhere", 1)
    other["metadata"]["namespace"] = "other"
    store.put(Kind.RLHFJOB, other)
    changed = store.replace(Kind.RLHFJOB, "team", [raw("listed", 5)], 20)
    assert changed == {("team", "old"), ("team", "listed")}
    assert sorted(store.keys()) == [("other", "elsewhere"), ("team", "listed"), ("team", "new")]


def test_a_list_of_one_jobs_pods_leaves_other_pods() -> None:
    store = filled()
    store.put(Kind.POD, raw("gone", 4, owner="job"))
    store.put(Kind.POD, raw("foreign", 4, owner="elsewhere"))
    store.replace_pods("job", [raw("pod", 8, owner="job")], 9)
    (gang,) = store.gangs("demo-1")
    assert [pod["metadata"]["resourceVersion"] for pod in gang.pods] == ["8"]
    assert store.count(Kind.POD) == 2


def ended(uid: str, version: int) -> Raw:
    """A pod of `job` with the state at its end."""
    state = {"terminated": {"exitCode": 75, "message": "saved"}}
    return raw(
        uid, version, "job", status={"containerStatuses": [{"name": "trainer", "state": state}]}
    )


def test_what_a_pod_said_at_its_end_outlives_it_but_not_its_job() -> None:
    store = filled()
    store.put(Kind.POD, raw("alive", 4, owner="job"))
    assert store.remove(Kind.POD, ended("pod", 6)) == KEY
    assert store.remove(Kind.POD, raw("alive", 7, owner="job")) == KEY
    (gang,) = store.gangs("demo-1")
    assert [pod["metadata"]["uid"] for pod in gang.pods] == ["pod"]
    store.remove(Kind.JOB, raw("job", 8, owner="demo-1"))
    store.put(Kind.JOB, raw("job-2", 9, owner="demo-1"))
    assert [gang.pods for gang in store.gangs("demo-1")] == [()]


def test_a_list_that_lacks_an_ended_pod_leaves_what_it_said() -> None:
    store = filled()
    store.put(Kind.POD, ended("pod", 6))
    store.replace_pods("job", [], 9)
    (gang,) = store.gangs("demo-1")
    assert [pod["metadata"]["uid"] for pod in gang.pods] == ["pod"]
    assert store.count(Kind.POD) == 0


def test_a_deletion_that_a_list_told_before_still_tells_how_a_pod_ended() -> None:
    store = filled()
    store.replace_pods("job", [], 9)
    assert store.gangs("demo-1")[0].pods == ()
    assert store.remove(Kind.POD, ended("pod", 8)) == KEY
    (gang,) = store.gangs("demo-1")
    assert [pod["metadata"]["uid"] for pod in gang.pods] == ["pod"]


def test_the_version_that_we_wrote_last_is_known() -> None:
    store = filled()
    store.put_own(Kind.RLHFJOB, demo(7))
    assert store.is_own(demo(7))
    assert not store.is_own(demo(8))
    store.remove(Kind.RLHFJOB, demo(9))
    assert not store.is_own(demo(7))


def test_the_answer_about_a_job_that_was_forgotten_does_not_bring_it_back() -> None:
    store = filled()
    store.forget("team")
    store.put_own(Kind.RLHFJOB, demo(7))
    # A pass over it would find its attempts gone.
    assert store.job(KEY) is None


def test_nothing_is_kept_of_writes_to_jobs_that_are_gone() -> None:
    store = filled()
    store.put_own(Kind.RLHFJOB, demo(7))
    store.put(Kind.RLHFJOB, demo(9, "demo-2"))
    store.put_own(Kind.RLHFJOB, demo(10, "demo-2"))
    store.put_own(Kind.RLHFJOB, demo(8))
    assert list(store._own) == ["demo-2"]
    store.forget("team")
    assert not store._own


@settings(max_examples=300)
@given(
    history=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=12),
    data=st.data(),
)
def test_any_order_of_events_and_lists_ends_as_the_cluster_is(
    history: list[str], data: st.DataObject
) -> None:
    """Each step creates, changes or deletes an object; each life of a name has a uid of its own."""
    states: list[dict[str, Raw]] = [{}]
    events: list[tuple[str, Raw]] = []
    lives = dict.fromkeys("abc", 0)
    for version, name in enumerate(history, start=1):
        state = dict(states[-1])
        if name in state and data.draw(st.booleans()):
            events.append(("DELETED", raw(state.pop(name)["metadata"]["uid"], version, name=name)))
        else:
            lives[name] += name not in state
            state[name] = raw(f"{name}{lives[name]}", version, name=name)
            events.append(("MODIFIED", state[name]))
        states.append(state)
    store = Store()
    for _, told in data.draw(st.permutations(list(enumerate(events)))):
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(history)))
            store.replace(Kind.RLHFJOB, "team", states[at].values(), at)
        put = store.remove if told[0] == "DELETED" else store.put
        put(Kind.RLHFJOB, told[1])
    store.replace(Kind.RLHFJOB, "team", states[-1].values(), len(history))
    found = {name: store.job(("team", name)) for _, name in list(store.keys())}
    versions = {n: r["metadata"]["resourceVersion"] for n, r in found.items() if r is not None}
    assert versions == {n: r["metadata"]["resourceVersion"] for n, r in states[-1].items()}


def test_what_is_forgotten_comes_back_by_the_same_version() -> None:
    store = filled()
    elsewhere = raw("there", 4, name="there")
    elsewhere["metadata"]["namespace"] = "other"
    store.put(Kind.RLHFJOB, elsewhere)
    assert store.forget("team") == [KEY]
    assert store.job(KEY) is None
    assert store.keys() == [("other", "there")]
    assert [store.count(kind) for kind in Kind] == [1, 0, 0]
    assert store.put(Kind.RLHFJOB, demo(1)) == KEY
    assert store.put(Kind.JOB, raw("job", 2, owner="demo-1")) == KEY
    (gang,) = store.gangs("demo-1")
    assert gang.job["metadata"]["uid"] == "job"


def test_a_deletion_is_remembered_beyond_what_is_forgotten() -> None:
    store = filled()
    store.remove(Kind.POD, raw("pod", 4, owner="job"))
    store.forget("")
    assert store.put(Kind.POD, raw("pod", 3, owner="job")) is None
    assert store.count(Kind.POD) == 0
