"""Verdicts when something is missing: a late stream, a new leader, lost pods, a name used anew."""

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from api_proxy import ApiProxy, list_of, watch_of
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from operating import Jobs, OperatorProcess, eventually, now, stage
from rank_zero import RankZero

from rlhf_api.names import API_VERSION, KIND, Label, Reason, StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.act import Actor
from rlhf_operator.fields import CONFIG_VOLUME
from rlhf_operator.kube import Kube
from rlhf_operator.planning.actions import StopAttempt
from rlhf_operator.settings import Settings
from rlhf_operator.store import Kind, Store

Requests = Callable[[], list[str]]


@contextmanager
def operating(jobs: Jobs, folder: Path, **settings: Any) -> Iterator[OperatorProcess]:
    """An operator that leads and has no fault of its own, with a Lease of its own."""
    lease = f"lease-{time.monotonic_ns()}"
    process = OperatorProcess(jobs.access, jobs.namespace, folder, LEASE_NAME=lease, **settings)
    try:
        process.wait_until_leading()
        yield process
    finally:
        process.end()
    log = process.log.read_text()
    assert "Traceback" not in log, log
    assert "please report it" not in log, log


def tells(jobs: Jobs, name: str, page: RankZero, **fields: int) -> None:
    """Let rank 0 of a running job tell how far it is, until status says so."""
    jobs.reach(jobs.pods(name)[0], page.address)
    eventually(
        lambda: (
            all(jobs.stage(name).get(field) == value for field, value in fields.items())
            and jobs.stage(name).get("progress")
        )
    )


@pytest.mark.parametrize(
    ("code", "state", "reason"), [(0, "Succeeded", "Finished"), (65, "Failed", "DataError")]
)
def test_a_job_that_is_seen_to_end_before_its_pod_is_judged_by_one_list(
    jobs: Jobs, tmp_path: Path, code: int, state: str, reason: str
) -> None:
    with (
        ApiProxy(jobs.access.kubeconfig, tmp_path) as proxy,
        operating(jobs, tmp_path, kubeconfig=str(proxy.kubeconfig)),
    ):
        jobs.create("behind")
        jobs.run("behind")
        jobs.reaches("behind", "Running")
        pods = list_of("pods", jobs.namespace)
        proxy.hold(watch_of("pods", jobs.namespace))
        before = len(proxy.calls)
        told = jobs.result("behind", "sft", 1, code, reason=reason, message="as it is")
        jobs.finish("behind", code=code, message=told)
        found = jobs.reaches("behind", state)
        assert (found["reason"], found["message"], found["restarts"]) == (reason, "as it is", 0)
        asked = [call for call in proxy.calls[before:] if pods(call)]
        assert len(asked) == 1, asked
        assert "controller-uid" in asked[0].query["labelSelector"]


def test_a_new_leader_judges_by_what_status_knows(jobs: Jobs, tmp_path: Path) -> None:
    with RankZero(9000) as deep, RankZero(0) as shallow, RankZero(7, 5) as lost:
        with operating(jobs, tmp_path) as first:
            for name, page in (("deep", deep), ("shallow", shallow), ("lost", lost)):
                jobs.create(name)
                jobs.run(name)
                jobs.reaches(name, "Running")
                jobs.reach(jobs.pods(name)[0], page.address)
            tells(jobs, "deep", deep)
            tells(jobs, "lost", lost, lastCheckpointStep=5)
            assert jobs.stage("deep")["progress"]["step"] == 9000
            first.end(signal.SIGKILL)
        for name in ("deep", "shallow"):
            jobs.end_pod(jobs.pods(name)[0], 137, reason="OOMKilled")
        (pod,) = jobs.pods("lost")
        since = (datetime.now(UTC) - timedelta(seconds=60)).strftime("%Y-%m-%dT%H:%M:%SZ")
        silent = {"type": "Ready", "status": "False", "lastTransitionTime": since}
        status = {"status": {"conditions": [silent]}}
        jobs.core.patch_namespaced_pod_status(pod.metadata.name, jobs.namespace, status)
        with operating(jobs, tmp_path):
            eventually(lambda: jobs.condition("shallow", "Failed"))
            assert jobs.condition("shallow", "Failed")["reason"] == "OutOfMemory"
            for name, counts in (("deep", (1, 0)), ("lost", (0, 1))):
                jobs.run(name, attempt=2)
                found = jobs.reaches(name, "Running", attempt=2)
                assert (found["restarts"], found["disruptions"]) == counts, name
            jobs.wait_for_events("deep", ("Warning", "OutOfMemory"))
            jobs.wait_for_events("lost", ("Warning", "NodeLost"))


