"""What the scheduler, and who keeps a pod from it, say of a pod that has no node."""

import pytest
from raw_gangs import Raw, make_pod, one, ready

from rlhf_api.names import Reason
from rlhf_operator.fields import trimmed

BUSY = (
    "0/5 nodes are available: 3 Insufficient nvidia.com/gpu, 2 node(s) had untolerated taint "
    "{team: a, b}."
)
NO_VICTIMS = "0/5 nodes are available: 5 No preemption victims found for incoming pods."
FULL = "no node is available: Insufficient nvidia.com/gpu, "
FULL += "node(s) had untolerated taint {team: a, b}"


def waiting(reason: str, message: str, *gates: str) -> Raw:
    """A pod without a node, as it is kept in the store."""
    told = {"type": "PodScheduled", "status": "False", "reason": reason, "message": message}
    pod = make_pod(phase="Pending", conditions=[ready(False), told])
    pod["metadata"] |= {"namespace": "team", "uid": "pod", "resourceVersion": "1"}
    pod["status"] |= {"containerStatuses": []}
    pod["spec"] = {"schedulingGates": [{"name": gate} for gate in gates]} if gates else {}
    return trimmed("pods", pod)


@pytest.mark.parametrize(
    ("message", "causes"),
    [
        (BUSY, FULL),
        (f"{BUSY} preemption: {NO_VICTIMS}", FULL),
        (f"{BUSY} no new claims to deallocate, preemption: {NO_VICTIMS}", FULL),
        (f"{BUSY} no new claims to deallocate", FULL),
        # As a plug-in that is not the cluster's own may say before it.
        (f"{BUSY} no quota to borrow, preemption: not eligible", FULL),
        (
            "0/12 nodes are available: 1 node(s) had untolerated taint {team: a, b}, "
            "11 Insufficient nvidia.com/gpu.",
            FULL,
        ),
        ("0/2 nodes are available: 2 Insufficient cpu", "no node is available: Insufficient cpu"),
        ('persistentvolumeclaim "runs" not found\n', 'persistentvolumeclaim "runs" not found'),
        ('persistentvolumeclaim "runs"  not found', 'persistentvolumeclaim "runs" not found'),
    ],
)
def test_what_the_scheduler_counts_makes_no_other_words(message: str, causes: str) -> None:
    told = one(waiting("Unschedulable", message))
    assert told.reason is Reason.UNSCHEDULABLE
    assert told.message == f"pod demo-sft-3-0-x cannot be scheduled: {causes}"


def test_gates_that_keep_a_pod_from_the_scheduler_are_named() -> None:
    text = "Scheduling is blocked due to non-empty scheduling gates"
    told = one(
        waiting("SchedulingGated", text, "team.example.com/quota", "kueue.x-k8s.io/topology")
    )
    assert told.reason is Reason.SCHEDULING_GATED
    assert told.message == (
        "pod demo-sft-3-0-x is kept from being scheduled by its schedulingGates "
        f"(kueue.x-k8s.io/topology, team.example.com/quota): {text}; have who sets them take them "
        "away, or keep them off the job's pods"
    )


def test_an_error_of_the_scheduler_is_told() -> None:
    text = 'running PreBind plugin "VolumeBinding": binding volumes: context deadline exceeded'
    told = one(waiting("SchedulerError", text))
    assert told.reason is Reason.SCHEDULER_ERROR
    assert told.message == (
        f"pod demo-sft-3-0-x cannot be scheduled: SchedulerError: {text}; the scheduler tries "
        "again; where it lasts, correct what is named"
    )


def test_what_is_said_without_a_cause_is_none() -> None:
    assert one(waiting("Invented", "some text")).reason is None
