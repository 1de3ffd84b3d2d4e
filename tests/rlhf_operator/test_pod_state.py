"""What kubelets say of pods that they do not let run, and containers that are not the trainer."""

import json
from typing import Any

import pytest
from raw_gangs import NOW, STOPPED, Raw, ended, make_job, make_pod, one, ready, seen

from rlhf_api.names import CONTRACT_VERSION, Reason
from rlhf_operator.fields import has_ended, trimmed
from rlhf_operator.planning.failures import backoff, judge
from rlhf_operator.planning.observed import ProcessPhase
from rlhf_operator.pod_state import MOST_CHARACTERS

PROXY_DIED = {"name": "proxy", "image": "proxy:1", "state": ended(9, message="no route")}
PROXY_WAITS = {
    "name": "proxy",
    "image": "proxy:1",
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
}


def pod(phase: str, *, containers: list[Raw] | None = None, **status: Any) -> Raw:
    """A pod without the sidecar of `make_pod`, as it is kept in the store."""
    containers_ready = ready(False) | {"type": "ContainersReady"}
    found = make_pod(phase=phase, conditions=[ready(False), containers_ready])
    found["status"]["containerStatuses"] = containers or []
    found["status"] |= status
    found["metadata"] |= {"namespace": "team", "uid": "pod", "resourceVersion": "1"}
    return trimmed("pods", found)


def trainer(state: Raw) -> Raw:
    return {"name": "trainer", "image": "i:1", "state": state}


REJECTED = [
    ("OutOfcpu", "Node didn't have enough resource: cpu, requested: 4000, used: 1, capacity: 2"),
    ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices, which is unexpected"),
    ("NodeAffinity", "Predicate NodeAffinity failed"),
    ("NodeShutdown", "Pod was rejected as the node is shutting down"),
]


@pytest.mark.parametrize(("reason", "message"), REJECTED)
def test_a_pod_that_its_node_did_not_let_run(reason: str, message: str) -> None:
    gang = seen(make_job(("Failed",)), pod("Failed", reason=reason, message=message))
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.final, verdict.counted) == (Reason.POD_REJECTED, False, True)
    assert f"was not let run by node-b: {reason}: {message}; free the node" in verdict.message
    assert verdict.patient


@pytest.mark.parametrize("reason", ["StartError", "ContainerCannotRun", "RunContainerError"])
def test_a_container_that_cannot_start(reason: str) -> None:
    text = 'exec: "python":\n executable file not found in $PATH: unknown'
    gang = seen(
        make_job(("Failed",)), pod("Failed", containers=[trainer(ended(128, reason, text))])
    )
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.final) == (Reason.START_ERROR, False)
    assert 'cannot start: exec: "python": executable file not found' in verdict.message
    assert "correct spec.image" in verdict.message
    assert verdict.patient


@pytest.mark.parametrize(
    ("reason", "text", "told"),
    [
        ("CreateContainerConfigError", 'secret "s" not found', Reason.CONTAINER_CONFIG),
        ("CreateContainerError", "no command specified", Reason.CONTAINER_NOT_STARTED),
        ("RunContainerError", "context deadline exceeded", Reason.CONTAINER_NOT_STARTED),
        ("PreStartHookError", "unexpected", Reason.CONTAINER_NOT_STARTED),
    ],
)
def test_a_container_that_waits_says_what_for(reason: str, text: str, told: Reason) -> None:
    waiting = {"waiting": {"reason": reason, "message": text}}
    found = one(pod("Pending", containers=[trainer(waiting)]))
    assert (found.reason, found.ended) == (told, False)
    assert f"{reason}: {text}; " in found.message


@pytest.mark.parametrize(
    "text",
    [
        "container has runAsNonRoot and image will run as root (pod: p, container: trainer)",
        "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is "
        "non-root (pod: p, container: trainer)",
        "container's runAsUser breaks non-root policy (pod: p, container: trainer)",
    ],
)
def test_a_container_that_would_run_as_root_is_told_to_name_a_user(text: str) -> None:
    waits = {"waiting": {"reason": "CreateContainerConfigError", "message": text}}
    found = one(pod("Pending", containers=[trainer(waits)]))
    assert found.reason is Reason.CONTAINER_CONFIG
    assert found.message.startswith(
        f"pod demo-sft-3-0-x: CreateContainerConfigError: {text}; "
        "set template.securityContext.runAsUser, or take an image with a numeric user, in a new job"
    )


