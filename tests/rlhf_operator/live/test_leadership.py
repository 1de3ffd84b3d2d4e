"""Two operators at once: one leads, the other takes over, and no attempt is started twice."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from admission import Webhook
from chart_roles import rendered
from cluster.kube_fixtures import Access
from interrupting import Proxy
from kubernetes import client
from operating import Jobs, OperatorProcess, eventually, stage

from rlhf_operator.leader import RENEW_SECONDS
from rlhf_operator.lease import LEASE_SECONDS, RETRY_SECONDS

LEASE = "rlhf-operator"
LONG = 100.0
"""Seconds: many times what it takes until a leader has ended, or is followed."""
STOPPING = "is stopping its work"
STOPPED = ("has stopped leading", "the work has not ended in time")
"""What a leader says when it does nothing more; after the second the process ends at once."""


def looks(access: Access, namespace: str) -> int:
    """How often operators have read the Lease; its holder writes it and does not read it."""
    assert access.own is not None
    path = f"/namespaces/{namespace}/leases/{LEASE}"
    return sum(
        event["verb"] == "get" and event["requestURI"].split("?")[0].endswith(path)
        for event in access.own.audit_events()
        if event["userAgent"].startswith("rlhf-operator")
    )


@contextmanager
def two(access: Access, namespace: str, folder: Path, proxy: Proxy) -> Iterator[Any]:
    """Two operators; the first leads, and reaches the API server by the proxy."""
    first = OperatorProcess(access, namespace, folder, kubeconfig=str(proxy.kubeconfig))
    second = None
    try:
        first.wait_until_leading()
        before = looks(access, namespace)
        second = OperatorProcess(access, namespace, folder)
        eventually(lambda: looks(access, namespace) > before, what="the second has seen the Lease")
        yield first, second
    finally:
        for each in filter(None, (first, second)):
            each.end(signal.SIGKILL)


@pytest.fixture
def proxy(control_plane: Access, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(control_plane.kubeconfig, tmp_path) as found:
        yield found


@pytest.fixture
def lease_rights(control_plane: Access, namespace: str) -> Callable[..., Path]:
    """Makes a user with the chart's rights on Lease and jobs, but for one verb on a resource."""
    own = control_plane.own
    if own is None:
        pytest.skip("needs a control plane of our own to make a user")
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"lead-{namespace}"}
    rbac = client.RbacAuthorizationV1Api(control_plane.api)

    def make(resource: str = "", verb: str = "") -> Path:
        for role in rendered(LEASE, namespace, namespace):
            if role["kind"] != "Role":
                continue
            for rule in role["rules"]:
                if resource in rule["resources"] and verb in rule["verbs"]:
                    rule["verbs"].remove(verb)
            role["rules"] = [rule for rule in role["rules"] if rule["verbs"]]
            name = role["metadata"]["name"]
            reference = {"apiGroup": user["apiGroup"], "kind": "Role", "name": name}
            rbac.create_namespaced_role(namespace, role)
            rbac.create_namespaced_role_binding(
                namespace,
                {"metadata": {"name": name}, "roleRef": reference, "subjects": [user]},
            )
        return own.kubeconfig_for(user["name"])

    return make


def make_deployment(jobs: Jobs) -> str:
    """The operator's own Deployment, without a pod; gives its uid."""
    labels = {"app": "operator"}
    pod = {"containers": [{"name": "operator", "image": "registry.test/operator:1"}]}
    template = {"metadata": {"labels": labels}, "spec": pod}
    spec = {"replicas": 0, "selector": {"matchLabels": labels}, "template": template}
    made = client.AppsV1Api(jobs.access.api).create_namespaced_deployment(
        jobs.namespace, {"metadata": {"name": LEASE}, "spec": spec}
    )
    return str(made.metadata.uid)


def said_at(operator: OperatorProcess, *words: str) -> datetime:
    """When the operator logged a line with any of these words for the first time."""
    lines = operator.log.read_text().splitlines()
    line = next(line for line in lines if any(each in line for each in words))
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")


