"""From Jobs and Pods as the API server gives them to what `plan` looks at."""

import json
from datetime import timedelta
from typing import Any

import pytest
from raw_gangs import NOW, Raw, at, ended, look, make_job, make_pod, one, ready, seen

from rlhf_api.names import CONTRACT_VERSION, Reason, StageName
from rlhf_api.v1alpha1.status import MAX_COUNT
from rlhf_operator.observe import (
    NODE_SILENCE,
    has_unseen_pods,
    lacks_pods,
    refused_pod,
    seen_attempts,
    vanished_pod,
)
from rlhf_operator.planning.failures import judge
from rlhf_operator.planning.observed import ProcessPhase
from rlhf_operator.store import Gang


@pytest.mark.parametrize(
    ("active", "pods", "unseen"),
    [
        (1, [], True),
        (None, [], False),
        (0, [], False),
        (1, [make_pod()], False),
        (2, [make_pod()], True),
        (1, [make_pod(phase="Failed")], True),
        (1, [make_pod(metadata={"deletionTimestamp": at(3)})], True),
        (2, [make_pod(), make_pod(1)], False),
    ],
)
def test_pods_that_their_job_counts_and_nobody_sees(
    active: int | None, pods: list[Raw], unseen: bool
) -> None:
    job = make_job(spec={"parallelism": 2})
    job["status"]["active"] = active
    assert has_unseen_pods(Gang(job, tuple(pods))) is unseen
    ended = make_job(("Failed",), spec={"parallelism": 2})
    ended["status"]["active"] = active
    assert not has_unseen_pods(Gang(ended, tuple(pods)))


def test_an_attempt_that_runs() -> None:
    found = seen(make_job(spec={"parallelism": 2}), make_pod(0), make_pod(1))
    assert (found.stage, found.attempt, found.checkpoint_step) == (StageName.SFT, 3, 40)
    assert found.ready
    assert found.live
    assert [process.index for process in found.processes] == [0, 1]
    assert not found.complete
    assert not found.failed


@pytest.mark.parametrize(
    "labels",
    [
        None,
        {},
        {"rlhf.dev/stage": "sft"},
        {"rlhf.dev/stage": "other", "rlhf.dev/attempt": "x"},
        {"rlhf.dev/stage": "reward", "rlhf.dev/attempt": "9" * 5000},
    ],
)
def test_the_name_says_which_attempt_a_job_is_whatever_its_labels(labels: Raw | None) -> None:
    job = make_job()
    del job["metadata"]["labels"]
    job["metadata"] |= {} if labels is None else {"labels": labels}
    found = seen(job, make_pod())
    assert (found.stage, found.attempt, found.ready) == (StageName.SFT, 3, True)
    held = seen(job | {"spec": {"suspend": True}})
    assert held.processes[0].reason is Reason.QUEUED


@pytest.mark.parametrize(
    "name",
    [
        "demo",
        "demo-sft",
        "demo-sft-0",
        "demo-sft-x",
        "other-sft-1",
        "demo-dpo-1",
        "demo-sft-1-copy",
    ],
)
def test_a_job_whose_name_is_of_no_attempt_is_left_out(name: str) -> None:
    assert seen_attempts("demo", [Gang(make_job(name=name), ())], NOW) == []


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "9" * 5000])
def test_a_checkpoint_step_that_cannot_be_read_makes_a_restart_count(text: str) -> None:
    job = make_job()
    job["metadata"]["annotations"]["rlhf.dev/checkpoint-step"] = text
    assert seen(job).checkpoint_step == MAX_COUNT


def test_a_failed_job_may_not_say_since_when() -> None:
    job = make_job(("Failed",))
    del job["status"]["conditions"][0]["lastTransitionTime"]
    assert (seen(job).failed, seen(job).killed_at) == (True, None)


def test_the_guardrails_that_an_attempt_was_started_with() -> None:
    job = make_job()
    assert seen(job).guardrails is None
    job["metadata"]["annotations"]["rlhf.dev/guardrails"] = "abc"
    assert seen(job).guardrails == "abc"


def test_the_newest_pod_of_an_index_counts() -> None:
    old = make_pod(phase="Failed", state=ended(1), metadata={"name": "old"})
    new = make_pod(metadata={"name": "new", "creationTimestamp": at(1)})
    assert one(new).name == "new"
    (found,) = seen(make_job(), new, old).processes
    assert found.name == "new"


@pytest.mark.parametrize(
    ("conditions", "complete", "failed"),
    [((), False, False), (("Complete",), True, False), (("FailureTarget",), False, True)],
)
def test_what_the_job_says(conditions: tuple[str, ...], complete: bool, failed: bool) -> None:
    found = seen(make_job(conditions))
    assert (found.complete, found.failed) == (complete, failed)
    assert (found.killed_at is not None) == failed


def test_a_job_that_is_deleted_stops_its_pods_and_lives_no_longer_than_they() -> None:
    job = make_job(deletionTimestamp=at(3))
    assert seen(job, make_pod()).stopping
    assert not seen(job).live