def test_rank_0_may_be_gone_while_the_others_save(jobs: Jobs, tmp_path: Path) -> None:
    with RankZero(7, 2) as page, operating(jobs, tmp_path):
        jobs.create("headless", stages={"sft": stage(nodes=2)})
        jobs.wait_for_pods("headless", n=2)
        for pod in jobs.pods("headless"):
            jobs.bind(pod)
        jobs.run("headless", n=2)
        jobs.reaches("headless", "Running")
        tells(jobs, "headless", page, lastCheckpointStep=2)
        first, second = jobs.pods("headless")
        jobs.remove_pod(first)
        jobs.job_turns("headless", "FailureTarget")
        time.sleep(3)
        assert jobs.stage("headless")["state"] == "Running"
        told = jobs.result("headless", "sft", 1, 75, reason="Stopped", lastCheckpointStep=3)
        jobs.end_pod(second, 75, told)
        jobs.remove_pod(second)
        jobs.run("headless", attempt=2, n=2)
        found = jobs.reaches("headless", "Running", attempt=2)
        assert (found["restarts"], found["disruptions"]) == (0, 1)
        assert found["lastCheckpointStep"] == 3


def test_a_disruption_is_remembered_when_its_pod_is_gone(jobs: Jobs, tmp_path: Path) -> None:
    with RankZero(7, 2) as page, operating(jobs, tmp_path):
        jobs.create("drained")
        jobs.run("drained")
        jobs.reaches("drained", "Running")
        tells(jobs, "drained", page, lastCheckpointStep=2)
        (pod,) = jobs.pods("drained")
        jobs.disrupt(pod)
        eventually(lambda: "preempted" in jobs.stage("drained").get("disruption", ""))
        jobs.remove_pod(pod)
        jobs.run("drained", attempt=2)
        found = jobs.reaches("drained", "Running", attempt=2)
        assert (found["restarts"], found["disruptions"]) == (0, 1)
        jobs.wait_for_events("drained", ("Warning", "Preempted"))


def test_what_became_of_pods_that_nobody_saw_is_read_from_events_once(
    jobs: Jobs, requests: Requests, tmp_path: Path
) -> None:
    with operating(jobs, tmp_path):
        jobs.create("unseen")
        jobs.run("unseen")
        jobs.reaches("unseen", "Running")
    (pod,) = jobs.pods("unseen")
    about = {"kind": "Pod", "name": pod.metadata.name, "namespace": jobs.namespace}
    event = {
        "metadata": {"generateName": "evicted."},
        "involvedObject": about,
        "type": "Normal",
        "reason": "TaintManagerEviction",
        "message": "Marking for deletion Pod",
        "lastTimestamp": now(),
    }
    jobs.core.create_namespaced_event(jobs.namespace, event)
    jobs.remove_pod(pod)
    jobs.job_turns("unseen", "Failed")
    before = len(requests())
    with operating(jobs, tmp_path):
        jobs.run("unseen", attempt=2)
        found = jobs.reaches("unseen", "Running", attempt=2)
        assert (found["restarts"], found["disruptions"]) == (1, 0)  # no checkpoint had grown
        jobs.wait_for_events("unseen", ("Warning", "Drained"))
    # Not those of a Job, which are asked for when its pods are made late.
    of_pods = [each for each in requests()[before:] if "involvedObject.kind%3DPod" in each]
    assert [each.partition("?")[0] for each in of_pods] == ["list events"], of_pods


def test_a_job_of_the_same_name_inherits_nothing(jobs: Jobs, tmp_path: Path) -> None:
    with RankZero(9000, 5) as page, operating(jobs, tmp_path):
        jobs.create("again")
        jobs.run("again")
        jobs.reaches("again", "Running")
        tells(jobs, "again", page, lastCheckpointStep=5)
        jobs.create("refused", storage={"uri": "pvc://later/runs"})
        eventually(lambda: jobs.condition("refused", "ChildrenReady"))
        for name in ("again", "refused"):
            jobs.delete(name)
            jobs.create(name)
            uid = jobs.get(name)["metadata"]["uid"]
            eventually(
                lambda name=name, uid=uid: (
                    [pod.metadata.labels[Label.JOB_UID] for pod in jobs.pods(name)] == [uid]
                )
            )
            jobs.run(name)
            found = jobs.reaches(name, "Running")
            assert not {"progress", "lastCheckpointStep"} & found.keys(), found
            eventually(
                lambda name=name: jobs.condition(name, "ChildrenReady").get("status") == "True"
            )
            made = jobs.batch.read_namespaced_job(f"{name}-sft-1", jobs.namespace)
            assert "rlhf.dev/checkpoint-step" not in made.metadata.annotations


@pytest.mark.parametrize("kind", ["job", "configmap"])
def test_a_job_of_the_same_name_waits_until_the_old_children_are_gone(
    operator: OperatorProcess, jobs: Jobs, kind: str
) -> None:
    jobs.create("renewed")
    jobs.run("renewed")
    jobs.reaches("renewed", "Running")

    def hold(*finalizers: str) -> None:
        patch = f'{{"metadata": {{"finalizers": [{",".join(finalizers)}]}}}}'
        where = ("-n", jobs.namespace, f"{kind}/renewed-sft-1")
        jobs.access.kubectl("patch", *where, "--type=merge", "-p", patch)

    hold('"rlhf.dev/held-by-a-test"')
    jobs.delete("renewed")
    jobs.create("renewed")
    # Those of the other children that go meanwhile are told before it.
    held = f"{'Job' if kind == 'job' else 'ConfigMap'} renewed-sft-1 is of a deleted RLHFJob of the"
    waits = f"{held} same name; waits until it is gone"
    told = eventually(
        lambda: (
            waits in (found := jobs.condition("renewed", "ChildrenReady")).get("message", "")
            and found
        )
    )
    assert (told["status"], told["reason"]) == ("False", "NameConflict")
    hold()
    uid = jobs.get("renewed")["metadata"]["uid"]
    eventually(
        lambda: any(pod.metadata.labels["rlhf.dev/job-uid"] == uid for pod in jobs.pods("renewed")),
        seconds=60,
    )
    jobs.run("renewed")
    jobs.reaches("renewed", "Running")
    assert jobs.condition("renewed", "ChildrenReady")["status"] == "True"


