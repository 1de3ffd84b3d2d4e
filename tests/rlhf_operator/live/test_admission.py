"""What policies, webhooks and the cluster's own admission refuse: each with a reason of its own,
waited for, in words that stay, and forgotten when the cause is gone."""

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from admission import Policy, Webhook
from kubernetes.client.exceptions import ApiException
from operating import (
    Jobs,
    OperatorProcess,
    Raw,
    children_ready,
    condition_of,
    eventually,
    stage,
)

from rlhf_api.names import KIND

MakePolicy = Callable[..., Policy]
MakeWebhook = Callable[[str], Webhook]

POD = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}

LONG = 90.0
"""Seconds until what was refused a few times is tried again."""


def refused_job(jobs: Jobs) -> str:
    """What a Job of a test's own is refused with; empty if it is not."""
    body: dict[str, Any] = {"metadata": {"name": f"probe-{uuid4().hex[:8]}"}}
    template = {"metadata": {"labels": {"a": "b"}}, "spec": POD}
    body["spec"] = {"suspend": True, "template": template}
    return refused(jobs.batch.create_namespaced_job, jobs, body)


def refused_pod(jobs: Jobs, **container: Any) -> str:
    """The same of a Pod, whose container has these fields, too."""
    spec = POD | {"containers": [{"name": "a", "image": "b"} | container]}
    metadata = {"generateName": "probe-"}
    return refused(jobs.core.create_namespaced_pod, jobs, {"metadata": metadata, "spec": spec})


def refused(create: Callable[..., Any], jobs: Jobs, body: dict[str, Any]) -> str:
    try:
        create(jobs.namespace, body, dry_run="All")
    except ApiException as error:
        return str(error.body)
    return ""


def events_of(jobs: Jobs, name: str) -> list[str]:
    """Messages of the Events about an RLHFJob."""
    fields = f"involvedObject.kind={KIND},involvedObject.name={name}"
    found = jobs.core.list_namespaced_event(jobs.namespace, field_selector=fields).items
    return [each.message for each in found]


def pods_refused(jobs: Jobs, name: str, reason: str) -> str:
    """Wait until the stage says so; gives its message, which the condition Running tells, too."""

    def told() -> Raw | None:
        status: Raw = jobs.get(name).get("status", {})
        sft = status.get("stages", {}).get("sft", {})
        return status if sft.get("reason") == reason else None

    status = eventually(told, what=f"{name} is {reason}")
    found, running = status["stages"]["sft"], condition_of(status, "Running")
    assert (running["status"], running["reason"]) == ("False", reason)
    assert running["message"] == f"stage sft: {found['message']}"
    assert status["summary"]["reason"] == reason
    assert (found["state"], found["restarts"]) == ("Starting", 0)
    return str(found["message"])


@pytest.mark.parametrize("reason", ["Invalid", "Forbidden"])
def test_a_policy_is_named_and_waited_for(
    operator: OperatorProcess, jobs: Jobs, policy: MakePolicy, reason: str
) -> None:
    """By default it answers 422, as the API server does to a manifest that is wrong."""
    denies = policy("jobs", "batch").deny("'jobs need a team'", reason)
    eventually(lambda: denies.name in refused_job(jobs))
    jobs.create("policed")
    message = children_ready(jobs, "policed", "PolicyDenied")
    assert message.startswith("Job policed-sft-1: ")
    assert f"ValidatingAdmissionPolicy '{denies.name}'" in message
    assert "jobs need a team" in message
    assert message.endswith("satisfy the policy in a new job, or change the policy")
    assert jobs.phase("policed") == "Pending"
    denies.close()
    jobs.run("policed", seconds=LONG)
    jobs.reaches("policed", "Running")
    assert jobs.condition("policed", "ChildrenReady")["status"] == "True"
    assert jobs.stage("policed")["restarts"] == 0


