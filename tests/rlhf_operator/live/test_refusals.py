"""What the API server, the scheduler or the kubelet refuses: its condition, its sentence, the way
on when the cause is gone."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from admission import Webhook
from api_proxy import ApiProxy
from cluster.kube_fixtures import Access
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from operating import Jobs, OperatorProcess, Raw, children_ready, eventually, stage

from rlhf_api.names import CONTRACT_VERSION
from rlhf_api.v1alpha1.pod import MAX_GPUS
from rlhf_operator.work_queue import FIRST_RETRY_SECONDS

APPARMOR = "container.apparmor.security.beta.kubernetes.io"
LONG = 90.0
"""Seconds until what was refused a few times is tried again."""


OWN_VOLUME = {"name": "corpora", "persistentVolumeClaim": {"claimName": "later"}}


@pytest.mark.parametrize(
    "spec", [{"storage": {"uri": "pvc://later/runs"}}, {"template": {"volumes": [OWN_VOLUME]}}]
)
def test_a_missing_claim_is_named_and_waited_for(
    operator: OperatorProcess, jobs: Jobs, spec: Raw
) -> None:
    jobs.create("claimless", **spec)
    message = children_ready(jobs, "claimless", "ClaimMissing")
    assert f"PersistentVolumeClaim later is not in namespace {jobs.namespace}" in message
    assert not jobs.batch.list_namespaced_job(jobs.namespace).items
    jobs.claim("later")
    jobs.run("claimless")
    jobs.reaches("claimless", "Running")
    assert jobs.condition("claimless", "ChildrenReady")["status"] == "True"


def test_a_quota_is_named_and_waited_for(operator: OperatorProcess, jobs: Jobs) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/jobs.batch": "0"}}}
    jobs.core.create_namespaced_resource_quota(jobs.namespace, quota)
    read = jobs.core.read_namespaced_resource_quota
    eventually(lambda: (read("none", jobs.namespace).status.hard or {}).get("count/jobs.batch"))
    jobs.create("quota")
    message = children_ready(jobs, "quota", "QuotaExceeded")
    assert "exceeded quota: none" in message
    assert "Job quota-sft-1" in message
    jobs.core.delete_namespaced_resource_quota("none", jobs.namespace)
    jobs.run("quota", seconds=LONG)
    jobs.reaches("quota", "Running")
    assert jobs.stage("quota")["restarts"] == 0


@pytest.mark.parametrize("kind", ["service", "job", "configmap"])
def test_a_foreign_object_of_the_name_is_left_alone(
    operator: OperatorProcess, jobs: Jobs, kind: str
) -> None:
    name = {"service": "taken"}.get(kind, "taken-sft-1")
    if kind == "service":
        spec = {"ports": [{"port": 80}]}
        foreign = {"metadata": {"name": name}, "spec": spec}
        jobs.core.create_namespaced_service(jobs.namespace, foreign)
    elif kind == "configmap":
        foreign = {"metadata": {"name": name}, "data": {"mine": "yes"}}
        jobs.core.create_namespaced_config_map(jobs.namespace, foreign)
    else:
        pod = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}
        foreign = {"metadata": {"name": name}, "spec": {"suspend": True, "template": {"spec": pod}}}
        jobs.batch.create_namespaced_job(jobs.namespace, foreign)
    jobs.create("taken")
    message = children_ready(jobs, "taken", "NameConflict")
    assert name in message
    assert "delete it, or give the job another name" in message
    if kind == "configmap":
        kept = jobs.core.read_namespaced_config_map(name, jobs.namespace)
        assert kept.data == {"mine": "yes"}


def test_a_pod_template_that_is_refused_fails_the_job_for_good(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("invalid", template={"priorityClassName": "Not A Name"})
    eventually(lambda: jobs.condition("invalid", "Failed").get("status") == "True")
    failed = jobs.condition("invalid", "Failed")
    assert failed["reason"] == "InvalidSpec"
    assert "priorityClassName" in failed["message"]
    assert jobs.get("invalid")["status"]["phase"] == "Failed"


def mounted(**mount: str) -> Raw:
    volume = {"name": "own", "emptyDir": {}}
    return {"volumes": [volume], "volumeMounts": [{"name": "own", "mountPath": "/own"} | mount]}


MISTAKES = {
    "resource": ({"resources": {"limits": {"foo": "1"}}}, 'limits[foo]: Invalid value: "foo"'),
    "device": ({"resources": {"limits": {"a.com/gpu": "0.5"}}}, "limits[a.com/gpu]: Invalid value"),
    "profile": (
        {"annotations": {f"{APPARMOR}/nope": "unconfined"}},
        f'annotations[{APPARMOR}/nope]: Invalid value: "nope"',
    ),
}
"""Templates that the CRD takes and the API server's validation of a Job does not."""