UNREAD = "cannot be read on its node; remove it there, so that it is pulled anew"


@pytest.mark.parametrize(
    "reason",
    [
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "SignatureValidationFailed",
        "ErrImageInventedLater",
        "ImageInspectError",
    ],
)
@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "trainer",
            "cannot be pulled; correct spec.image, push the image or give imagePullSecrets",
        ),
        ("mesh", "cannot be pulled; push it, or correct what adds the container"),
    ],
)
def test_an_image_that_a_node_has_not_is_told_as_that(reason: str, said: str, name: str) -> None:
    said = UNREAD if reason == "ImageInspectError" else said
    found = []
    for text in ("dial tcp 10.0.0.1:443: i/o timeout", "Back-off pulling image"):
        state = {"waiting": {"reason": reason, "message": text}}
        container = trainer(state) | {"name": name}
        found.append(one(pod("Pending", containers=[container])))
    assert {each.reason for each in found} == {Reason.IMAGE_PULL}
    assert len({each.message for each in found}) == 1
    who = "" if name == "trainer" else f"container {name}: "
    assert found[0].message == f"pod demo-sft-3-0-x: {who}image i:1 {said}"


def test_an_image_whose_name_is_none_is_to_be_corrected_and_not_pushed() -> None:
    waits = {"waiting": {"reason": "InvalidImageName", "message": "couldn't parse image name"}}
    found = one(pod("Pending", containers=[trainer(waits) | {"image": "A:1"}]))
    assert found.reason is Reason.IMAGE_PULL
    assert found.message == (
        "pod demo-sft-3-0-x: image A:1 is no valid name of an image; correct spec.image in a new "
        "job"
    )
    mesh = {"name": "mesh", "image": "M:1", "state": waits}
    found = one(pod("Pending", initContainerStatuses=[mesh]))
    assert "container mesh: image M:1 is no valid" in found.message
    assert "correct what adds the container" in found.message


@pytest.mark.parametrize(
    ("reason", "text", "remedy"),
    [
        ("CreateContainerConfigError", 'secret "s" not found', "create what is named, or {}"),
        ("CreateContainerConfigError", "container has runAsNonRoot and image will run", "{}"),
        ("CreateContainerError", "no such device", "{}, or the node"),
        ("CrashLoopBackOff", "", "see its log"),
    ],
)
@pytest.mark.parametrize("kind", ["containerStatuses", "initContainerStatuses"])
def test_what_an_injected_container_waits_for_is_not_the_jobs_to_correct(
    kind: str, reason: str, text: str, remedy: str
) -> None:
    mesh = {"name": "mesh", "state": {"waiting": {"reason": reason, "message": text}}}
    found = one(pod("Pending", **{kind: [mesh]}))
    said = ": ".join(each for each in (reason, text) if each)
    remedy = remedy.format("correct what adds the container")
    assert found.message == f"pod demo-sft-3-0-x: container mesh: {said}; {remedy}"


@pytest.mark.parametrize("reason", ["CrashLoopBackOff", "RunContainerError"])
def test_the_pause_before_the_next_try_makes_no_other_words(reason: str) -> None:
    said = set()
    for pause in ("10s", "20s", "1m20s", "5m0s", "1h0m0.5s"):
        message = f"back-off {pause} restarting failed container=mesh pod=demo-sft-3-0-x"
        mesh = {"name": "mesh", "state": {"waiting": {"reason": reason, "message": message}}}
        said.add(one(pod("Pending", initContainerStatuses=[mesh])).message)
    (words,) = said
    assert f"container mesh: {reason}" in words


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing", None])
def test_a_container_on_its_way_says_nothing(reason: str | None) -> None:
    waiting = {"waiting": {"reason": reason} if reason else {}}
    assert one(pod("Pending", containers=[trainer(waiting)])).reason is None


