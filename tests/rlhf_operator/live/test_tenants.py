"""Watched namespaces, and the CRD, that are not there, go, and come back under the operator."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from chart_roles import RELEASE, grant
from cluster.kube_fixtures import CRD, Access
from operating import Jobs, OperatorProcess, eventually

from rlhf_operator.watches import NAMESPACE_SECONDS

FIRST = pytest.mark.parametrize("first", [True, False], ids=["first of two", "last of two"])
RIGHTS = pytest.mark.parametrize("of_the_chart", [False, True], ids=["admin", "chart's Role"])
PATIENCE = 60.0
GONE_SECONDS = 5 * NAMESPACE_SECONDS
"""For a namespace that goes without its rights, which is asked for now and then alone."""

Start = Callable[..., OperatorProcess]


class Tenant:
    """A namespace that comes and goes, with the chart's Role for one user."""

    def __init__(self, access: Access, home: str) -> None:
        self.access, self.home, self.name = access, home, f"test-{uuid4().hex[:8]}"
        self.jobs = Jobs(access, self.name)

    def make(self) -> None:
        """Make it, with the claim and the rights."""
        self.jobs.core.create_namespace({"metadata": {"name": self.name}})
        grant(self.access, self.name, self.home)
        accounts = self.jobs.core.list_namespaced_service_account
        eventually(lambda: accounts(self.name).items)
        self.jobs.claim()

    def delete(self) -> None:
        """Delete it, and wait until it is gone."""
        self.jobs.core.delete_namespace(self.name)
        gone = ("get", "namespace", self.name)
        eventually(lambda: self.access.kubectl(*gone, check=False).returncode == 1, PATIENCE)


@pytest.fixture
def tenant(control_plane: Access, namespace: str) -> Iterator[Tenant]:
    """A namespace that is not there yet; the operator's own is `namespace`."""
    if control_plane.own is None:
        pytest.skip("needs a control plane of our own to make a user")
    found = Tenant(control_plane, namespace)
    yield found
    control_plane.kubectl("delete", "namespace", found.name, "--ignore-not-found", "--wait=false")


@pytest.fixture
def start(control_plane: Access, namespace: str, tmp_path: Path) -> Iterator[Start]:
    """Starts an operator that never resyncs; none may complain of a fault of its own."""
    started: list[OperatorProcess] = []

    def begin(of_the_chart: bool, *watched: str) -> OperatorProcess:
        settings: dict[str, Any] = {"RESYNC_SECONDS": "10000", "NAMESPACES": json.dumps(watched)}
        if of_the_chart:
            assert control_plane.own is not None
            grant(control_plane, namespace, namespace)
            settings["kubeconfig"] = str(control_plane.own.kubeconfig_for(f"user-{namespace}"))
            settings["LEASE_NAME"] = f"{RELEASE}-rlhf-operator"
        operator = OperatorProcess(control_plane, namespace, tmp_path, **settings)
        started.append(operator)
        operator.wait_until_leading()
        return operator

    yield begin
    for each in started:
        each.end_well()


def is_missing(operator: OperatorProcess, namespace: str) -> bool:
    return operator.metric("rlhf_operator_namespace_missing", watch=namespace) == 1


def runs(jobs: Jobs, name: str) -> None:
    jobs.create(name)
    jobs.run(name)
    jobs.reaches(name, "Running")


def assert_well(operator: OperatorProcess) -> None:
    eventually(operator.is_ready)
    assert operator.probe("/healthz") == (200, "ok")


@FIRST
@RIGHTS
def test_a_namespace_that_is_not_there_yet(
    jobs: Jobs, tenant: Tenant, start: Start, of_the_chart: bool, first: bool
) -> None:
    watched = (tenant.name, jobs.namespace)
    operator = start(of_the_chart, *(watched if first else reversed(watched)))
    eventually(lambda: is_missing(operator, tenant.name))
    assert f"namespace {tenant.name}: not watched: it does not exist" in operator.log.read_text()
    assert_well(operator)
    runs(jobs, "other")
    tenant.make()
    runs(tenant.jobs, "late")
    eventually(lambda: not is_missing(operator, tenant.name))
    assert f"namespace {tenant.name}: watched again" in operator.log.read_text()
    assert_well(operator)


@pytest.mark.timeout(3 * GONE_SECONDS)
@pytest.mark.parametrize(
    ("of_the_chart", "first"), [(False, True), (True, False)], ids=["admin", "chart's Role"]
)
def test_a_namespace_that_goes_and_comes_back(
    jobs: Jobs, tenant: Tenant, start: Start, of_the_chart: bool, first: bool
) -> None:
    tenant.make()
    watched = (tenant.name, jobs.namespace)
    operator = start(of_the_chart, *(watched if first else reversed(watched)))
    runs(tenant.jobs, "again")
    tenant.delete()
    eventually(lambda: is_missing(operator, tenant.name), GONE_SECONDS)
    assert f"namespace {tenant.name}: not watched: it " in operator.log.read_text()
    assert_well(operator)
    runs(jobs, "other")
    assert not is_missing(operator, jobs.namespace)
    tenant.make()
    # Of the same name: nothing is left of the one that went.
    runs(tenant.jobs, "again")
    assert tenant.jobs.stage("again")["attempt"] == 1
    eventually(lambda: not is_missing(operator, tenant.name))
    assert_well(operator)


def test_a_crd_that_is_not_there_yet_and_goes_and_comes_back(jobs: Jobs, start: Start) -> None:
    if jobs.access.own is None:
        pytest.skip("would delete every RLHFJob of a cluster that is not of the tests' own")
    apply = ("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    delete = ("delete", "-f", str(CRD), "--timeout=30s")
    told = "the CRD rlhfjobs.rlhf.dev is not installed; apply crds/rlhfjobs.yaml"

    def served() -> bool:
        return jobs.access.kubectl("get", "rlhfjobs", "-A", check=False).returncode == 0

    try:
        jobs.access.kubectl(*delete)
        eventually(lambda: not served())
        operator = start(False, jobs.namespace)
        for number in range(2):
            eventually(lambda: operator.probe("/readyz") == (500, told))
            assert operator.probe("/healthz") == (200, "ok")
            assert not is_missing(operator, jobs.namespace)
            jobs.access.kubectl(*apply)
            eventually(served)
            runs(jobs, f"job-{number}")
            assert_well(operator)
            if number == 0:
                jobs.access.kubectl(*delete)
        assert operator.log.read_text().count(f"not watched: {told}") >= 2
    finally:
        jobs.access.kubectl(*apply)
        eventually(served)