def test_a_key_that_is_wrong_is_the_user_s_mistake_and_waits_for_nobody(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    for name, (template, _) in MISTAKES.items():
        jobs.create(name, template=template)
    for name, (_, words) in MISTAKES.items():
        eventually(lambda name=name: jobs.condition(name, "Failed").get("status") == "True")
        failed = jobs.condition(name, "Failed")
        assert failed["reason"] == "InvalidSpec"
        assert words in failed["message"]
        assert "webhook" not in failed["message"]


BEYOND_COUNTING = ("1e999999", "1e5000", "-1e100", "1E-1000")
REFUSED = [
    *(({"resources": {"limits": {"nvidia.com/gpu": text}}}, "limits") for text in BEYOND_COUNTING),
    *(({"resources": {"requests": {"memory": text}}}, "requests") for text in BEYOND_COUNTING),
    ({"volumes": [{"name": "a", "emptyDir": {"sizeLimit": "1e5000"}}]}, "emptyDir.sizeLimit"),
    (mounted(subPath="../x"), "subPath must be relative and without .."),
    (mounted(subPath="/x"), "subPath must be relative and without .."),
    (
        {"securityContext": {"seccompProfile": {"type": "Localhost", "localhostProfile": "/x"}}},
        "localhostProfile must be relative and without ..",
    ),
]


@pytest.mark.parametrize(("template", "words"), REFUSED)
def test_what_could_only_do_harm_is_refused_by_the_api_server(
    jobs: Jobs, template: Raw, words: str
) -> None:
    for spec in ({"template": template}, {"stages": {"sft": stage(**template)}}):
        if "resources" not in template and "stages" in spec:
            continue
        with pytest.raises(ApiException) as caught:
            jobs.create("beyond", **spec)
        assert caught.value.status == 422
        assert words in json.loads(str(caught.value.body))["message"]


def test_amounts_that_no_node_has_stop_nobody(operator: OperatorProcess, jobs: Jobs) -> None:
    gpus = {"nvidia.com/gpu": "1e99", "amd.com/gpu": "9" * 64}
    jobs.create("vast", template={"resources": {"limits": gpus | {"memory": "1e99"}}})
    jobs.run("vast")
    jobs.reaches("vast", "Running")
    config = jobs.core.read_namespaced_config_map("vast-sft-1", jobs.namespace)
    assert json.loads(config.data["stage.json"])["gpusRequested"] == MAX_GPUS
    assert operator.get("/healthz") == (200, "ok")


def test_a_job_without_storage_fails_with_a_sentence(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("nowhere", storage=None)
    eventually(lambda: jobs.condition("nowhere", "Failed").get("status") == "True")
    assert "spec.storage is missing" in jobs.condition("nowhere", "Failed")["message"]


def test_an_image_that_cannot_be_pulled_is_named(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("image")
    jobs.wait_for_pods("image")
    jobs.wait(jobs.pods("image")[0], "ErrImagePull", "no such host")
    eventually(lambda: jobs.stage("image").get("reason") == "ImagePull")
    running = jobs.condition("image", "Running")
    assert (running["status"], running["reason"]) == ("False", "ImagePull")
    assert "registry.test/trainer:1 cannot be pulled" in running["message"]
    jobs.patch("image", runPolicy={"pendingDeadlineSeconds": 4})
    eventually(lambda: jobs.condition("image", "Failed").get("status") == "True")
    assert jobs.condition("image", "Failed")["reason"] == "PendingDeadlineExceeded"


def test_a_pod_that_cannot_be_scheduled_says_why(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("huge")
    jobs.wait_for_pods("huge")
    (pod,) = jobs.pods("huge")
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu. no new claims to "
        "deallocate, preemption: 0/2 nodes are available: 2 No preemption victims found.",
    }
    patch = {"status": {"conditions": [condition]}}
    jobs.core.patch_namespaced_pod_status(pod.metadata.name, jobs.namespace, patch)
    eventually(lambda: jobs.stage("huge").get("reason") == "Unschedulable")
    said = jobs.condition("huge", "Running")["message"]
    assert said.endswith("scheduled: no node is available: Insufficient nvidia.com/gpu")


def test_a_volume_that_cannot_be_mounted_is_named_and_waited_for(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("volume")
    jobs.wait_for_pods("volume")
    (pod,) = jobs.pods("volume")
    jobs.bind(pod)
    jobs.wait(pod, "ContainerCreating")
    # Of a job before, whose pod was called the same.
    other = client.V1Pod(metadata=client.V1ObjectMeta(name=pod.metadata.name, uid=str(uuid4())))
    jobs.warn(other, "FailedMount", "of another")
    jobs.warn(pod, "FailedMount", 'MountVolume.SetUp failed: secret "hf" not found')
    eventually(lambda: jobs.stage("volume").get("reason") == "VolumeNotMounted")
    running = jobs.condition("volume", "Running")
    assert (running["status"], running["reason"]) == ("False", "VolumeNotMounted")
    said = 'waits on its node: FailedMount: MountVolume.SetUp failed: secret "hf" not found; create'
    assert said in running["message"]
    jobs.run("volume")
    jobs.reaches("volume", "Running")
    jobs.wait_for_events("volume", ("Warning", "VolumeNotMounted"))
    assert jobs.stage("volume")["restarts"] == 0


def test_a_pod_above_a_limit_of_its_own_is_restarted_counted(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("above")
    jobs.run("above")
    jobs.reaches("above", "Running")
    jobs.evict(jobs.pods("above")[0], 'Usage of EmptyDir volume "rows" exceeds the limit "1Gi". ')
    eventually(lambda: jobs.stage("above").get("restarts"))
    stage_told = jobs.stage("above")
    assert (stage_told["restarts"], stage_told.get("disruptions", 0)) == (1, 0)
    jobs.wait_for_events("above", ("Warning", "StorageExceeded"))


def test_a_pod_quota_is_told_though_the_job_controller_meets_it(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    jobs.core.create_namespaced_resource_quota(jobs.namespace, quota)
    read = jobs.core.read_namespaced_resource_quota
    eventually(lambda: (read("none", jobs.namespace).status.hard or {}).get("pods"))
    jobs.create("crowded")
    eventually(lambda: jobs.stage("crowded").get("reason") == "QuotaExceeded")
    assert "exceeded quota: none" in jobs.stage("crowded")["message"]


def test_out_of_memory_before_the_first_step_is_final(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("memory")
    jobs.run("memory")
    jobs.end_pod(jobs.pods("memory")[0], 137, reason="OOMKilled")
    eventually(lambda: jobs.condition("memory", "Failed").get("status") == "True")
    failed = jobs.condition("memory", "Failed")
    assert failed["reason"] == "OutOfMemory"
    assert "raise resources.limits.memory" in failed["message"]


def test_an_image_of_another_release_is_told_by_contract_version(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    jobs.create("newer")
    jobs.run("newer")
    newer = {"contractVersion": CONTRACT_VERSION + 1, "later": True}
    told = json.loads(jobs.result("newer", "sft", 1, 0)) | newer
    jobs.finish("newer", code=1, message=json.dumps(told))
    # The next attempt starts within seconds; the Event stays.
    jobs.wait_for_events("newer", ("Warning", "ContractVersion"))
    fields = "involvedObject.name=newer,reason=ContractVersion"
    (event,) = jobs.core.list_namespaced_event(jobs.namespace, field_selector=fields).items
    versions = (CONTRACT_VERSION + 1, CONTRACT_VERSION)
    assert "contractVersion is {}, but this operator speaks {}".format(*versions) in event.message
    eventually(lambda: jobs.stage("newer").get("restarts") == 1)


def test_a_finished_job_stays_as_it_is(operator: OperatorProcess, jobs: Jobs) -> None:
    jobs.create("done")
    jobs.run("done")
    jobs.reaches("done", "Running")
    jobs.finish("done")
    eventually(lambda: jobs.phase("done") == "Succeeded")
    jobs.batch.delete_namespaced_job("done-sft-1", jobs.namespace, propagation_policy="Foreground")
    eventually(lambda: not jobs.batch.list_namespaced_job(jobs.namespace).items)
    jobs.patch("done", runPolicy={"maxRestarts": 9})
    with pytest.raises(AssertionError):
        eventually(lambda: jobs.batch.list_namespaced_job(jobs.namespace).items, seconds=3)
    assert jobs.get("done")["status"]["phase"] == "Succeeded"


def test_an_edit_that_is_not_allowed_is_refused_with_a_sentence(jobs: Jobs) -> None:
    jobs.create("frozen")
    with pytest.raises(ApiException) as caught:
        jobs.patch("frozen", stages={"sft": stage(batchSize=64)})
    assert caught.value.status == 422
    assert "stages cannot be changed; delete the job and create it anew" in str(caught.value.body)
    jobs.patch("frozen", suspend=True)
    jobs.patch("frozen", runPolicy={"maxRestarts": 5})


def test_an_api_server_that_is_busy_is_asked_again(jobs: Jobs, tmp_path: Path) -> None:
    with ApiProxy(jobs.access.kubeconfig, tmp_path) as proxy:
        kubeconfig = str(proxy.kubeconfig)
        operator = OperatorProcess(jobs.access, jobs.namespace, tmp_path, kubeconfig=kubeconfig)
        try:
            operator.wait_until_leading()
            path = f"/apis/batch/v1/namespaces/{jobs.namespace}/jobs"
            busy = proxy.answer(
                lambda call: (call.method, call.path) == ("POST", path),
                429,
                "TooManyRequests",
                "Too many requests, please try again later.",
            )
            jobs.create("busy")
            message = children_ready(jobs, "busy", "ApiError")
            assert message.startswith("Job busy-sft-1: the API server is busy (429)")
            proxy.release(busy)
            jobs.run("busy")
            jobs.reaches("busy", "Running")
            assert jobs.condition("busy", "ChildrenReady")["status"] == "True"
        finally:
            operator.end()


def test_a_webhook_that_answers_in_the_words_of_a_conflict_is_no_conflict(
    operator: OperatorProcess, jobs: Jobs, webhook: Callable[..., Webhook]
) -> None:
    """A status that is refused for another reason than a change is tried again ever later."""
    conflict = {"code": 409, "reason": "Conflict", "message": "the object has been modified"}
    hook = webhook("rlhfjobs/status", "UPDATE").answer(
        lambda seen: conflict if seen["metadata"]["name"] == "stale" else None
    )
    jobs.create("probe", suspend=True)
    eventually(lambda: jobs.phase("probe") == "Suspended")
    eventually(lambda: jobs.patch_status("probe", summary={"kl": uuid4().hex}) or hook.asked)
    started = time.monotonic()
    jobs.create("stale")
    eventually(lambda: hook.asked.count("stale") >= 4)
    # Half of what the first three pauses are at the most.
    assert time.monotonic() - started >= FIRST_RETRY_SECONDS * (1 + 2 + 4) / 2
    told = [line for line in operator.log.read_text().splitlines() if "/stale: " in line]
    assert hook.name in told[0]
    assert "the object has been modified" in told[0]
    assert len(told) >= hook.asked.count("stale") - 1
    assert operator.metric("rlhf_operator_reconcile_errors_total", reason="http-409") >= 3
    hook.close()
    jobs.run("stale", seconds=LONG)
    jobs.reaches("stale", "Running")


def test_a_namespace_that_is_going_is_told(control_plane: Access, tmp_path: Path) -> None:
    core = client.CoreV1Api(control_plane.api)
    name = f"going-{uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    jobs = Jobs(control_plane, name)
    jobs.claim()
    operator = OperatorProcess(control_plane, name, tmp_path)
    try:
        operator.wait_until_leading()
        jobs.create("late", suspend=True)
        eventually(lambda: jobs.phase("late") == "Suspended")
        # Pods go first, and everything else waits for them.
        pod = {
            "metadata": {"name": "saves", "finalizers": ["rlhf.dev/held-by-a-test"]},
            "spec": {"containers": [{"name": "a", "image": "b"}]},
        }
        eventually(lambda: core.list_namespaced_service_account(name).items)
        core.create_namespaced_pod(name, pod)
        core.delete_namespace(name)
        eventually(lambda: core.read_namespaced_pod("saves", name).metadata.deletion_timestamp)
        jobs.patch("late", suspend=False)
        message = children_ready(jobs, "late", "NamespaceTerminating")
        assert f"new content in namespace {name} because it is being terminated" in message.replace(
            '"', ""
        )
        assert "make the job in another namespace" in message
    finally:
        core.patch_namespaced_pod("saves", name, {"metadata": {"finalizers": []}})
        operator.end()
    assert "Traceback" not in operator.log.read_text()


def test_a_refused_stage_does_not_keep_another_from_its_start(
    operator: OperatorProcess, jobs: Jobs
) -> None:
    rows = {"uri": "pvc://later/rows.jsonl"}
    jobs.create("beside", stages={"sft": stage(dataset=rows), "reward": stage()})
    jobs.run("beside", "reward")
    jobs.reaches("beside", "Running", "reward")
    assert "PersistentVolumeClaim later" in jobs.condition("beside", "ChildrenReady")["message"]
    assert jobs.stage("beside", "sft")["reason"] == "ClaimMissing"
    assert not jobs.pods("beside", "sft")
    jobs.claim("later")
    jobs.run("beside", "sft")
    jobs.reaches("beside", "Running", "sft")
    assert jobs.condition("beside", "ChildrenReady")["status"] == "True"