def test_a_policy_is_waited_for_no_longer_than_the_job_says(
    operator: OperatorProcess, jobs: Jobs, policy: MakePolicy
) -> None:
    denies = policy("configmaps").deny("'no ' + object.metadata.name", unless="!has(object.data)")
    eventually(
        lambda: (
            jobs.access.kubectl(
                "create",
                "configmap",
                "probe",
                "--from-literal=a=b",
                "--dry-run=server",
                f"--namespace={jobs.namespace}",
                check=False,
            ).returncode
        )
    )
    jobs.create("bounded", runPolicy={"pendingDeadlineSeconds": 8})
    message = children_ready(jobs, "bounded", "PolicyDenied")
    assert message.startswith("ConfigMap bounded-sft-1: ")
    eventually(lambda: jobs.condition("bounded", "Failed").get("status") == "True")
    failed = jobs.condition("bounded", "Failed")
    assert failed["reason"] == "PendingDeadlineExceeded"
    assert f"'{denies.name}'" in failed["message"]


def test_a_webhook_that_names_fields_is_no_judge_of_the_manifest(
    operator: OperatorProcess, jobs: Jobs, webhook: MakeWebhook
) -> None:
    """As those of controller-runtime answer, in the words of the API server's own validation."""
    causes = [{"reason": "FieldValueInvalid", "message": "no", "field": "metadata.labels[team]"}]
    status = {
        "code": 422,
        "reason": "Invalid",
        "message": 'Job.batch "judged-sft-1" is invalid: metadata.labels[team]: Required value',
        "details": {"name": "judged-sft-1", "kind": "Job", "causes": causes},
    }
    hook = webhook("jobs").answer(lambda _: status)
    eventually(lambda: "denied the request" in refused_job(jobs))
    jobs.create("judged")
    message = children_ready(jobs, "judged", "WebhookDenied")
    assert f'admission webhook "{hook.name}" denied the request' in message
    assert "metadata.labels[team]" in message
    assert jobs.phase("judged") == "Pending"
    hook.close()
    jobs.run("judged", seconds=LONG)
    jobs.reaches("judged", "Running")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("/spec/template/spec/priorityClassName", "'Not A Name'", "priorityClassName"),
        (
            "/spec/template/spec/containers/0",
            "Object.spec.template.spec.containers{name: 'mesh'}",
            "containers[0].image",
        ),
        ("/spec/template/metadata/labels/team", "'a b'", "spec.template.labels"),
    ],
)
def test_what_a_policy_writes_is_no_mistake_of_the_user(
    operator: OperatorProcess, jobs: Jobs, policy: MakePolicy, path: str, value: str, field: str
) -> None:
    writes = policy("jobs", "batch").write(path, value)
    eventually(lambda: field in refused_job(jobs))
    jobs.create("written")
    message = children_ready(jobs, "written", "InvalidMutation")
    assert message.startswith("Job written-sft-1: ")
    assert field in message
    assert jobs.phase("written") == "Pending"
    writes.close()
    jobs.run("written", seconds=LONG)
    jobs.reaches("written", "Running")
    assert jobs.stage("written")["restarts"] == 0


@pytest.mark.parametrize(
    ("operation", "reason", "said"),
    [
        (
            {"op": "add", "path": "/spec/nowhere/a", "value": "b"},
            "WebhookFailed",
            "add operation does not apply",
        ),
        (
            {"op": "test", "path": "/kind", "value": "Pod"},
            "WebhookFailed",
            "testing",
        ),
        (
            {"op": "add", "path": "/spec/activeDeadlineSeconds", "value": -1},
            "InvalidMutation",
            "spec.activeDeadlineSeconds",
        ),
    ],
)
def test_a_webhook_that_writes_nonsense_is_waited_for(
    operator: OperatorProcess,
    jobs: Jobs,
    webhook: MakeWebhook,
    operation: dict[str, Any],
    reason: str,
    said: str,
) -> None:
    hook = webhook("jobs").patch(operation)
    eventually(lambda: said in refused_job(jobs))
    jobs.create("patched")
    message = children_ready(jobs, "patched", reason)
    assert said in message
    assert jobs.phase("patched") == "Pending"
    hook.close()
    jobs.run("patched", seconds=LONG)
    jobs.reaches("patched", "Running")


