"""Passes over a job: what they write and keep, also where its CRD is older than the operator."""

import asyncio
import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, cast

import aiohttp
import pytest
from aiolimiter import AsyncLimiter
from answering import Asked, Session, answering
from raw_gangs import UID, Raw, job_document, make_pod, owner

from rlhf_api.names import OPERATOR_NAME, Label, StageName
from rlhf_operator.memory import Lookup
from rlhf_operator.reconcile import Reconciler
from rlhf_operator.recorder import Recorder
from rlhf_operator.scraper import Scraper
from rlhf_operator.settings import Settings
from rlhf_operator.store import Kind, Store
from rlhf_operator.wakeups import SPARE_SECONDS

KEY = ("team", "demo")


class OldCluster:
    """Keeps what is made and written, but of a stage's status not some fields."""

    def __init__(self, unknown: set[str]) -> None:
        self.unknown, self.version, self.writes = unknown, 1, 0
        self.job = job_document()
        self.told: list[str] = []
        self.refused = False
        self.too_large = False
        self.unlisted: dict[str, int] = {}
        """Collections whose LIST is refused, with the HTTP status."""
        self.lists: Counter[str] = Counter()
        self.services: dict[str, Raw] = {}
        """By their paths."""

    def answer(self, asked: Asked) -> tuple[int, Raw]:
        if asked.method == "PATCH":
            return self._write(asked.body)
        if asked.method == "POST" and asked.path.endswith("/events"):
            self.told.append(asked.body["reason"])
        if asked.method == "POST" and self.refused:
            return 403, {"kind": "Status", "reason": "Forbidden", "message": "no", "code": 403}
        if asked.method == "POST" and self.too_large:
            return 413, {"kind": "Status", "message": "etcdserver: request is too large"}
        if asked.method == "POST" and asked.path.endswith("/services"):
            self.services[f"{asked.path}/{asked.body['metadata']['name']}"] = asked.body
        if asked.method == "POST":
            return 201, asked.body | {"metadata": self._stamped(asked.body)}
        if asked.path.endswith(("/events", "/pods")):
            plural = asked.path.rpartition("/")[2]
            self.lists[plural] += 1
            if plural in self.unlisted:
                code = self.unlisted[plural]
                return code, {"kind": "Status", "message": "etcdserver: timed out", "code": code}
            return 200, {"kind": "List", "items": [], "metadata": {"resourceVersion": "1"}}
        if asked.path in self.services:
            return 200, self.services[asked.path]
        missing = {"kind": "Status", "reason": "NotFound", "code": 404}
        return (200, {}) if "claims" in asked.path else (404, missing)

    def _write(self, patch: list[Raw]) -> tuple[int, Raw]:
        self.writes += 1
        version, status = (each["value"] for each in patch)
        if version != self.job["metadata"]["resourceVersion"]:
            return 409, {"kind": "Status", "reason": "Conflict", "code": 409}
        for stage in status["stages"].values():
            for field in self.unknown & stage.keys():
                del stage[field]
        self.job = self.job | {"metadata": self._stamped(self.job), "status": status}
        return 200, self.job

    def _stamped(self, raw: Raw) -> Raw:
        self.version += 1
        known: Raw = raw["metadata"]
        uid = {"uid": known.get("name", "event")}
        return uid | known | {"resourceVersion": str(self.version)}


class Passes:
    """Passes over a job whose Job is made and has no pods yet."""

    def __init__(self, cluster: OldCluster, session: Session) -> None:
        self.cluster, self.session, self.store = cluster, session, Store()
        self.store.put(Kind.RLHFJOB, cluster.job)
        self.recorder = Recorder(session.kube)
        # No rank 0 runs that could be asked.
        self._scraper = Scraper(cast(aiohttp.ClientSession, None), lambda key: None)
        self.take_over()

    def take_over(self) -> None:
        """As another replica does: nothing is known but what is written, and what is seen."""
        settings = Settings(trainer_image="registry.test/trainer:1")
        self.reconciler = Reconciler(
            self.session.kube, self.store, self._scraper, self.recorder, settings
        )

    def do(self, times: int) -> float | None:
        """Seconds until the last of so many passes asks for the next one."""
        again: float | None = None
        for _ in range(times):
            again = self.session.wait(self.reconciler.reconcile(KEY))
        return again

    def spend(self) -> AsyncLimiter:
        """Leave nothing of the spare budget, and let nothing wait for it; gives what it was."""
        known: AsyncLimiter = self.session.kube._spare_limit
        # One that is asked for more than it can ever hold raises ValueError.
        self.session.kube._spare_limit = AsyncLimiter(0.5, 3600.0)
        return known

    def not_before(self, when: float) -> None:
        """Set when what was refused may be tried again."""
        for refused in self.reconciler._memory[UID].refused.values():
            refused.not_before = when

    def children(self) -> Any:
        """The condition ChildrenReady."""
        conditions = self.cluster.job["status"]["conditions"]
        return next(each for each in conditions if each["type"] == "ChildrenReady")

    def told(self) -> list[str]:
        """Reasons of all Events up to now."""
        told: list[str] = self.session.wait(self._told())
        return told

    async def _told(self) -> list[str]:
        telling = asyncio.create_task(self.recorder.run())
        # One that is told after all others.
        self.recorder.tell(self.cluster.job, "Normal", "End", "the end")
        while self.cluster.told[-1:] != ["End"]:
            await asyncio.sleep(0.01)
        telling.cancel()
        return self.cluster.told