@pytest.mark.parametrize(
    ("message", "containers", "init"),
    [
        ("Pod The node had condition: [DiskPressure]. ", [], []),
        ("The node was low on resource: memory.", [trainer({"waiting": {}})], []),
        # Ended by whom the message is of.
        ("The node was low on resource: memory.", [], [{"name": "m", "state": ended(137)}]),
    ],
)
def test_a_node_under_pressure_that_does_not_let_a_pod_run_is_waited_for(
    message: str, containers: list[Raw], init: list[Raw]
) -> None:
    more = {"initContainerStatuses": init} if init else {}
    evicted = pod("Failed", containers=containers, reason="Evicted", message=message, **more)
    verdict = judge(seen(make_job(("Failed",)), evicted), NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.patient) == (Reason.POD_REJECTED, True)
    assert f"was not let run by node-b: Evicted: {message.strip()}; free" in verdict.message


def test_an_eviction_is_told_by_the_kubelet_and_not_by_who_was_stopped() -> None:
    for containers in (
        [trainer({"running": {}})],
        [trainer(ended(75, message=json.dumps(STOPPED)))],
    ):
        said = "The kubelet wants the room"
        evicted = pod("Failed", containers=containers, reason="Evicted", message=said)
        gang = seen(make_job(("Failed",)), evicted)
        verdict = judge(gang, NOW)
        assert verdict is not None
        assert verdict.reason is Reason.EVICTED
        assert said in verdict.message
        assert not verdict.patient
    assert gang.processes[0].result is not None


@pytest.mark.parametrize(
    ("code", "text", "patient"),
    [
        (1, "Traceback: no module named rlhf_trainer", True),
        (126, "permission denied", True),
        (1, "", True),
        (0, "hello", True),
        (137, "", False),
        (139, "segmentation fault", False),
    ],
)
def test_what_is_left_in_place_of_a_result(code: int, text: str, patient: bool) -> None:
    found = one(make_pod(phase="Failed", state=ended(code, message=text)))
    assert (found.result, found.reason, found.patient) == (None, None, patient)
    assert found.message.endswith(text)
    assert (f"exit code {code}" in found.message) == bool(text)


def test_a_trainer_that_tells_a_result_is_tried_again_soon() -> None:
    crash = json.dumps(STOPPED | {"exitCode": 1, "reason": "Crashed", "message": "boom"})
    gang = seen(make_job(("Failed",)), make_pod(phase="Failed", state=ended(1, message=crash)))
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert (verdict.message, verdict.patient) == ("boom", False)


@pytest.mark.parametrize("code", [1, 74, 137, 139])
def test_after_a_result_of_another_contract_the_next_try_is_not_soon(code: int) -> None:
    foreign = json.dumps(STOPPED | {"exitCode": code, "contractVersion": CONTRACT_VERSION + 1})
    gang = seen(make_job(("Failed",)), make_pod(phase="Failed", state=ended(code, message=foreign)))
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert (verdict.reason, verdict.final, verdict.patient) == (
        Reason.CONTRACT_VERSION,
        False,
        True,
    )


def test_a_long_text_loses_its_beginning_and_what_changes_with_each_try() -> None:
    first = one(make_pod(phase="Failed", state=ended(1, message="x\n" * 4000 + "id 8f3a9c1e77aa")))
    again = one(make_pod(phase="Failed", state=ended(1, message="x\n" * 4000 + "id 91bb0c2d44ff")))
    assert first.message == again.message
    assert len(first.message) < MOST_CHARACTERS + 200
    assert first.message.endswith("id ...")


def test_three_tries_of_what_cannot_help_take_more_than_a_minute() -> None:
    first, second, third = (backoff(number, patient=True).total_seconds() for number in (1, 2, 3))
    assert first >= 30
    assert first + second > 60
    assert third <= 300
    assert backoff(1).total_seconds() == 2


