"""Pods in which an injected container runs on when the trainer has ended, as they are read."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rlhf_operator.observe import SeenAttempt, seen_attempts
from rlhf_operator.planning.failures import judge
from rlhf_operator.planning.observed import ProcessPhase
from rlhf_operator.store import Gang

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
RUNS = {"running": {}}
PULLS = {"waiting": {"reason": "ImagePullBackOff"}}
OVER = {"terminated": {"exitCode": 0}}
DIED = {"terminated": {"exitCode": 9, "message": "no route"}}
FAILED = {"conditions": ("FailureTarget", "Failed")}

Raw = dict[str, Any]


def at(seconds: float) -> str:
    """A time `seconds` before now."""
    return (NOW - timedelta(seconds=seconds)).isoformat()


def pod(index: int, trainer: Raw, beside: Raw | None, phase: str = "Running", **more: Any) -> Raw:
    """A pod with a proxy before the trainer, unless `beside` is None."""
    containers = [{"name": "proxy", "image": "p", "state": beside}] if beside is not None else []
    containers += [{"name": "trainer", "image": "t", "state": trainer}]
    metadata = {
        "name": f"demo-sft-1-{index}-x7k2p",
        "creationTimestamp": at(100),
        "annotations": {"batch.kubernetes.io/job-completion-index": str(index)},
    }
    return {
        "metadata": metadata | more,
        "spec": {"nodeName": "node"},
        "status": {"phase": phase, "conditions": [], "containerStatuses": containers},
    }


def ended(code: int, ago: float | None = 30) -> Raw:
    finished = {} if ago is None else {"finishedAt": at(ago)}
    return {"terminated": {"exitCode": code, "message": ""} | finished}


def seen(*pods: Raw, conditions: tuple[str, ...] = (), **more: Any) -> SeenAttempt:
    metadata = {
        "name": "demo-sft-1",
        "namespace": "team",
        "uid": "job",
        "labels": {"rlhf.dev/stage": "sft", "rlhf.dev/attempt": "1"},
        "creationTimestamp": at(110),
    }
    found = [{"type": c, "status": "True", "lastTransitionTime": at(5)} for c in conditions]
    job = {
        "metadata": metadata | more,
        "spec": {"parallelism": 2},
        "status": {"conditions": found},
    }
    (attempt,) = seen_attempts("demo", [Gang(job, pods)], NOW)
    return attempt


@pytest.mark.parametrize("beside", [RUNS, PULLS, {}])
def test_trainers_that_are_done_complete_the_attempt_though_others_run_on(beside: Raw) -> None:
    found = seen(pod(0, ended(0), beside), pod(1, ended(0), beside)).attempt
    assert found.complete
    assert {each.phase for each in found.processes} == {ProcessPhase.SUCCEEDED}
    assert (found.live, found.occupied, found.beside) == (False, True, ("proxy",))
    assert not found.stopping


@pytest.mark.parametrize(
    ("pods", "more"),
    [
        # One of the gang is not there, still trains, or ended otherwise.
        ([pod(0, ended(0), RUNS)], {}),
        ([pod(0, ended(0), RUNS), pod(1, RUNS, RUNS)], {}),
        ([pod(0, ended(0), RUNS), pod(1, ended(1), RUNS)], {}),
        # The Job controller is the one to say so where nothing runs on.
        ([pod(0, ended(0), OVER), pod(1, ended(0), OVER)], {}),
        ([pod(0, ended(0), None, "Succeeded"), pod(1, ended(0), None, "Succeeded")], {}),
        # Somebody has given the Job up.
        ([pod(0, ended(0), RUNS), pod(1, ended(0), RUNS)], {"deletionTimestamp": at(3)}),
        # What failed beside one trainer has ended another.
        ([pod(0, ended(0), DIED, "Failed"), pod(1, ended(75), DIED, "Failed")], FAILED),
        ([pod(0, ended(0), DIED, "Failed"), pod(1, RUNS, RUNS)], FAILED),
        ([pod(0, ended(0), DIED, "Failed")], FAILED),
    ],
)
def test_what_is_not_complete(pods: list[Raw], more: dict[str, Any]) -> None:
    assert not seen(*pods, **more).attempt.complete


@pytest.mark.parametrize("conditions", [(), ("FailureTarget",), ("FailureTarget", "Failed")])
@pytest.mark.parametrize(
    ("other", "more"),
    [
        (pod(1, ended(0), DIED, "Failed"), {}),
        (pod(1, ended(0), OVER, "Succeeded"), {}),
        # It ended a moment ago, and its proxy may still end by itself.
        (pod(1, ended(0, 1), RUNS), {"beside": ("proxy",)}),
        # The Job controller ends it, too.
        (pod(1, ended(0), RUNS, deletionTimestamp=at(2)), {"beside": ("proxy",)}),
        (pod(1, ended(0), RUNS, deletionTimestamp=at(60)), {}),
    ],
)
def test_trainers_that_are_done_complete_the_attempt_though_others_failed(
    other: Raw, more: dict[str, Any], conditions: tuple[str, ...]
) -> None:
    """The batch Job has failed, or is about to, and is never complete."""
    found = seen(pod(0, ended(0), DIED, "Failed"), other, conditions=conditions).attempt
    assert found.complete
    assert {each.phase for each in found.processes} == {ProcessPhase.SUCCEEDED}
    assert (found.live, found.beside) == (False, more.get("beside", ()))


def test_trainers_that_are_done_complete_the_attempt_though_it_was_evicted() -> None:
    evicted = pod(0, ended(0), DIED, "Failed")
    evicted["status"] |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
    found = seen(evicted, pod(1, ended(0), DIED, "Failed"), conditions=("Failed",)).attempt
    assert found.complete


def test_a_pod_that_is_over_is_done_beside_one_in_which_others_run_on() -> None:
    found = seen(pod(0, ended(0), None, "Succeeded"), pod(1, ended(0), RUNS)).attempt
    assert found.complete
    assert found.beside == ("proxy",)


def test_what_was_injected_has_time_to_end_by_itself() -> None:
    gang = seen(pod(0, ended(0, 30), RUNS), pod(1, ended(0, 4), RUNS))
    assert not gang.attempt.complete
    assert gang.attempt.live
    assert gang.look_at == NOW + timedelta(seconds=6)
    untimed = seen(pod(0, ended(0, None), RUNS), pod(1, ended(0, None), RUNS))
    assert untimed.attempt.complete


@pytest.mark.parametrize("code", [1, 42, 65, 75])
def test_a_trainer_that_failed_has_failed_though_others_run_on(code: int) -> None:
    found = seen(pod(0, ended(code), RUNS), pod(1, ended(0), RUNS)).attempt
    assert [each.phase for each in found.processes] == [ProcessPhase.FAILED, ProcessPhase.SUCCEEDED]
    verdict = judge(found, NOW)
    assert verdict is not None
    assert found.occupied


def test_an_attempt_is_occupied_until_its_pods_are_gone() -> None:
    going = seen(
        pod(0, ended(0), RUNS, deletionTimestamp=at(2)),
        pod(1, ended(0), RUNS, deletionTimestamp=at(2)),
        deletionTimestamp=at(3),
    ).attempt
    assert (going.occupied, going.stopping) == (True, True)
    gone = seen(pod(0, ended(0), OVER, "Succeeded"), pod(1, ended(0), OVER, "Succeeded")).attempt
    assert not gone.occupied


def test_a_pod_of_a_lost_node_keeps_no_place() -> None:
    """Nobody can say that it ended, and its names are the attempt's own."""
    lost = pod(0, ended(0), RUNS, deletionTimestamp=at(60))
    found = seen(lost, pod(1, ended(1), OVER, "Failed")).attempt
    assert not found.occupied
