"""Each cause of a disruption has a reason of its own, wherever it is seen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from raw_gangs import NOW, Raw, at, ended, make_job, make_pod, ready, seen

from rlhf_api.names import DISRUPTIONS, FailureClass, Reason
from rlhf_operator.observe import vanished_pod
from rlhf_operator.planning.failures import judge
from rlhf_operator.planning.observed import ObservedProgress, ProcessPhase

PRESSED = "The node was low on resource: ephemeral-storage."
USE = "Container trainer was using 5Gi, request is 0, has larger consumption of ephemeral-storage. "
LIMITS = {
    'Usage of EmptyDir volume "rows" exceeds the limit "1Gi". ': "raise sizeLimit of that emptyDir",
    "Pod ephemeral local storage usage exceeds the total limit of containers 2Gi. ": (
        "raise resources.limits.ephemeral-storage"
    ),
    'Container trainer exceeded its local ephemeral storage limit "2Gi". ': (
        "raise resources.limits.ephemeral-storage"
    ),
}
"""What the kubelet says of a pod above its own limits, and what we tell to do."""

MakeTrial = Callable[..., Any]


def ending(why: str, *, since: float | None = None, **status: Any) -> Raw:
    """A pod that somebody ends; it has not been ready for `since` seconds."""
    target = {"type": "DisruptionTarget", "status": "True", "reason": why, "message": "as told"}
    conditions = [target, ready(since is None, since or 90)]
    found = make_pod(conditions=conditions)
    found["status"] |= status
    return found


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (ending("PreemptionByScheduler"), Reason.PREEMPTED),
        (ending("EvictionByEvictionAPI"), Reason.DRAINED),
        (ending("EvictionByEvictionAPI", since=90), Reason.DRAINED),
        (ending("DeletionByTaintManager"), Reason.DRAINED),
        # Of a node that is found silent by others first.
        (ending("DeletionByTaintManager", since=20), Reason.NODE_LOST),
        (ending("DeletionByPodGC"), Reason.NODE_LOST),
        (ending("TerminationByKubelet", reason="Evicted"), Reason.NODE_PRESSURE),
        (
            ending("TerminationByKubelet", reason="Evicted", message=f"{PRESSED} {USE}"),
            Reason.NODE_PRESSURE,
        ),
        (ending("TerminationByKubelet", reason="Terminated"), Reason.NODE_SHUTDOWN),
        (ending("TerminationByKubelet", reason="Preempting"), Reason.PREEMPTED),
        (ending("TerminationByKubelet", reason="InventedLater"), Reason.DISRUPTED),
        (ending("TerminationByKubelet"), Reason.DISRUPTED),
        (ending("InventedLater"), Reason.DISRUPTED),
        (make_pod(conditions=[ready(False, since=40)]), Reason.NODE_LOST),
    ],
)
def test_a_pod_that_is_ended_says_why(pod: Raw, reason: Reason) -> None:
    (process,) = seen(make_job(), pod).processes
    assert (process.disrupted, process.reason) == (True, reason)
    if reason is Reason.NODE_LOST:
        # Nobody is there to tell how it ends.
        return
    pod["status"] |= {"phase": "Failed"}
    pod["status"]["containerStatuses"][1]["state"] = ended(137)
    verdict = judge(seen(make_job(("Failed",)), pod), NOW)
    assert verdict is not None
    assert verdict.reason is reason
    assert verdict.reason in DISRUPTIONS
    assert "was disrupted: as told" in verdict.message


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("Preempted", Reason.PREEMPTED),
        ("Preempting: Preempted in order to admit critical pod", Reason.PREEMPTED),
        ("TaintManagerEviction", Reason.DRAINED),
        ("NodeNotReady", Reason.NODE_LOST),
        ("Evicted", Reason.EVICTED),
        (f"Evicted: {PRESSED}", Reason.NODE_PRESSURE),
    ],
)
def test_the_events_of_a_pod_that_is_gone_say_why(told: str, reason: Reason) -> None:
    about = {"kind": "Pod", "name": "demo-sft-3-0-x7k2p"}
    why, _, message = told.partition(": ")
    event = {"involvedObject": about, "reason": why, "lastTimestamp": at(3), "type": "Normal"}
    found = vanished_pod("demo-sft-3", [event | {"message": message}])
    assert found is not None
    assert (found.disrupted, found.reason) == (True, reason)


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("Evicted", f"{PRESSED} {USE}"),
        ("Preempting", "Preempted in order to admit critical pod"),
        *[("Evicted", message) for message in LIMITS],
    ],
)
def test_what_a_kubelet_ends_has_one_reason_while_it_is_there_and_when_it_is_gone(
    why: str, message: str
) -> None:
    pod = ending("TerminationByKubelet", phase="Failed", reason=why, message=message)
    pod["status"]["containerStatuses"][1]["state"] = ended(137)
    (there,) = seen(make_job(("Failed",)), pod).processes
    about = {"kind": "Pod", "name": there.name}
    event = {"involvedObject": about, "reason": why, "message": message, "type": "Warning"}
    gone = vanished_pod("demo-sft-3", [event | {"lastTimestamp": at(3)}])
    assert gone is not None
    assert (gone.reason, gone.disrupted) == (there.reason, there.disrupted)


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("Evicted", "The node had condition: [DiskPressure]. "),
        ("Evicted", "Pod The node had condition: [MemoryPressure]. "),
        ("NodeShutdown", "Pod was rejected as the node is shutting down. "),
        ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 4000, used: 1"),
        ("OutOfnvidia.com/gpu", "Node didn't have enough resource: nvidia.com/gpu"),
        ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices"),
        ("NodeAffinity", "Predicate NodeAffinity failed"),
        ("NodePorts", "Predicate NodePorts failed"),
        ("TaintToleration", "Predicate TaintToleration failed"),
        ("TopologyAffinityError", "Resources cannot be allocated with Topology locality"),
    ],
)
def test_what_a_node_does_not_let_run_is_no_disruption_there_or_gone(
    why: str, message: str
) -> None:
    pod = make_pod()
    del pod["status"]["containerStatuses"]
    pod["status"] |= {"phase": "Failed", "reason": why, "message": message}
    (there,) = seen(make_job(("Failed",)), pod).processes
    about = {"kind": "Pod", "name": there.name}
    event = {"involvedObject": about, "reason": why, "message": message, "type": "Warning"}
    gone = vanished_pod("demo-sft-3", [event | {"lastTimestamp": at(3)}])
    assert gone is not None
    for process in (there, gone):
        assert (process.reason, process.disrupted) == (Reason.POD_REJECTED, False)
        assert process.patient
        assert "free the node" in process.message


@pytest.mark.parametrize("message", LIMITS)
@pytest.mark.parametrize("conditions", [[], ["TerminationByKubelet"]])
@pytest.mark.parametrize("code", [None, 75, 137, 143])
def test_a_pod_above_a_limit_of_its_own_has_failed(
    message: str, conditions: list[str], code: int | None
) -> None:
    told = {"phase": "Failed", "reason": "Evicted", "message": message}
    pod = ending(conditions[0], **told) if conditions else make_pod(phase="Failed")
    pod["status"] |= told
    state = {"running": {}} if code is None else ended(code)
    pod["status"]["containerStatuses"][1]["state"] = state
    peer = make_pod(1, "Failed", state=ended(80))
    attempt = seen(make_job(("Failed",), spec={"parallelism": 2}), pod, peer)
    assert not any(process.disrupted for process in attempt.processes)
    newer = ObservedProgress(step=50, total_steps=99, last_checkpoint_step=50)
    verdict = judge(replace(attempt, progress=newer), NOW)
    assert verdict is not None
    assert (verdict.failure, verdict.reason) == (FailureClass.CRASH, Reason.STORAGE_EXCEEDED)
    assert (verdict.counted, verdict.final, verdict.patient) == (True, False, False)
    said = message.strip().rstrip(".")
    assert f"pod demo-sft-3-0-x was evicted: {said}; {LIMITS[message]}" in verdict.message


@pytest.mark.parametrize("message", LIMITS)
def test_a_pod_above_a_limit_before_its_trainer_runs_is_tried_again_later(message: str) -> None:
    told = {"phase": "Failed", "reason": "Evicted", "message": message}
    pod = make_pod(phase="Failed", state={"waiting": {"reason": "PodInitializing"}})
    pod["status"] |= told
    verdict = judge(seen(make_job(("Failed",)), pod), NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.patient) == (Reason.STORAGE_EXCEEDED, True)
    assert LIMITS[message] in verdict.message


@pytest.mark.parametrize("message", LIMITS)
def test_the_event_of_a_pod_above_its_limit_is_no_disruption(message: str) -> None:
    about = {"kind": "Pod", "name": "demo-sft-3-0-x7k2p"}
    event = {"involvedObject": about, "lastTimestamp": at(3), "type": "Warning"}
    later = event | {"lastTimestamp": at(1), "reason": "FailedKillPod"}
    evicted = event | {"reason": "Evicted", "message": message}
    found = vanished_pod("demo-sft-3", [later, evicted])
    assert found is not None
    assert (found.disrupted, found.reason) == (False, Reason.STORAGE_EXCEEDED)
    assert LIMITS[message] in found.message


@pytest.mark.parametrize("reason", [Reason.PREEMPTED, Reason.NODE_LOST, None])
def test_the_reason_is_remembered_when_the_pod_is_gone(
    trial: MakeTrial, reason: Reason | None
) -> None:
    t = trial().running("sft")
    process = t.process("sft", disrupted=True, reason=reason, message="as told")
    t.put("sft", processes=(process,))
    t.look(1)
    told = reason or Reason.DISRUPTED
    assert (t.stage("sft").disruption_reason, t.stage("sft").disruption) == (told, "as told")
    t.put("sft", processes=(), failed=True, confirmed=True)
    t.look(1)
    assert (t.stage("sft").state, t.stage("sft").reason) == ("Restarting", told)
    assert t.condition("Running").reason == told
    assert [(each.type, each.reason) for each in t.last.events] == [("Warning", told)]
    t.look(60)
    assert t.stage("sft").attempt == 2
    assert (t.stage("sft").disruption_reason, t.stage("sft").disruption) == (None, None)


def test_what_is_about_to_end_keeps_no_attempt_from_running(trial: MakeTrial) -> None:
    t = trial()
    t.look()
    process = t.process(
        "sft", phase=ProcessPhase.PENDING, disrupted=True, reason=Reason.PREEMPTED, message="m"
    )
    t.put("sft", processes=(process,))
    t.look(1)
    assert t.stage("sft").reason is Reason.PODS_PENDING
    assert [event.reason for event in t.last.events] == [Reason.CREATED]
