"""What the operator says when it lacks rights of the chart's, and that it goes on with them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.control_plane import ControlPlane
from kubernetes import client
from operating import Jobs, OperatorProcess, children_ready, eventually, stage

from rlhf_api.names import Label

LONG = 90.0
"""Seconds until what was refused a few times is tried again."""


class Rights:
    """Of a user in a namespace, all that the operator needs, but for what is taken away."""

    def __init__(self, jobs: Jobs, own: ControlPlane) -> None:
        self._jobs, self._rbac = jobs, client.RbacAuthorizationV1Api(jobs.access.api)
        self.user = f"half-{jobs.namespace}"
        self.kubeconfig = own.kubeconfig_for(self.user)
        role = {"metadata": {"name": "half"}, "rules": self._rules({})}
        self._rbac.create_namespaced_role(jobs.namespace, role)
        group = "rbac.authorization.k8s.io"
        binding = {
            "metadata": {"name": "half"},
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "half"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": self.user}],
        }
        self._rbac.create_namespaced_role_binding(jobs.namespace, binding)

    def without(self, **verbs: str) -> None:
        """Take away one verb for each of these resources, and give back all others."""
        body = {"rules": self._rules(verbs)}
        self._rbac.patch_namespaced_role("half", self._jobs.namespace, body)
        for resource in _VERBS:
            for verb in _VERBS[resource]:
                eventually(lambda r=resource, v=verb: self._may(v, r) == (verbs.get(r) != v))

    def _rules(self, missing: dict[str, str]) -> list[dict[str, list[str]]]:
        own = [
            {"apiGroups": ["rlhf.dev"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]},
            {"apiGroups": [""], "resources": ["pods", "events"], "verbs": ["*"]},
        ]
        children = [
            {
                "apiGroups": ["batch" if resource == "jobs" else ""],
                "resources": [resource],
                "verbs": [verb for verb in verbs if missing.get(resource) != verb],
            }
            for resource, verbs in _VERBS.items()
            if set(verbs) != {missing.get(resource)}
        ]
        return own + children

    def _may(self, verb: str, resource: str) -> bool:
        group = "batch" if resource == "jobs" else ""
        asked = {"namespace": self._jobs.namespace, "verb": verb, "resource": resource}
        spec = {"user": self.user, "resourceAttributes": asked | {"group": group}}
        api = client.AuthorizationV1Api(self._jobs.access.api)
        return bool(api.create_subject_access_review({"spec": spec}).status.allowed)


_VERBS = {
    "services": ("get", "create"),
    "configmaps": ("get", "create", "delete"),
    "persistentvolumeclaims": ("get",),
    "jobs": ("get", "list", "watch", "create", "delete"),
}


@pytest.fixture
def rights(own_control_plane: ControlPlane, jobs: Jobs) -> Rights:
    return Rights(jobs, own_control_plane)


@pytest.fixture
def limited(rights: Rights, jobs: Jobs, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator with those rights."""
    kubeconfig = str(rights.kubeconfig)
    process = OperatorProcess(jobs.access, jobs.namespace, tmp_path, kubeconfig=kubeconfig)
    try:
        process.wait_until_leading()
        yield process
    finally:
        process.end()
    assert "Traceback" not in process.log.read_text(), process.log.read_text()


def test_an_operator_that_may_not_says_what_it_needs_until_it_may(
    rights: Rights, limited: OperatorProcess, jobs: Jobs
) -> None:
    rights.without(jobs="delete")
    jobs.create("kept")
    jobs.run("kept")
    jobs.reaches("kept", "Running")
    jobs.patch("kept", suspend=True)
    message = children_ready(jobs, "kept", "Forbidden", stage_reason="Stopping")
    assert "deleting Job kept-sft-1: " in message
    assert 'cannot delete resource "jobs"' in message
    missing = {
        "unserved": ("services", "create", "Service unserved"),
        "claimless": ("persistentvolumeclaims", "get", "reading PersistentVolumeClaim runs"),
        "jobless": ("jobs", "create", "Job jobless-sft-1"),
    }
    for name, (resource, verb, child) in missing.items():
        rights.without(**{"jobs": "delete", resource: verb})
        jobs.create(name)
        message = children_ready(jobs, name, "Forbidden")
        assert message.startswith(f"{child}: ")
        assert f'cannot {verb} resource "{resource}"' in message
        assert message.endswith("grant it to the operator")
    rights.without()
    for name in missing:
        eventually(lambda name=name: jobs.pods(name), seconds=LONG)
        jobs.run(name)
        jobs.reaches(name, "Running")
    eventually(lambda: jobs.phase("kept") == "Suspended", seconds=LONG)
    for name in ("kept", *missing):
        ready = jobs.condition(name, "ChildrenReady")
        assert (ready["status"], ready["reason"]) == ("True", "Created"), name