@pytest.fixture
def begin() -> Iterator["Begin"]:
    with ExitStack() as stack:

        def passes(unknown: set[str]) -> Passes:
            cluster = OldCluster(unknown)
            return Passes(cluster, stack.enter_context(answering(cluster.answer)))

        yield passes


Begin = Callable[[set[str]], Passes]


@pytest.mark.parametrize("unknown", [set(), {"createdAttempt"}, {"createdAttempt", "rows"}])
def test_what_the_crd_lacks_is_written_and_told_no_more_often_than_else(
    begin: Begin, unknown: set[str]
) -> None:
    passes = begin(unknown)
    passes.do(3)
    assert passes.told().count("Created") == 1
    writes = passes.cluster.writes
    passes.do(5)
    assert passes.cluster.writes == writes
    assert passes.told().count("Created") == 1


def test_a_status_that_somebody_else_has_written_counts_as_it_is(begin: Begin) -> None:
    passes = begin({"createdAttempt"})
    passes.do(3)
    raw = copy.deepcopy(passes.cluster.job)
    raw["metadata"]["resourceVersion"] = "99"
    raw["status"]["stages"]["sft"]["message"] = "mine"
    passes.cluster.job, passes.cluster.version = raw, 100
    passes.store.put(Kind.RLHFJOB, raw)
    writes = passes.cluster.writes
    passes.do(1)
    assert passes.cluster.writes == writes + 1
    assert passes.cluster.job["status"]["stages"]["sft"]["message"] != "mine"


def test_nothing_is_kept_of_what_events_told_of_an_attempt_that_is_gone(begin: Begin) -> None:
    passes = begin(set())
    passes.do(3)
    memory = passes.reconciler._memory[UID]
    memory.waits[StageName.SFT, 9] = Lookup(0.0)
    passes.do(1)
    assert memory.waits == {}
    assert set(memory.lookups) == {(StageName.SFT, 1)}


def test_an_explanation_with_an_event_waits_for_the_budget_and_keeps_no_worker(
    begin: Begin,
) -> None:
    passes = begin(set())
    passes.do(1)
    writes, budget = passes.cluster.writes, passes.spend()
    # "Created" is to be told, and in status that the attempt is made.
    for _ in range(3):
        again = passes.do(1)
        assert again is not None
        assert SPARE_SECONDS[0] <= again <= SPARE_SECONDS[1]
    assert passes.cluster.writes == writes
    passes.session.kube._spare_limit = budget
    passes.do(2)
    assert passes.cluster.writes == writes + 1
    assert passes.told() == ["Created", "End"]


def test_what_is_decided_or_tried_waits_for_no_budget(begin: Begin) -> None:
    passes = begin(set())
    passes.spend()
    passes.cluster.refused = True
    passes.do(1)
    assert passes.cluster.job["status"]["stages"]["sft"]["state"] == "Starting"
    passes.do(1)
    assert not passes.store.gangs(UID)
    # Its next try may be made now, and is told of before.
    passes.not_before(0.0)
    passes.cluster.refused = False
    writes = passes.cluster.writes
    passes.do(1)
    assert passes.cluster.writes == writes + 1
    assert passes.store.gangs(UID)