def test_words_of_a_newer_operator_are_kept(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("newer", stages={"sft": stage(), "reward": stage()})
    for name in ("sft", "reward"):
        jobs.run("newer", name)
        jobs.reaches("newer", "Running", name)
    status = jobs.get("newer")["status"]
    strange = {
        "type": "Greened",
        "status": "True",
        "reason": "SolarPower",
        "message": "runs by daylight",
        "lastTransitionTime": now(),
    }
    asleep = {"state": "Hibernating", "reason": "PowerSaving", "message": "until the morning"}
    jobs.patch_status(
        "newer", conditions=[*status["conditions"], strange], stages={"reward": asleep}
    )
    jobs.finish("newer", "sft")
    jobs.reaches("newer", "Succeeded", "sft")
    jobs.patch("newer", runPolicy={"maxRestarts": 7})
    eventually(lambda: jobs.get("newer")["status"]["observedGeneration"] == 2)
    assert jobs.stage("newer", "reward").items() >= asleep.items()
    kept = jobs.condition("newer", "Greened")
    assert kept.items() >= strange.items()
    assert len(jobs.pods("newer", "reward")) == 1
    assert jobs.condition("newer", "Succeeded") == {}


def test_the_generation_that_was_looked_at_follows_an_edit(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    for name in ("done", "paused", "lives"):
        jobs.create(name)
        jobs.run(name)
        jobs.reaches(name, "Running")
    jobs.finish("done")
    jobs.patch("paused", suspend=True)
    eventually(lambda: jobs.phase("done") == "Succeeded" and jobs.phase("paused") == "Suspended")
    for name, kind in (("done", "Succeeded"), ("paused", "Suspended"), ("lives", "Running")):
        jobs.patch(name, runPolicy={"maxRestarts": 9})
        wait = ("wait", f"--for=condition={kind}", "--timeout=10s", "-n", jobs.namespace)
        jobs.access.kubectl(*wait, f"rlhf/{name}")
        found = jobs.get(name)
        generation = found["metadata"]["generation"]
        status = found["status"]
        assert status["observedGeneration"] == generation, name
        assert {each["observedGeneration"] for each in status["conditions"]} == {generation}, name


@pytest.mark.parametrize("recreated", [False, True])
def test_a_delete_meets_the_job_that_was_seen_and_no_other(jobs: Jobs, recreated: bool) -> None:
    jobs.create("twice")
    job = RLHFJob.from_document(jobs.get("twice"))
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": "twice",
        "uid": job.metadata.uid,
        "controller": True,
    }
    volume = {"name": CONFIG_VOLUME, "configMap": {"name": "twice-sft-1"}}
    containers = [{"name": "a", "image": "b"}]
    pod = {"restartPolicy": "Never", "containers": containers, "volumes": [volume]}
    metadata = {"name": "twice-sft-1", "ownerReferences": [owner]}
    manifest = {"metadata": metadata, "spec": {"suspend": True, "template": {"spec": pod}}}
    store = Store()

    def make() -> Any:
        made = jobs.batch.create_namespaced_job(jobs.namespace, manifest)
        return jobs.access.api.sanitize_for_serialization(made)

    seen = make()
    store.put(Kind.JOB, seen)
    if recreated:
        jobs.batch.delete_namespaced_job(
            "twice-sft-1", jobs.namespace, propagation_policy="Background"
        )
        seen = make()

    async def stop() -> None:
        configuration = Configuration()
        await config.load_kube_config(
            str(jobs.access.kubeconfig), client_configuration=configuration
        )
        async with ApiClient(configuration) as session:
            actor = Actor(Kube(session, 100), store, Settings(trainer_image="registry.test/a:1"))
            await actor.act(job, StopAttempt(StageName.SFT, 1, Reason.STOPPED))

    asyncio.run(stop())
    left = [each.metadata.uid for each in jobs.batch.list_namespaced_job(jobs.namespace).items]
    if recreated:
        assert left == [seen["metadata"]["uid"]]
        deleted = jobs.batch.read_namespaced_job("twice-sft-1", jobs.namespace)
        assert deleted.metadata.deletion_timestamp is None
        assert store.count(Kind.JOB) == 0
    else:
        eventually(lambda: not jobs.batch.list_namespaced_job(jobs.namespace).items)