def test_a_leftover_of_a_finished_job_that_may_not_be_deleted_is_told(
    rights: Rights, limited: OperatorProcess, jobs: Jobs
) -> None:
    """A Job of which nothing says any more whose it is while its job ends, and which is given back
    after that."""
    jobs.create("left")
    jobs.run("left")
    jobs.reaches("left", "Running")
    uid = jobs.get("left")["metadata"]["uid"]

    def mark(value: str | None) -> None:
        body = {"metadata": {"labels": {Label.JOB_UID: value}}}
        jobs.batch.patch_namespaced_job("left-sft-1", jobs.namespace, body)

    mark(None)
    owners = jobs.own("left-sft-1", [])
    jobs.run("left", attempt=2)
    jobs.reaches("left", "Running", attempt=2)
    jobs.finish("left", attempt=2)
    eventually(lambda: jobs.phase("left") == "Succeeded")
    rights.without(jobs="delete")
    jobs.own("left-sft-1", owners)
    mark(uid)
    eventually(lambda: jobs.condition("left", "ChildrenReady").get("status") == "False")
    told = jobs.condition("left", "ChildrenReady")
    assert told["reason"] == "Forbidden"
    assert "deleting Job left-sft-1: " in told["message"]
    assert jobs.phase("left") == "Succeeded"
    rights.without()
    eventually(lambda: not jobs.pods("left"), seconds=LONG)
    eventually(lambda: jobs.condition("left", "ChildrenReady")["status"] == "True")


def test_an_attempt_that_may_not_be_removed_is_told_and_stays(
    rights: Rights, limited: OperatorProcess, jobs: Jobs
) -> None:
    rights.without(configmaps="delete")
    jobs.create("heap", runPolicy={"keepFailedAttempts": 0})
    jobs.run("heap")
    jobs.reaches("heap", "Running")
    jobs.finish("heap", code=1)
    eventually(lambda: jobs.condition("heap", "ChildrenReady").get("reason") == "Forbidden")
    told = jobs.condition("heap", "ChildrenReady")["message"]
    assert told.startswith("deleting ConfigMap heap-sft-1: ")
    assert 'cannot delete resource "configmaps"' in told
    # The next attempt does not wait for it.
    jobs.run("heap", attempt=2)
    jobs.reaches("heap", "Running", attempt=2)
    assert jobs.pods("heap")
    rights.without()
    eventually(lambda: not jobs.pods("heap"), seconds=LONG)
    eventually(lambda: jobs.condition("heap", "ChildrenReady")["status"] == "True")


def test_a_job_that_may_not_be_asked_for_is_neither_lost_nor_in_the_way(
    rights: Rights, limited: OperatorProcess, jobs: Jobs
) -> None:
    """That of one stage is deleted, and nobody can say that it is not only out of sight."""
    jobs.create("unread", stages={"sft": stage(), "reward": stage()})
    for name in ("sft", "reward"):
        jobs.run("unread", name)
        jobs.reaches("unread", "Running", name)
    rights.without(jobs="get")
    path = "Background"
    jobs.batch.delete_namespaced_job("unread-sft-1", jobs.namespace, propagation_policy=path)
    eventually(lambda: jobs.condition("unread", "ChildrenReady").get("status") == "False")
    told = jobs.condition("unread", "ChildrenReady")
    assert told["reason"] == "Forbidden"
    assert told["message"].startswith("reading Job unread-sft-1: ")
    assert 'cannot get resource "jobs"' in told["message"]
    assert told["message"].endswith("grant it to the operator")
    # The other stage goes on, and so does what is asked of the job.
    jobs.finish("unread", "reward")
    jobs.reaches("unread", "Succeeded", "reward")
    jobs.patch("unread", suspend=True)
    found = jobs.reaches("unread", "Stopping")
    assert found["restarts"] == 0
    rights.without()
    eventually(lambda: jobs.phase("unread") == "Suspended", seconds=LONG)
    eventually(lambda: jobs.condition("unread", "ChildrenReady")["status"] == "True")
    jobs.patch("unread", suspend=False)
    jobs.run("unread", attempt=2)
    jobs.reaches("unread", "Running", attempt=2)


def test_a_job_out_of_sight_that_may_not_be_asked_for_trains_on(
    rights: Rights, limited: OperatorProcess, jobs: Jobs
) -> None:
    """Neither before it was read for the first time nor after that is another one made."""
    jobs.create("veiled")
    jobs.run("veiled")
    jobs.reaches("veiled", "Running")
    rights.without(jobs="get")
    jobs.relabel("veiled-sft-1", None)
    for _ in range(2):
        eventually(lambda: jobs.condition("veiled", "ChildrenReady")["reason"] == "Forbidden")
        told = jobs.condition("veiled", "ChildrenReady")["message"]
        assert told.startswith("reading Job veiled-sft-1: ")
        rights.without()
        eventually(lambda: jobs.condition("veiled", "ChildrenReady")["status"] == "True", LONG)
        assert jobs.condition("veiled", "ChildrenIntact")["reason"] == "ChildChanged"
        rights.without(jobs="get")
    found = jobs.stage("veiled")
    assert (found["state"], found["attempt"], found["restarts"]) == ("Running", 1, 0)
    jobs.finish("veiled")
    rights.without()
    eventually(lambda: jobs.phase("veiled") == "Succeeded", LONG)