def spec_of(jobs: Jobs) -> Any:
    leases = client.CoordinationV1Api(jobs.access.api)
    return leases.read_namespaced_lease(LEASE, jobs.namespace).spec


def lease_creations(jobs: Jobs) -> int:
    """How often an operator has made the Lease."""
    assert jobs.access.own is not None
    return sum(
        event["verb"] == "create"
        and event["userAgent"].startswith("rlhf-operator")
        and event["requestURI"].endswith(f"/namespaces/{jobs.namespace}/leases")
        for event in jobs.access.own.audit_events()
    )


def holder(operator: OperatorProcess) -> str:
    return f"operator-{operator.port}"


def test_the_second_takes_over_at_once_and_starts_nothing_twice(
    control_plane: Access, jobs: Jobs, tmp_path: Path
) -> None:
    first = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    first.wait_until_leading()
    second = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    try:
        jobs.create("both", stages={"sft": stage(), "reward": stage(model={"fromStage": "sft"})})
        jobs.run("both")
        jobs.reaches("both", "Running")
        assert " leads" not in second.log.read_text()
        eventually(lambda: "serving" in second.log.read_text())
        eventually(second.is_ready, what="the standby could take over")
        assert first.end() == 0
        second.wait_until_leading()
        jobs.finish("both")
        jobs.run("both", "reward")
        jobs.reaches("both", "Running", "reward")
        made = [job.metadata.name for job in jobs.batch.list_namespaced_job(jobs.namespace).items]
        assert sorted(made) == ["both-reward-1", "both-sft-1"]
        assert jobs.stage("both")["restarts"] == 0
    finally:
        first.end(signal.SIGKILL)
        second.end()


def test_a_killed_leader_is_followed(
    control_plane: Access, jobs: Jobs, tmp_path: Path, say: Callable[[str], None]
) -> None:
    first = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    first.wait_until_leading()
    second = OperatorProcess(control_plane, jobs.namespace, tmp_path)
    try:
        jobs.create("orphan")
        jobs.run("orphan")
        jobs.reaches("orphan", "Running")
        first.end(signal.SIGKILL)
        killed = time.monotonic()
        jobs.finish("orphan")
        eventually(lambda: jobs.phase("orphan") == "Succeeded", LONG)
        say(f"taken over after {time.monotonic() - killed:.1f} s")
        assert jobs.stage("orphan")["attempt"] == 1
    finally:
        first.end(signal.SIGKILL)
        second.end()


def test_a_leader_whose_renewals_hang_stops_before_another_leads(
    jobs: Jobs, tmp_path: Path, proxy: Proxy, say: Callable[[str], None]
) -> None:
    with two(jobs.access, jobs.namespace, tmp_path, proxy) as (first, second):
        hung = datetime.now()
        proxy.hang()
        eventually(lambda: " leads" in second.log.read_text(), LONG)
        took = said_at(second, " leads")
        told, stopped = said_at(first, STOPPING), said_at(first, *STOPPED)
        say(
            f"after the hang: told to stop {(told - hung).total_seconds():.1f} s, "
            f"stopped {(stopped - hung).total_seconds():.1f} s, "
            f"led by another {(took - hung).total_seconds():.1f} s"
        )
        assert told <= stopped < took
        assert spec_of(jobs).holder_identity == holder(second)
        # Bytes that come after all change nothing any more.
        proxy.flow()
        assert first.end(0) == 1
        assert spec_of(jobs).holder_identity == holder(second)


def test_renewals_that_a_webhook_calls_conflicts_are_not_repeated_without_a_pause(
    operator: OperatorProcess, jobs: Jobs, webhook: Callable[..., Webhook]
) -> None:
    conflict = {"code": 409, "reason": "Conflict", "message": "the object has been modified"}
    hook = webhook("leases", "UPDATE").answer(lambda _: conflict)
    assert operator.process.wait(LONG) == 1
    assert hook.name in operator.log.read_text()
    # One at once, to see whether another leads, and then one at a time until the work ends.
    assert 2 <= len(hook.asked) <= 2 + RENEW_SECONDS / RETRY_SECONDS, hook.asked