@pytest.mark.parametrize("trainer_first", [True, False])
@pytest.mark.parametrize("code", [0, 1])
def test_the_trainer_is_found_among_others(trainer_first: bool, code: int) -> None:
    result = json.dumps(STOPPED | {"exitCode": code})
    containers = [trainer(ended(code, message=result)), PROXY_DIED]
    phase = "Failed" if code else "Succeeded"
    found = one(
        pod(
            phase,
            containers=containers if trainer_first else containers[::-1],
            initContainerStatuses=[{"name": "first", "state": ended(0, message="{}")}],
        )
    )
    assert (found.exit_code, found.phase) == (code, ProcessPhase(phase))
    assert found.result is not None
    assert found.result.exit_code == code


def test_a_pod_without_its_trainer_says_nothing_by_another_container() -> None:
    found = one(pod("Running", containers=[PROXY_DIED]))
    assert (found.exit_code, found.result, found.ended) == (None, None, False)


def test_a_container_before_the_trainer_that_fails_is_named() -> None:
    waiting = trainer({"waiting": {"reason": "PodInitializing"}})
    init = [{"name": "mesh-init", "state": ended(1, message="iptables: not permitted")}]
    failed = pod("Failed", containers=[waiting], initContainerStatuses=init)
    gang = seen(make_job(("Failed",)), failed)
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert verdict.reason is Reason.START_ERROR
    said = "container mesh-init ended with exit code 1 (iptables: not permitted) before trainer"
    assert said in verdict.message
    assert verdict.patient


def test_a_container_that_fails_after_the_trainer_and_ends_others_is_named() -> None:
    done = json.dumps(STOPPED | {"exitCode": 0, "reason": "Finished", "message": "done"})
    containers = [PROXY_DIED, trainer(ended(0, message=done))]
    job = make_job(("Failed",), spec={"parallelism": 2})
    rest = make_pod(1, "Failed", state=ended(143))
    gang = seen(job, pod("Failed", containers=containers), rest)
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert verdict.reason is Reason.CRASHED
    assert "container proxy ended with exit code 9 (no route) after trainer" in verdict.message
    assert gang.processes[0].result is not None


@pytest.mark.parametrize("kind", ["containerStatuses", "initContainerStatuses"])
def test_a_container_beside_the_trainer_that_keeps_a_pod_waiting_is_named(kind: str) -> None:
    running = trainer({"running": {}})
    pulls = PROXY_WAITS | {"state": {"waiting": {"reason": "ImagePullBackOff"}}}
    for other, reason, words in (
        (PROXY_WAITS, Reason.CRASH_LOOP, "container proxy: CrashLoopBackOff; see its log"),
        (pulls, Reason.IMAGE_PULL, "container proxy: image proxy:1 cannot be pulled"),
    ):
        beside = [other, running] if kind == "containerStatuses" else [running]
        more = {} if kind == "containerStatuses" else {kind: [other]}
        found = one(pod("Running", containers=beside, **more))
        assert (found.reason, found.phase) == (reason, ProcessPhase.RUNNING)
        assert words in found.message


def test_a_pod_that_was_rejected_is_remembered_when_it_is_deleted() -> None:
    assert has_ended(pod("Failed", reason="OutOfcpu"))
    assert not has_ended(pod("Running", containers=[PROXY_DIED, trainer({"running": {}})]))


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "2026-01-01T14:00:00Z"])
def test_a_node_whose_clock_is_ahead_keeps_nobody_waiting(time: str) -> None:
    """A gang waits some seconds for the rest after the first has ended."""
    state = ended(1)
    state["terminated"]["finishedAt"] = time
    gang = seen(make_job(), make_pod(0, "Failed", state=state), make_pod(1))
    verdict = judge(gang, NOW)
    assert verdict is not None
    assert verdict.reason is Reason.CRASHED


def test_times_that_cannot_be_added_to_are_no_obstacle() -> None:
    late = "9999-12-31T23:59:59Z"
    pods = [make_pod(conditions=[ready(False) | {"lastTransitionTime": late}])]
    pods.append(make_pod(1, metadata={"deletionTimestamp": late}))
    assert not any(process.lost for process in seen(make_job(), *pods).processes)


@pytest.mark.parametrize("index", ["x", "²", "9" * 5000, "-1", "", "1.5"])
def test_an_index_that_is_no_number_is_none_of_the_gangs(index: str) -> None:
    found = make_pod()
    found["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": index}
    assert one(found).index == -1
