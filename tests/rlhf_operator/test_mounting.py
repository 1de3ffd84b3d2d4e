"""What keeps a pod on its node from its start: who is asked about, and what Events say of it."""

from dataclasses import replace
from typing import Any

import pytest
from raw_gangs import Raw, at, ended, make_job, make_pod, one, ready, seen

from rlhf_api.names import Reason
from rlhf_operator.mounting import before_start, hindered_pod, in_turn

CREATING = {"waiting": {"reason": "ContainerCreating"}}
MISSING = 'MountVolume.SetUp failed for volume "token" : secret "hf" not found'
SUMMARY = "Unable to attach or mount volumes: unmounted volumes=[token], unattached volumes=[]"


def waiting(index: int = 0, state: Raw = CREATING, **more: Any) -> Raw:
    pod = make_pod(index, "Pending", state=state, **more)
    # No other container has begun either.
    pod["status"]["containerStatuses"][0]["state"] = {"waiting": {"reason": "ContainerCreating"}}
    return pod


def asked(*pods: Raw) -> list[str]:
    found = before_start(seen(make_job(), *pods).processes, pods[::-1])
    return [pod["metadata"]["name"] for pod in found]


def startable(value: str) -> list[Raw]:
    return [ready(False), {"type": "PodReadyToStartContainers", "status": value}]


def without_node() -> Raw:
    pod = waiting()
    del pod["spec"]["nodeName"]
    return pod


def untold() -> Raw:
    pod = waiting()
    del pod["status"]["containerStatuses"]
    return pod


@pytest.mark.parametrize(
    "pod",
    [
        waiting(),
        waiting(state={"waiting": {"reason": "PodInitializing"}}),
        waiting(conditions=startable("False")),
        untold(),
    ],
)
def test_a_pod_that_waits_on_its_node_is_asked_about(pod: Raw) -> None:
    assert asked(pod) == ["demo-sft-3-0-x"]


@pytest.mark.parametrize(
    "pod",
    [
        without_node(),
        # Its volumes are there: it pulls an image.
        waiting(conditions=startable("True")),
        waiting(state={"waiting": {"reason": "ImagePullBackOff"}}),
        # A container before the trainer runs.
        make_pod(0, "Pending", state={"waiting": {"reason": "PodInitializing"}}),
        make_pod(),
        make_pod(0, "Failed", state=ended(1)),
        waiting(metadata={"deletionTimestamp": at(3)}),
    ],
)
def test_a_pod_that_is_further_or_says_itself_what_for_is_not(pod: Raw) -> None:
    assert asked(pod) == []


def test_those_of_a_gang_are_asked_about_unless_another_says_what_it_waits_for() -> None:
    assert asked(make_pod(0), waiting(1), waiting(2)) == ["demo-sft-3-1-x", "demo-sft-3-2-x"]
    pulls = waiting(2, state={"waiting": {"reason": "ImagePullBackOff"}})
    assert asked(waiting(1), pulls) == []


@pytest.mark.parametrize(
    ("last", "reason", "order"),
    [
        (None, None, [0, 1, 2]),
        (0, None, [1, 2, 0]),
        (1, Reason.VOLUME_NOT_MOUNTED, [1, 2, 0]),
        (2, None, [0, 1, 2]),
        (7, Reason.VOLUME_NOT_MOUNTED, [0, 1, 2]),
    ],
)
def test_pods_are_asked_about_in_turn_and_the_one_with_a_cause_again(
    last: int | None, reason: Reason | None, order: list[int]
) -> None:
    known = None if last is None else replace(one(waiting(last)), reason=reason)
    found = in_turn([waiting(0), waiting(1), waiting(2)], known)
    assert [pod["metadata"]["name"] for pod in found] == [f"demo-sft-3-{i}-x" for i in order]


def event(reason: str, message: str = "", ago: float = 30) -> Raw:
    return {"reason": reason, "message": message, "lastTimestamp": at(ago)}


@pytest.mark.parametrize(
    ("events", "reason", "said"),
    [
        ([event("FailedMount", MISSING)], Reason.VOLUME_NOT_MOUNTED, f"FailedMount: {MISSING}; cr"),
        # The kubelet repeats that it waits, and says less by that.
        (
            [event("FailedMount", MISSING, 90), event("FailedMount", SUMMARY, 5)],
            Reason.VOLUME_NOT_MOUNTED,
            MISSING,
        ),
        (
            [
                event("FailedAttachVolume", "Multi-Attach error for volume", 90),
                event("FailedMount", SUMMARY, 5),
            ],
            Reason.VOLUME_NOT_MOUNTED,
            "FailedAttachVolume: Multi-Attach error for volume; ",
        ),
        (
            [event("FailedMount", "new", 5), event("FailedMount", "old", 50)],
            Reason.VOLUME_NOT_MOUNTED,
            "FailedMount: new; ",
        ),
        (
            [event("FailedCreatePodSandBox", "failed to set up network for sandbox 0a1b2c3d4e5f")],
            Reason.CONTAINER_NOT_STARTED,
            "network for sandbox ...; correct the node's network",
        ),
        # Once it is attached, that it could not be attached is over.
        (
            [event("FailedAttachVolume", "a", 50), event("SuccessfulAttachVolume", "b", 50)],
            None,
            "",
        ),
        (
            [event("FailedMount", "a", 50), event("SuccessfulAttachVolume", "b", 40)],
            Reason.VOLUME_NOT_MOUNTED,
            "FailedMount: a; ",
        ),
        ([event("FailedMount", MISSING, 50), event("Pulling", "image", 40)], None, ""),
        ([event("Pulling", "x", 50), event("FailedMount", "y", 40)], Reason.VOLUME_NOT_MOUNTED, ""),
        ([event("Scheduled"), {"reason": "Unhealthy"}, {}], None, ""),
        ([], None, ""),
    ],
)
def test_what_the_events_of_a_pod_tell(events: list[Raw], reason: Reason | None, said: str) -> None:
    process = one(waiting())
    for order in (events, events[::-1]):
        found = hindered_pod(process, order)
        assert (found.reason, found.name) == (reason, process.name)
        assert said in found.message
        assert bool(found.message) == (reason is not None)
