"""What Jobs and Pods show of an attempt whose Job is suspended from outside while it runs."""

from typing import Any

import pytest
from raw_gangs import NOW, Raw, at, ended, job_document, look, make_job, make_pod, seen

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.fields import trimmed
from rlhf_operator.observe import lacks_pods, pods_by_index, without_taken_away
from rlhf_operator.planning.failures import judge
from rlhf_operator.store import Gang

QUEUE = {"kueue.x-k8s.io/queue-name": "team"}


def suspended(status: str | None = "True", *conditions: str, since: float = 40, **more: Any) -> Raw:
    """A Job that is suspended, or was: `status` of its condition, which turned so long ago."""
    job = make_job(conditions, **({"spec": {"suspend": status != "False"}} | more))
    if status is not None:
        turned = {"type": "Suspended", "status": status, "lastTransitionTime": at(since)}
        job["status"]["conditions"].append(turned)
    return job


def leaving(asked: float = 40, phase: str = "Running", code: int | None = None, **more: Any) -> Raw:
    """A pod that was to end so many seconds ago, within a grace period of 300 s."""
    metadata = {"deletionTimestamp": at(asked - 300), "deletionGracePeriodSeconds": 300} | more
    state = {"state": ended(code)} if code is not None else {}
    return make_pod(phase=phase, metadata=metadata, **state)


SHOWN = {
    "nothing": (),
    "a pod that saves": (leaving(30),),
    "a pod that has saved": (leaving(30, phase="Failed", code=75),),
    "a pod that was killed": (leaving(30, phase="Failed", code=137),),
    "a pod that nobody has asked yet": (make_pod(),),
    "a pod of which the Job controller has not spoken": (make_pod(phase="Failed", state=ended(1)),),
}


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("status", ["True", "False"])
def test_how_the_pods_of_a_suspended_job_end_is_no_verdict(shown: str, status: str) -> None:
    """Whether or not the controller has said that it is suspended."""
    job = suspended(status, spec={"suspend": True}, labels=QUEUE)
    found = seen(job, *SHOWN[shown])
    assert judge(found, NOW) is None
    assert (found.live, found.ready, found.failed) == (True, False, False)
    first, *others = found.processes
    stays = shown == "a pod that nobody has asked yet"
    assert [process.name for process in others] == (["demo-sft-3-0-x"] if stays else [])
    assert (first.reason, first.message) == (Reason.QUEUED, "Job demo-sft-3 waits in queue team")
    assert found.held_since == (NOW if status == "False" else look(job).attempt.held_since)


def test_a_job_without_queue_is_told_how_to_go_on() -> None:
    message = seen(suspended()).processes[0].message
    expected = "Job demo-sft-3 was suspended from outside; set its spec.suspend to false"
    assert message == expected


@pytest.mark.parametrize("shown", ["a pod that has saved", "a pod that was killed"])
def test_a_job_that_fails_while_it_is_suspended_is_disrupted(shown: str) -> None:
    verdict = judge(seen(suspended("True", "Failed"), *SHOWN[shown]), NOW)
    assert verdict is not None
    assert verdict.reason is Reason.JOB_SUSPENDED


@pytest.mark.parametrize("shown", ["nothing", "a pod that saves", "a pod that has saved"])
def test_a_job_whose_parallelism_is_0_is_held_back(shown: str) -> None:
    job = make_job(spec={"parallelism": 0, "completions": 2})
    found = seen(job, *SHOWN[shown])
    assert (found.held_since, found.released_at, found.ready) == (NOW, None, False)
    (process,) = found.processes
    assert process.reason is Reason.QUEUED
    assert process.message == (
        "Job demo-sft-3 is held back by its spec.parallelism of 0; set it to 2 again"
    )
    assert not lacks_pods(Gang(job, ()))
    assert judge(found, NOW) is None
    again = make_job(spec={"parallelism": 2, "completions": 2})
    assert seen(again, make_pod(), make_pod(1)).held_since is None


def test_a_gang_whose_parallelism_was_lowered_lacks_pods() -> None:
    assert lacks_pods(Gang(make_job(spec={"parallelism": 1, "completions": 2}), (make_pod(),)))


@pytest.mark.parametrize(
    ("pod", "counts"),
    [
        (leaving(asked=41, phase="Failed", code=75), False),
        (leaving(asked=40, phase="Failed", code=75), False),
        # Kubectl, a drain: after it was let run.
        (leaving(asked=39, phase="Failed", code=75), True),
        # The last word of the kubelet.
        (
            leaving(41, "Failed", 75, deletionTimestamp=at(41), deletionGracePeriodSeconds=0),
            False,
        ),
        (leaving(asked=60, phase="Succeeded", code=0), True),
        (make_pod(phase="Failed", state=ended(1)), True),
    ],
)
def test_what_ended_before_the_job_was_let_run_again_does_not_count(pod: Raw, counts: bool) -> None:
    job = suspended("False")
    gang = Gang(job, (trimmed("pods", pod),))
    assert (bool(pods_by_index(gang)), lacks_pods(gang)) == (counts, not counts)
    assert bool(seen(job, pod).processes) is counts


def test_the_pods_of_the_next_run_stand_for_the_attempt() -> None:
    before = leaving(asked=60, phase="Running")
    after = make_pod(metadata={"name": "next", "creationTimestamp": at(30)})
    found = seen(suspended("False"), before, after)
    assert [process.name for process in found.processes] == ["next"]
    assert found.ready


@pytest.mark.parametrize(
    "job", [suspended("False", deletionTimestamp=at(5)), suspended("False", "Failed")]
)
def test_all_pods_of_a_job_that_is_over_or_deleted_count(job: Raw) -> None:
    assert len(seen(job, leaving(asked=60)).processes) == 1


def test_a_suspended_job_that_is_being_deleted_is_asked_once() -> None:
    assert seen(suspended(deletionTimestamp=at(5))).stopping
    assert not seen(suspended()).stopping


def demo(**stage: Any) -> RLHFJob:
    """The job whose attempt 3 of stage sft is looked at."""
    status = {"state": "Starting", "attempt": 3, "reason": "Queued"} | stage
    return RLHFJob.from_document(job_document(**status))


LET_RUN = make_job(spec={"parallelism": 1, "completions": 1})
LEFT = {
    "it is let run": (LET_RUN, {"idleSince": at(60)}, 0),
    "it was let run since": (LET_RUN, {"state": "Running", "pendingSince": at(20)}, 0),
    "it was let run before": (LET_RUN, {"state": "Running", "pendingSince": at(50)}, 1),
    "it was never held": (LET_RUN, {"state": "Running", "reason": "PodsReady"}, 1),
    "another attempt was": (LET_RUN, {"attempt": 2, "idleSince": at(60)}, 1),
    "it has failed": (make_job(("Failed",)), {"idleSince": at(60)}, 1),
}


@pytest.mark.parametrize("case", LEFT)
@pytest.mark.parametrize("code", [None, 75, 137])
def test_pods_that_parallelism_took_away_are_known_by_the_status(
    case: str, code: int | None
) -> None:
    job, status, count = LEFT[case]
    phase = "Running" if code is None else "Failed"
    gang = without_taken_away(demo(**status), Gang(job, (leaving(40, phase, code),)), NOW)
    assert len(gang.pods) == count
    done = without_taken_away(demo(**status), Gang(job, (leaving(40, "Succeeded", 0),)), NOW)
    assert len(done.pods) == 1
    fresh = without_taken_away(demo(**status), Gang(job, (make_pod(),)), NOW)
    assert len(fresh.pods) == 1