def test_refused_connections_end_nobody(
    control_plane: Access, jobs: Jobs, tmp_path: Path, proxy: Proxy
) -> None:
    with Proxy(control_plane.kubeconfig, tmp_path) as other:
        first = OperatorProcess(
            control_plane, jobs.namespace, tmp_path, kubeconfig=str(proxy.kubeconfig)
        )
        second = None
        try:
            first.wait_until_leading()
            seen = looks(control_plane, jobs.namespace)
            second = OperatorProcess(
                control_plane, jobs.namespace, tmp_path, kubeconfig=str(other.kubeconfig)
            )
            eventually(lambda: looks(control_plane, jobs.namespace) > seen)
            # One after the other: the leader's work ends when its renewals fail for seconds.
            for each, operator, complaint in (
                (proxy, first, "is not renewed: "),
                (other, second, "is not taken: "),
            ):
                each.refuse()
                eventually(lambda o=operator, c=complaint: c in o.log.read_text())
                each.accept()
            before = spec_of(jobs).renew_time
            eventually(lambda: spec_of(jobs).renew_time > before)
            assert spec_of(jobs).holder_identity == holder(first)
            assert first.process.poll() is None
            assert second.process.poll() is None
            assert " leads" not in second.log.read_text()
            assert first.end() == 0
            second.wait_until_leading()
        finally:
            for each in filter(None, (first, second)):
                each.end(signal.SIGKILL)


def test_a_stopped_leader_is_followed_at_once(
    jobs: Jobs, tmp_path: Path, proxy: Proxy, say: Callable[[str], None]
) -> None:
    with two(jobs.access, jobs.namespace, tmp_path, proxy) as (first, second):
        assert first.end() == 0
        second.wait_until_leading()
        waited = said_at(second, " leads") - said_at(first, "has stopped leading")
        say(f"followed after {waited.total_seconds():.1f} s")
        # Given back: nobody waits until it has run out.
        assert waited.total_seconds() < LEASE_SECONDS
        assert spec_of(jobs).lease_transitions == 1


def test_a_lease_that_is_deleted_under_its_leader_is_made_again(
    jobs: Jobs, tmp_path: Path, proxy: Proxy
) -> None:
    with two(jobs.access, jobs.namespace, tmp_path, proxy) as (first, second):
        acquired = spec_of(jobs).acquire_time
        jobs.access.kubectl("delete", "lease", LEASE, "-n", jobs.namespace)
        found = ("get", "lease", LEASE, "-n", jobs.namespace)
        eventually(lambda: jobs.access.kubectl(*found, check=False).returncode == 0)
        assert spec_of(jobs).holder_identity == holder(first)
        assert spec_of(jobs).acquire_time == acquired
        assert first.process.poll() is None
        assert " leads" not in second.log.read_text()