def test_a_webhook_that_is_away_is_named(
    operator: OperatorProcess, jobs: Jobs, webhook: MakeWebhook
) -> None:
    hook = webhook("jobs").be_away()
    eventually(lambda: "failed calling webhook" in refused_job(jobs))
    jobs.create("alone")
    message = children_ready(jobs, "alone", "WebhookUnavailable")
    assert f'failed calling webhook "{hook.name}"' in message
    assert "connection refused" in message
    hook.close()
    jobs.run("alone", seconds=LONG)
    jobs.reaches("alone", "Running")


def test_a_webhook_that_does_not_answer_is_named(
    operator: OperatorProcess, jobs: Jobs, webhook: MakeWebhook
) -> None:
    """As behind a network that drops what it does not allow; the API server waits for 10 s."""
    hook = webhook("jobs").answer(lambda _: None, seconds=12.0)
    eventually(lambda: refused_job(jobs) and hook.asked, LONG)
    jobs.create("mute")
    message = children_ready(jobs, "mute", "WebhookUnavailable")
    assert f'failed calling webhook "{hook.name}"' in message
    assert "context deadline exceeded" in message


def test_what_pods_name_and_is_not_there(operator: OperatorProcess, jobs: Jobs) -> None:
    missing = {
        "priority": ({"priorityClassName": f"p-{jobs.namespace}"}, "PriorityClassMissing"),
        "account": ({"serviceAccountName": "robot"}, "ServiceAccountMissing"),
        "runtime": ({"runtimeClassName": f"r-{jobs.namespace}"}, "RuntimeClassMissing"),
    }
    for name, (template, _) in missing.items():
        jobs.create(name, template=template)
    for name, (template, reason) in missing.items():
        message = pods_refused(jobs, name, reason)
        assert message.startswith(f"Job {name}-sft-1: pods are forbidden: ")
        ((field, value),) = template.items()
        assert value in message
        assert f"create it, or name another one by {field}" in message.replace("template.", "")
    account = {"metadata": {"name": "robot"}}
    jobs.core.create_namespaced_service_account(jobs.namespace, account)
    jobs.run("account", seconds=LONG)
    jobs.reaches("account", "Running")


def test_what_a_namespace_does_not_allow_of_pods(operator: OperatorProcess, jobs: Jobs) -> None:
    enforce = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    jobs.core.patch_namespace(jobs.namespace, enforce)
    limits = [{"type": "Container", "max": {"cpu": "1"}, "default": {"memory": "1Gi"}}]
    limits[0] |= {"defaultRequest": {"cpu": "100m"}}
    ranges = {"metadata": {"name": "small"}, "spec": {"limits": limits}}
    jobs.core.create_namespaced_limit_range(jobs.namespace, ranges)
    large = {"limits": {"cpu": "2"}}
    eventually(lambda: "PodSecurity" in refused_pod(jobs))
    eventually(lambda: "maximum cpu usage" in refused_pod(jobs, resources=large))
    given = {
        "large": {"resources": large},
        "stretched": {"resources": {"requests": {"memory": "2Gi"}}},
        "rooted": {"securityContext": {"runAsNonRoot": False}},
        "decent": {},
    }
    for name, template in given.items():
        jobs.create(name, template=template)
    message = pods_refused(jobs, "large", "LimitRangeViolated")
    assert "maximum cpu usage per Container is 1, but limit is 2" in message
    message = pods_refused(jobs, "stretched", "InvalidPod")
    assert "must be less than or equal to memory limit of 1Gi" in message
    message = pods_refused(jobs, "rooted", "PodSecurityViolated")
    assert 'violates PodSecurity "restricted:latest"' in message
    assert "runAsNonRoot" in message
    jobs.run("decent")
    jobs.reaches("decent", "Running")


def test_a_quota_of_resources_that_pods_do_not_name(operator: OperatorProcess, jobs: Jobs) -> None:
    quota = {"metadata": {"name": "memory"}, "spec": {"hard": {"requests.memory": "1Gi"}}}
    jobs.core.create_namespaced_resource_quota(jobs.namespace, quota)
    eventually(lambda: "failed quota" in refused_pod(jobs))
    jobs.create("vague")
    message = pods_refused(jobs, "vague", "ResourcesRequired")
    assert "failed quota: memory: must specify requests.memory for: trainer" in message
    jobs.create("hungry", template={"resources": {"requests": {"memory": "2Gi"}}})
    message = pods_refused(jobs, "hungry", "QuotaExceeded")
    assert "requested: requests.memory=2Gi, used: ..., limited: requests.memory=1Gi" in message