def test_a_pod_of_a_silent_node_is_lost_at_a_time_that_stands_still() -> None:
    for pod in (
        make_pod(conditions=[ready(False, since=31)]),
        make_pod(metadata={"deletionTimestamp": at(31)}),
    ):
        found = one(pod)
        assert (found.lost, found.disrupted, found.ended) == (True, True, True)
        assert found.finished_at == NOW - timedelta(seconds=31)
        assert "does not answer" in found.message
    assert not one(make_pod(conditions=[ready(False, since=10)])).lost
    assert not one(make_pod(metadata={"deletionTimestamp": at(10)})).lost


@pytest.mark.parametrize(
    "pod",
    [
        make_pod(conditions=[ready(False, since=10)]),
        make_pod(metadata={"deletionTimestamp": at(10)}),
    ],
)
def test_a_pod_that_is_silent_is_looked_at_when_it_will_be_lost(pod: Raw) -> None:
    found = look(make_job(), pod)
    assert found.look_at == NOW - timedelta(seconds=10) + NODE_SILENCE
    later = look(make_job(), pod, now=found.look_at)
    assert later.attempt.processes[0].lost
    assert later.look_at is None
    assert look(make_job(), make_pod()).look_at is None


def test_a_lost_pod_beside_one_that_hangs_is_judged() -> None:
    silent = make_pod(1, conditions=[ready(False, since=41)])
    verdict = judge(seen(make_job(), make_pod(0), silent), NOW)
    assert verdict is not None
    assert verdict.reason is Reason.NODE_LOST


def test_a_disruption_is_told_by_whoever_caused_it() -> None:
    target = {"type": "DisruptionTarget", "status": "True", "message": "preempted by a"}
    found = one(make_pod(phase="Failed", state=ended(143), conditions=[target]))
    assert found.disrupted
    assert "preempted by a" in found.message
    assert found.exit_code == 143


def test_out_of_memory_has_a_remedy() -> None:
    found = one(make_pod(phase="Failed", state=ended(137, "OOMKilled")))
    assert found.reason is Reason.OUT_OF_MEMORY
    assert "raise resources.limits.memory" in found.message


def test_a_result_is_read_and_one_of_another_release_named() -> None:
    document = {
        "contractVersion": CONTRACT_VERSION,
        "stage": "sft",
        "attempt": 3,
        "configDigest": "sha256:" + "a" * 64,
        "exitCode": 65,
        "reason": "DataError",
        "message": "rows.jsonl:3",
    }
    found = one(make_pod(phase="Failed", state=ended(65, message=json.dumps(document))))
    assert found.result is not None
    assert found.result.message == "rows.jsonl:3"
    newer = json.dumps(document | {"contractVersion": CONTRACT_VERSION + 1, "more": 1})
    told = one(make_pod(phase="Failed", state=ended(65, message=newer)))
    assert (told.result, told.reason) == (None, Reason.CONTRACT_VERSION)
    assert f"contractVersion is {CONTRACT_VERSION + 1}" in told.message
    assert one(make_pod(phase="Failed", state=ended(1, message="Traceback"))).result is None


@pytest.mark.parametrize(
    ("pod", "reason", "words"),
    [
        (
            make_pod(phase="Pending", state={"waiting": {"reason": "ImagePullBackOff"}}),
            Reason.IMAGE_PULL,
            "image i:1 cannot be pulled",
        ),
        (
            make_pod(
                phase="Pending",
                state={
                    "waiting": {
                        "reason": "CreateContainerConfigError",
                        "message": 'secret "s" not found',
                    }
                },
            ),
            Reason.CONTAINER_CONFIG,
            'secret "s" not found',
        ),
        (
            make_pod(
                phase="Pending",
                conditions=[
                    {
                        "type": "PodScheduled",
                        "status": "False",
                        "reason": "Unschedulable",
                        "message": "0/2 nodes\n are available",
                    }
                ],
            ),
            Reason.UNSCHEDULABLE,
            "0/2 nodes are available",
        ),
    ],
)
def test_why_a_pod_waits(pod: Raw, reason: Reason, words: str) -> None:
    found = one(pod)
    assert found.phase is ProcessPhase.PENDING
    assert found.reason is reason
    assert words in found.message


def test_kueue_holds_a_job_back_or_preempts_it() -> None:
    waiting = seen(make_job(spec={"suspend": True}))
    assert waiting.processes[0].reason is Reason.QUEUED
    assert waiting.live
    preempted = seen(make_job(("Failed",), spec={"suspend": True}))
    verdict = judge(preempted, NOW)
    assert verdict is not None
    assert verdict.reason is Reason.JOB_SUSPENDED