@pytest.mark.parametrize("held", [False, True], ids=["given back", "held"])
def test_the_lease_goes_with_the_deployment(
    jobs: Jobs, tmp_path: Path, lease_rights: Callable[..., Path], held: bool
) -> None:
    uid = make_deployment(jobs)
    leases = client.CoordinationV1Api(jobs.access.api)
    # As an older release leaves it, without an owner; one that was killed holds it on.
    spec: dict[str, Any] = {"leaseDurationSeconds": LEASE_SECONDS}
    if held:
        moment = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
        spec |= {"holderIdentity": "older-0", "acquireTime": moment, "renewTime": moment}
    made = leases.create_namespaced_lease(
        jobs.namespace, {"metadata": {"name": LEASE}, "spec": spec}
    )
    operator = OperatorProcess(
        jobs.access, jobs.namespace, tmp_path, kubeconfig=str(lease_rights()), DEPLOYMENT=LEASE
    )
    try:
        operator.wait_until_leading()
        taken = leases.read_namespaced_lease(LEASE, jobs.namespace)
        assert taken.metadata.uid == made.metadata.uid
        assert taken.spec.holder_identity == holder(operator)
        (owner,) = taken.metadata.owner_references
        assert (owner.kind, owner.name, owner.uid) == ("Deployment", LEASE, uid)
        # Nobody knows whether who holds it still runs.
        waited = (taken.spec.acquire_time - made.metadata.creation_timestamp).total_seconds()
        assert waited >= LEASE_SECONDS or not held
        # The operator still runs then, and makes a Lease that is lost to it again.
        client.AppsV1Api(jobs.access.api).delete_namespaced_deployment(LEASE, jobs.namespace)
        # That one goes, too, maybe before anybody could look at it.
        eventually(lambda: lease_creations(jobs))
    finally:
        assert operator.end() == 0
    found = ("get", "lease", LEASE, "-n", jobs.namespace)
    eventually(lambda: jobs.access.kubectl(*found, check=False).returncode == 1)
    time.sleep(1)
    assert jobs.access.kubectl(*found, check=False).returncode == 1
    assert "forbidden" not in operator.log.read_text()


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        (None, "`get` on the Deployment"),
        ({"resource": "leases", "verb": "delete"}, "`delete` on the Lease"),
        ({"resource": "deployments", "verb": "get"}, "`get` on the Deployment"),
    ],
    ids=["no Deployment", "no right on the Lease", "no right on the Deployment"],
)
def test_it_leads_with_a_lease_that_nobody_owns(
    jobs: Jobs,
    tmp_path: Path,
    lease_rights: Callable[..., Path],
    missing: dict[str, str] | None,
    remedy: str,
) -> None:
    if missing:
        make_deployment(jobs)
    leases = client.CoordinationV1Api(jobs.access.api)
    leases.create_namespaced_lease(jobs.namespace, {"metadata": {"name": LEASE}})
    rights = str(lease_rights(**(missing or {})))
    operator = OperatorProcess(
        jobs.access, jobs.namespace, tmp_path, kubeconfig=rights, DEPLOYMENT=LEASE
    )
    try:
        operator.wait_until_leading()
        before = spec_of(jobs).renew_time
        eventually(lambda: spec_of(jobs).renew_time > before)
    finally:
        assert operator.end() == 0
    log = operator.log.read_text()
    assert log.count("will outlive an uninstall") == 1
    assert f"grant the operator {remedy}" in log
    lease = leases.read_namespaced_lease(LEASE, jobs.namespace)
    assert not lease.metadata.owner_references
    assert (lease.spec.holder_identity, lease.spec.lease_duration_seconds) == ("", 1)


def test_a_missing_setting_is_named(control_plane: Access, tmp_path: Path) -> None:
    operator = OperatorProcess(
        control_plane, "default", tmp_path, TRAINER_IMAGE="", LEASE_NAME="other"
    )
    assert operator.end(0) == 78
    assert "RLHF_OPERATOR_TRAINER_IMAGE" in operator.log.read_text()


def test_it_tells_the_settings_of_its_file_and_its_variables(
    control_plane: Access, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("workers: 3\nresyncSeconds: 400\nlogLevel: WARNING\n")
    settings = {"CONFIG": str(path), "LOG_LEVEL": "INFO"}
    operator = OperatorProcess(control_plane, namespace, tmp_path, **settings)
    try:
        operator.wait_until_leading()
    finally:
        assert operator.end() == 0
    (line,) = (each for each in operator.log.read_text().splitlines() if " settings: " in each)
    told = json.loads(line.partition(" settings: ")[2])
    assert (told["workers"], told["resync_seconds"], told["log_level"]) == (3, 400, "INFO")