@pytest.mark.parametrize("kind", ["policy", "webhook"])
def test_what_refuses_pods_in_other_words_each_time_is_told_in_the_same(
    operator: OperatorProcess, jobs: Jobs, policy: MakePolicy, webhook: MakeWebhook, kind: str
) -> None:
    if kind == "policy":
        words = "'pod ' + object.metadata.name + object.metadata.generateName + ' has no team'"
        denies = policy("pods").deny(words)
        reason = "PolicyDenied"
    else:
        denies = webhook("pods").answer(lambda pod: f"{pod['metadata']} {uuid4().hex[:5]}")
        reason = "WebhookDenied"
    eventually(lambda: denies.name in refused_pod(jobs))
    jobs.create("chatty", stages={"sft": stage(nodes=2, batchSize=32)})
    message = pods_refused(jobs, "chatty", reason)
    assert denies.name in message
    told, events = set(), []
    # The Job controller tries again after 10 and 20 s, and its Events are read as often.
    for _ in range(40):
        told.add(jobs.stage("chatty")["message"])
        time.sleep(1)
    events = events_of(jobs, "chatty")
    assert told == {message}
    assert len(events) == len(set(events)), events
    denies.close()
    # Whose pauses double: the next one may be more than a minute.
    jobs.run("chatty", n=2, seconds=400.0)
    jobs.reaches("chatty", "Running")


def test_labels_of_the_template_satisfy_who_looks_at_jobs_and_services(
    operator: OperatorProcess, jobs: Jobs, policy: MakePolicy
) -> None:
    has_team = "has(object.metadata.labels) && 'team' in object.metadata.labels"
    for plural, group in (("jobs", "batch"), ("services", ""), ("configmaps", ""), ("pods", "")):
        policy(plural, group).deny("'needs a team'", unless=has_team)
    eventually(lambda: "needs a team" in refused_job(jobs))
    eventually(lambda: "needs a team" in refused_pod(jobs))
    own = {"team": "a", "kueue.x-k8s.io/priority-class": "high"}
    jobs.create("labelled", template={"labels": own, "annotations": {"cost": "42"}})
    jobs.run("labelled")
    jobs.reaches("labelled", "Running")
    children = [
        jobs.batch.read_namespaced_job("labelled-sft-1", jobs.namespace),
        jobs.core.read_namespaced_service("labelled", jobs.namespace),
        jobs.core.read_namespaced_config_map("labelled-sft-1", jobs.namespace),
        *jobs.pods("labelled"),
    ]
    for child in children:
        assert own.items() <= child.metadata.labels.items()
        assert child.metadata.annotations["cost"] == "42"
        assert child.metadata.labels["app.kubernetes.io/managed-by"] == "rlhf-operator"


def test_claims_that_are_alike_are_mounted_each(operator: OperatorProcess, jobs: Jobs) -> None:
    alike = ["a" * 52 + "-train", "a" * 52 + "-eval", "rows.v1", "rows-v1"]
    for claim in alike:
        jobs.claim(claim)
    train, evaluation, dotted, dashed = ({"uri": f"pvc://{claim}/x.jsonl"} for claim in alike)
    both = {"dataset": train, "evalDataset": evaluation}
    jobs.create(
        "alike", stages={"sft": stage(**both), "reward": stage(dataset=dotted, evalDataset=dashed)}
    )
    for name in ("sft", "reward"):
        jobs.run("alike", name)
        jobs.reaches("alike", "Running", name)
        volumes = jobs.pods("alike", name)[0].spec.volumes
        claims = [
            v.persistent_volume_claim.claim_name for v in volumes if v.persistent_volume_claim
        ]
        assert len({volume.name for volume in volumes}) == len(volumes)
        assert len(set(claims) & set(alike)) == 2