def test_pods_that_cannot_be_made_are_told_without_their_names() -> None:
    job = make_job()
    assert lacks_pods(Gang(job, ()))
    assert not lacks_pods(Gang(job, (make_pod(),)))
    for other in (
        make_job(("Failed",)),
        make_job(spec={"suspend": True}),
        make_job(deletionTimestamp=at(1)),
    ):
        assert not lacks_pods(Gang(other, ()))
    event = {
        "lastTimestamp": at(1),
        "message": 'pods "demo-sft-3-0-abc" is forbidden: exceeded quota: q',
    }
    found = refused_pod(job, [event])
    assert found.reason is Reason.QUOTA_EXCEEDED
    assert found.message == (
        "Job demo-sft-3: pods are forbidden: exceeded quota: q; free or raise the quota"
    )
    assert refused_pod(job, []).reason is None
    texts = {
        refused_pod(job, [event | {"message": f"webhook: trace {trace}"}]).message
        for trace in ("6b1f0c9e8a52", "7c2f1d0f9b63")
    }
    assert texts == {"Job demo-sft-3: webhook: trace ...; it is tried again"}


@pytest.mark.parametrize(
    ("condition", "held", "released"),
    [
        ({"status": "True"}, NOW - timedelta(seconds=40), None),
        (None, NOW - timedelta(seconds=110), None),  # held since it was made
    ],
)
def test_since_when_a_job_is_held_back(condition: Raw | None, held: Any, released: Any) -> None:
    job = make_job(spec={"suspend": True})
    if condition is not None:
        turned = {"type": "Suspended", "lastTransitionTime": at(40)} | condition
        job["status"]["conditions"] = [turned]
    assert (seen(job).held_since, seen(job).released_at) == (held, released)


def test_a_job_is_held_until_its_controller_says_since_when_it_is_not() -> None:
    job = make_job(spec={"suspend": False})
    turned = {"type": "Suspended", "status": "True", "lastTransitionTime": at(40)}
    job["status"]["conditions"] = [turned]
    assert (seen(job).held_since, seen(job).released_at) == (NOW - timedelta(seconds=40), None)


def test_when_a_job_was_released() -> None:
    job = make_job()
    turned = {"type": "Suspended", "status": "False", "lastTransitionTime": at(40)}
    job["status"]["conditions"] = [turned]
    assert (seen(job).held_since, seen(job).released_at) == (None, NOW - timedelta(seconds=40))


YEARS = ["0000-01-01T00:00:00Z", "0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z"]
FAR_AHEAD = "9999-12-31T23:59:59Z"


@pytest.mark.parametrize("time", [*YEARS, FAR_AHEAD])
def test_a_time_that_nobody_can_have_told_is_none(time: str) -> None:
    """Whoever may write the status of a Job, a Pod or an Event may write any year into it."""
    for kind in ("Suspended", "Failed"):
        job = make_job()
        job["status"]["conditions"] = [{"type": kind, "status": "True", "lastTransitionTime": time}]
        found = seen(job)
        assert (found.held_since, found.released_at, found.killed_at) == (
            (NOW - timedelta(seconds=110)) if kind == "Suspended" else None,
            None,
            None,
        )
        job["status"]["conditions"][0]["status"] = "False"
        assert seen(job).released_at is None
    state = ended(1)
    state["terminated"]["finishedAt"] = time
    assert one(make_pod(phase="Failed", state=state)).finished_at is None
    unready = [ready(False) | {"lastTransitionTime": time}]
    assert not one(make_pod(conditions=unready)).lost
    for field in ("lastTimestamp", "eventTime"):
        told = {key: value for key, value in event("Evicted").items() if key != "lastTimestamp"}
        gone = vanished_pod("demo-sft-3", [told | {field: time}])
        assert gone is not None
        assert (gone.finished_at is None) == (time != FAR_AHEAD)


def event(reason: str, pod: str = "demo-sft-3-0-x7k2p", kind: str = "Normal") -> Raw:
    return {
        "involvedObject": {"kind": "Pod", "name": pod},
        "type": kind,
        "reason": reason,
        "message": "so it was",
        "lastTimestamp": at(50),
    }


def test_what_became_of_pods_that_are_gone() -> None:
    found = vanished_pod(
        "demo-sft-3", [event("TaintManagerEviction"), event("Unhealthy", kind="Warning")]
    )
    assert found is not None
    assert (found.disrupted, found.finished_at) == (True, NOW - timedelta(seconds=50))
    assert "TaintManagerEviction: so it was" in found.message
    crashed = vanished_pod("demo-sft-3", [event("BackOff", kind="Warning"), event("Started")])
    assert crashed is not None
    assert (crashed.disrupted, crashed.phase) == (False, ProcessPhase.FAILED)


def test_an_event_may_lack_reason_and_message() -> None:
    bare = event("", kind="Warning")
    del bare["reason"], bare["message"]
    assert vanished_pod("demo-sft-3", [bare]) is not None
    assert refused_pod(make_job(), [bare]).reason is Reason.API_ERROR


@pytest.mark.parametrize("pod", ["demo-sft-30-0-x7k2p", "other", "demo-sft-3-0"])
def test_events_of_other_pods_tell_nothing(pod: str) -> None:
    assert vanished_pod("demo-sft-3", [event("Evicted", pod)]) is None
    assert vanished_pod("demo-sft-3", [event("Started")]) is None
