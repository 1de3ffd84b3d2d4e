"""Passes over a job: what they write and keep, also where its CRD is older than the operator."""

import asyncio
import copy
from typing import Any, cast

import aiohttp
import pytest
from raw_gangs import UID, Raw

from rlhf_api.names import StageName
from rlhf_operator.kube import Kube, Listing
from rlhf_operator.memory import Lookup
from rlhf_operator.reconcile import Reconciler
from rlhf_operator.recorder import Recorder
from rlhf_operator.scraper import Scraper
from rlhf_operator.settings import Settings
from rlhf_operator.store import Kind, Store

KEY = ("team", "demo")


class OldCluster(Kube):
    """Keeps what is made and written, but of a stage's status not some fields."""

    def __init__(self, unknown: set[str]) -> None:
        self.unknown, self.version, self.writes = unknown, 1, 0

    def has_spare(self) -> bool:
        return True

    async def find(self, path: str) -> Raw | None:
        return {} if "claims" in path else None

    async def list(self, path: str, *selectors: str, **_: Any) -> Listing:
        return Listing([], self.version)

    async def request(self, method: str, path: str, body: Any = None, **_: Any) -> Any:
        assert method == "POST"
        return copy.deepcopy(body) | {"metadata": self._stamped(body)}

    async def write_status(self, raw: Raw, status: Raw, *, spare: bool = False) -> Raw:
        self.writes += 1
        kept = copy.deepcopy(status)
        for stage in kept["stages"].values():
            for field in self.unknown & stage.keys():
                del stage[field]
        return raw | {"metadata": self._stamped(raw), "status": kept}

    def _stamped(self, raw: Raw) -> Raw:
        self.version += 1
        known: Raw = raw["metadata"]
        return {"uid": known["name"]} | known | {"resourceVersion": str(self.version)}


class Told(Recorder):
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def tell(self, raw: Raw, kind: str, reason: str, message: str) -> None:
        self.reasons.append(str(reason))


def document() -> Raw:
    data = {"uri": "pvc://data/x"}
    return {
        "apiVersion": "rlhf.dev/v1alpha1",
        "kind": "RLHFJob",
        "metadata": {"name": "demo", "namespace": "team", "uid": UID, "resourceVersion": "1"},
        "spec": {
            "storage": {"uri": "pvc://runs/x"},
            "stages": {"sft": {"model": {"uri": "hf://a/b"}, "dataset": data}},
        },
    }


class Passes:
    """Passes over a job whose Job is made and has no pods yet."""

    def __init__(self, unknown: set[str]) -> None:
        self.kube, self.store, self.told = OldCluster(unknown), Store(), Told()
        self.store.put(Kind.RLHFJOB, document())
        scraper = Scraper(cast(aiohttp.ClientSession, None), lambda key: None)
        settings = Settings(trainer_image="registry.test/trainer:1")
        self.reconciler = Reconciler(self.kube, self.store, scraper, self.told, settings)

    def do(self, times: int) -> None:
        for _ in range(times):
            asyncio.run(self.reconciler.reconcile(KEY))


@pytest.mark.parametrize("unknown", [set(), {"createdAttempt"}, {"createdAttempt", "rows"}])
def test_what_the_crd_lacks_is_written_and_told_no_more_often_than_else(unknown: set[str]) -> None:
    passes = Passes(unknown)
    passes.do(3)
    assert passes.told.reasons.count("Created") == 1
    writes = passes.kube.writes
    passes.do(5)
    assert passes.kube.writes == writes
    assert passes.told.reasons.count("Created") == 1


def test_a_status_that_somebody_else_has_written_counts_as_it_is() -> None:
    passes = Passes({"createdAttempt"})
    passes.do(3)
    raw = copy.deepcopy(passes.store.job(KEY))
    assert raw is not None
    raw["metadata"]["resourceVersion"] = "99"
    raw["status"]["stages"]["sft"]["message"] = "mine"
    passes.store.put(Kind.RLHFJOB, raw)
    passes.kube.version = 100
    writes = passes.kube.writes
    passes.do(1)
    assert passes.kube.writes == writes + 1
    found = passes.store.job(KEY)
    assert found is not None
    assert found["status"]["stages"]["sft"]["message"] != "mine"


def test_nothing_is_kept_of_what_events_told_of_an_attempt_that_is_gone() -> None:
    passes = Passes(set())
    passes.do(3)
    memory = passes.reconciler._memory[UID]
    memory.waits[StageName.SFT, 9] = Lookup(0.0)
    passes.do(1)
    assert memory.waits == {}
    assert set(memory.lookups) == {(StageName.SFT, 1)}
