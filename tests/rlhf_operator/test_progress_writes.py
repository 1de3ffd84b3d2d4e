"""How often mere progress is written, however many jobs run and whatever wakes them."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from answering import served
from raw_gangs import Raw, job_document, make_pod, ready

from rlhf_operator.kube import Kube
from rlhf_operator.reconcile import Reconciler
from rlhf_operator.recorder import Recorder
from rlhf_operator.scraper import Scraper
from rlhf_operator.serve import _work
from rlhf_operator.settings import Settings
from rlhf_operator.store import Kind, Store
from rlhf_operator.work_queue import WorkQueue

JOBS = 30
WRITES_PER_SECOND = 20
"""Of progress, in all."""
WRITES = 100
"""Which are waited for: five seconds' worth."""
ON_THEIR_WAY = 10
"""Writes of what was read before they are counted."""
MADE = "2026-01-01T00:00:00Z"


class Running:
    """An API server that keeps what is written, and rank 0 of all jobs, which goes on fast."""

    def __init__(self) -> None:
        self.version, self.step = 1, 0
        self.jobs: dict[str, Raw] = {}
        self.writes: Counter[str] = Counter()

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/metrics":
            self.step += 1
            text = f"rlhf_train_step {self.step}\nrlhf_train_total_steps 1000000\n"
            return web.Response(text=text)
        body = json.loads(await request.text() or "null")
        if request.method == "PATCH":
            name = request.path.split("/")[-2]
            self.writes[name] += 1
            self.jobs[name] = self.stamped(self.jobs[name] | {"status": body[1]["value"]})
            return web.json_response(self.jobs[name])
        if request.method == "POST":
            return web.json_response(self.stamped(body), status=201)
        if request.path.endswith(("/events", "/pods")):
            return web.json_response({"kind": "List", "items": [], "metadata": {}})
        return web.json_response({})

    def stamped(self, raw: Raw) -> Raw:
        self.version += 1
        metadata = {"uid": f"uid-{self.version}", "creationTimestamp": MADE} | raw["metadata"]
        return raw | {"metadata": metadata | {"resourceVersion": str(self.version)}}

    def steps(self) -> list[int]:
        """How far the jobs are, as their status says."""
        found = (
            job.get("status", {}).get("stages", {}).get("sft", {}) for job in self.jobs.values()
        )
        return [(stage.get("progress") or {}).get("step", 0) for stage in found]


@asynccontextmanager
async def operating(cluster: Running, kube: Kube, store: Store) -> AsyncIterator[WorkQueue]:
    """Workers and scrapes, as a leader runs them; each job may be asked all the time."""
    queue = WorkQueue()
    port = int(kube.client.configuration.host.rpartition(":")[2])
    async with aiohttp.ClientSession() as session:
        scraper = Scraper(session, queue.add, port=port, interval=0.01)
        settings = Settings(trainer_image="registry.test/trainer:1")
        reconciler = Reconciler(kube, store, scraper, Recorder(kube), settings)
        tasks = [asyncio.create_task(_work(reconciler, queue)) for _ in range(8)]
        tasks.append(asyncio.create_task(scraper.run()))
        try:
            yield queue
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def run_pod(cluster: Running, job: Raw) -> Raw:
    """The pod of a batch/v1 Job, which runs."""
    metadata = job["metadata"]
    pod = make_pod(conditions=[ready(True)])
    owners = [{"uid": metadata["uid"], "controller": True}]
    pod["metadata"] |= {"name": f"{metadata['name']}-0-x", "namespace": "team"}
    pod["metadata"] |= {"ownerReferences": owners, "uid": f"pod-of-{metadata['uid']}"}
    pod["status"]["podIP"] = "127.0.0.1"
    return cluster.stamped(pod)


async def count_writes() -> tuple[int, float]:
    """Writes of progress, and the seconds that they took."""
    cluster, store = Running(), Store()
    async with asyncio.timeout(240), served(cluster.answer, 1000) as kube:
        for number in range(JOBS):
            raw = job_document()
            raw["metadata"] |= {"name": f"run-{number}", "uid": f"0123456789-{number}"}
            cluster.jobs[f"run-{number}"] = raw
            store.put(Kind.RLHFJOB, raw)
        keys = [("team", name) for name in cluster.jobs]
        async with operating(cluster, kube, store) as queue:
            for key in keys:
                queue.add(key)
            uids = [job["metadata"]["uid"] for job in cluster.jobs.values()]
            while not all(store.gangs(uid) for uid in uids):
                await asyncio.sleep(0.01)
            for uid in uids:
                store.put(Kind.POD, run_pod(cluster, store.gangs(uid)[0].job))
            while not all(cluster.steps()):
                for key in keys:
                    queue.add(key)
                await asyncio.sleep(0.05)
            cluster.writes.clear()
            started = asyncio.get_running_loop().time()
            while cluster.writes.total() < WRITES:
                # Passes that have read nothing anew.
                for key in keys:
                    queue.add(key)
                await asyncio.sleep(0.05)
            lasted = asyncio.get_running_loop().time() - started
    assert len(cluster.writes) == JOBS, "all have their turn"
    return cluster.writes.total(), lasted


def test_progress_is_written_no_more_often_than_twenty_times_a_second() -> None:
    writes, seconds = asyncio.run(count_writes())
    assert writes - ON_THEIR_WAY <= WRITES_PER_SECOND * seconds
