"""When a process runs, and when its node is silent, where others keep its pod from being ready."""

from typing import Any

import pytest
from raw_gangs import NOW, Raw, look, make_job, make_pod, one, ready

from rlhf_operator.fields import trimmed

CONTAINERS_READY = ready(True, since=100) | {"type": "ContainersReady"}
CONTAINERS_UNREADY = ready(False, since=100) | {"type": "ContainersReady"}
GATED = ready(False, since=100) | {"reason": "ReadinessGatesNotReady"}


def kept(pod: Raw, **trainer: Any) -> Raw:
    """The pod as the store keeps it, with more that its trainer's container says."""
    pod["metadata"] |= {"namespace": "team", "uid": "pod", "resourceVersion": "1"}
    pod["status"]["containerStatuses"][1] |= trainer
    return trimmed("pods", pod)


def test_a_container_that_is_not_ready_is_no_silent_node() -> None:
    """An injected one may take its time; the kubelet tells of it in both conditions."""
    unready = ready(False, since=100)
    assert not one(make_pod(conditions=[unready, CONTAINERS_UNREADY])).lost
    assert one(make_pod(conditions=[unready, CONTAINERS_READY])).lost


def test_a_gate_that_keeps_a_pod_from_being_ready_is_no_silent_node() -> None:
    found = look(make_job(), kept(make_pod(conditions=[GATED, CONTAINERS_READY]), ready=True))
    (process,) = found.attempt.processes
    assert (process.ready, process.lost, process.disrupted) == (True, False, False)
    assert found.look_at is None


@pytest.mark.parametrize("told", [{"ready": True}, {}])
def test_a_sidecar_that_is_never_ready_keeps_no_trainer_from_running(told: Raw) -> None:
    conditions = [ready(False, since=100) | {"reason": "ContainersNotReady"}, CONTAINERS_UNREADY]
    pod = kept(make_pod(conditions=conditions), **told)
    assert look(make_job(), pod, now=NOW).attempt.ready


@pytest.mark.parametrize(
    "pod",
    [
        kept(make_pod(conditions=[GATED, CONTAINERS_READY]), ready=False),
        kept(make_pod(phase="Pending", conditions=[ready(True)], state={"waiting": {}})),
        # A node that may be lost: nobody knows yet.
        kept(make_pod(conditions=[ready(False, since=10), CONTAINERS_READY]), ready=True),
        kept(make_pod(metadata={"deletionTimestamp": "2026-01-01T11:59:00Z"}), ready=True),
    ],
)
def test_a_process_that_does_not_run(pod: Raw) -> None:
    assert not one(pod).ready