class TwoStages(Passes):
    """Passes over a job of two stages, both of which have a Job without pods."""

    def __init__(self, cluster: OldCluster, session: Session) -> None:
        stages = cluster.job["spec"]["stages"]
        stages["reward"] = copy.deepcopy(stages["sft"])
        super().__init__(cluster, session)
        self.do(3)
        assert len(self.store.gangs(UID)) == 2

    def turn(self, condition: str) -> None:
        """Let the Job of sft say that it has ended; its pods are not seen."""
        jobs = (gang.job for gang in self.store.gangs(UID))
        job = next(each for each in jobs if each["metadata"]["name"] == "demo-sft-1")
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        turned = {"type": condition, "status": "True", "lastTransitionTime": now}
        stamped = self.cluster._stamped(job)
        self.store.put(Kind.JOB, job | {"metadata": stamped, "status": {"conditions": [turned]}})

    def suspend(self) -> None:
        job = self.cluster.job
        spec = job["spec"] | {"suspend": True}
        self.cluster.job = job | {"spec": spec, "metadata": self.cluster._stamped(job)}
        self.store.put(Kind.RLHFJOB, self.cluster.job)

    def states(self) -> tuple[str, str]:
        stages = self.cluster.job["status"]["stages"]
        return stages["sft"]["state"], stages["reward"]["state"]


@pytest.mark.parametrize(
    ("unlisted", "condition", "told"),
    [
        ({"pods": 500}, "Complete", "listing the pods of Job demo-sft-1: etcdserver: timed out"),
        ({"pods": 429}, "Failed", "listing the pods of Job demo-sft-1: the API server is busy"),
        ({"events": 500}, "Failed", "listing Events of the pods of Job demo-sft-1: etcdserver"),
    ],
)
def test_a_refused_list_before_a_verdict_delays_this_verdict_alone(
    unlisted: dict[str, int], condition: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a slow machine Events would be asked, too, why the other Job lacks pods.
    monkeypatch.setattr("rlhf_operator.absences.LACKING_SECONDS", 3600.0)
    cluster = OldCluster(set())
    with answering(cluster.answer) as session:
        passes = TwoStages(cluster, session)
        passes.turn(condition)
        passes.suspend()
        cluster.unlisted = unlisted
        (plural,) = unlisted
        again = passes.do(1)
        assert again is not None
        passes.not_before(math.inf)
        passes.do(4)
        assert passes.states() == ("Starting", "Suspended")
        ready = passes.children()
        assert (ready["status"], ready["reason"]) == ("False", "ApiError")
        assert ready["message"].startswith(told)
        # At its own time, whatever wakes the job.
        assert cluster.lists[plural] == 1
        assert again <= 1
        cluster.unlisted = {}
        passes.not_before(0.0)
        passes.do(1)
        assert not passes.reconciler._memory[UID].refused
        passes.do(1)
        assert passes.states()[0] != "Starting"
        assert passes.children()["status"] == "True"


def pod_of_gang(cluster: OldCluster, index: int) -> Raw:
    """One of a gang that runs."""
    name = f"demo-sft-1-{index}-x"
    metadata = {
        "name": name,
        "uid": name,
        "namespace": "team",
        "ownerReferences": owner("demo-sft-1"),
    }
    metadata["labels"] = {Label.MANAGED_BY: OPERATOR_NAME}
    pod = make_pod(index, metadata=metadata)
    return pod | {"metadata": cluster._stamped(pod)}


def test_a_service_that_leads_elsewhere_is_told_by_who_takes_over_until_it_is_mended() -> None:
    cluster = OldCluster(set())
    cluster.job["spec"]["stages"]["sft"]["nodes"] = 2
    with answering(cluster.answer) as session:
        passes = Passes(cluster, session)
        passes.do(2)
        (service,) = cluster.services.values()
        wanted = service["spec"]["selector"]
        service["spec"]["selector"] = {"app": "other"}
        for index in range(2):
            passes.store.put(Kind.POD, pod_of_gang(cluster, index))
        passes.do(2)
        assert cluster.job["status"]["stages"]["sft"]["state"] == "Running"
        assert passes.children()["reason"] == "ChildChanged"
        passes.take_over()
        passes.do(2)
        assert passes.children()["reason"] == "ChildChanged"
        service["spec"]["selector"] = wanted
        passes.not_before(0.0)
        passes.do(2)
        assert passes.children()["status"] == "True"


def test_a_service_that_cannot_be_made_anew_ends_no_stage_whose_pods_run() -> None:
    cluster = OldCluster(set())
    cluster.job["spec"]["stages"]["sft"]["nodes"] = 2
    with answering(cluster.answer) as session:
        passes = Passes(cluster, session)
        passes.do(2)
        cluster.services.clear()
        cluster.too_large = True
        for index in range(2):
            passes.store.put(Kind.POD, pod_of_gang(cluster, index))
        passes.do(3)
        assert cluster.job["status"]["stages"]["sft"]["state"] == "Running"
        children = passes.children()
        assert (children["status"], children["reason"]) == ("False", "InvalidSpec")
        assert children["message"].startswith("Service demo: ")
