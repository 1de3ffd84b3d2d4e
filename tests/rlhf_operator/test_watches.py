"""What a namespace's watch lets be looked at first, how often it asks for the namespace, and how it
ends when it is stopped; what it sees is tested on an API server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from aiohttp import web
from answering import Asked, answering
from kubernetes.aio.client import ApiClient, Configuration
from raw_gangs import ended, job_document, make_job, make_pod

from rlhf_api.names import PLURAL
from rlhf_operator import watches
from rlhf_operator.health import Health
from rlhf_operator.kopf_thread import WatchError
from rlhf_operator.kube import Kube
from rlhf_operator.store import Kind, Store
from rlhf_operator.watches import Watch
from rlhf_operator.work_queue import WorkQueue

NAMESPACE = "team"
COMPLETE = make_job(("Complete",))
FAILED = make_pod(phase="Failed", state=ended(65))


@asynccontextmanager
async def vanishing(kubeconfig: Path) -> AsyncIterator[tuple[Kube, asyncio.Event]]:
    """A session with a server that shows a namespace once and hangs else, with its kubeconfig.

    The event tells that the namespace was looked for in vain.
    """
    looks, vanished = 0, asyncio.Event()

    async def resources(_: web.Request) -> web.Response:
        return web.json_response({"resources": [{"name": PLURAL}]})

    async def namespace(_: web.Request) -> web.Response:
        nonlocal looks
        looks += 1
        if looks > 1:
            vanished.set()
        return web.json_response({"kind": "Namespace"}, status=404 if looks > 1 else 200)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")

    app = web.Application()
    app.router.add_get("/apis/rlhf.dev/v1alpha1", resources)
    app.router.add_get(f"/api/v1/namespaces/{NAMESPACE}", namespace)
    app.router.add_route("*", "/{path:.*}", hang)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    host = f"http://127.0.0.1:{runner.addresses[0][1]}"
    document = {
        "clusters": [{"name": "it", "cluster": {"server": host}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "current-context": "it",
    }
    kubeconfig.write_text(yaml.safe_dump(document))
    try:
        async with ApiClient(Configuration(host=host)) as client:
            yield Kube(client, 100), vanished
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.03, 0.1])
def test_it_stops_though_it_is_ending_by_itself(
    pause: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    monkeypatch.setattr(watches, "NAMESPACE_SECONDS", 0.5)

    async def run() -> None:
        async with vanishing(kubeconfig) as (kube, vanished):
            queue = WorkQueue()
            watch = Watch(NAMESPACE, kube, Store(), queue, Health(queue, 300))
            running = asyncio.create_task(watch.run(300))
            async with asyncio.timeout(30):
                await vanished.wait()
            await asyncio.sleep(pause)
            running.cancel()
            await asyncio.wait({running}, timeout=10)
            assert running.cancelled()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("kind", "event_type", "raw", "first"),
    [
        (Kind.POD, "MODIFIED", FAILED, "demo"),
        (Kind.JOB, "MODIFIED", COMPLETE, "demo"),
        # All that there is when a watch begins, ended long ago or not.
        (Kind.POD, None, FAILED, "other"),
        (Kind.POD, "MODIFIED", make_pod(), "other"),
        (Kind.JOB, "MODIFIED", make_job(), "other"),
    ],
)
def test_a_job_whose_child_has_ended_is_looked_at_before_others(
    kind: Kind, event_type: str | None, raw: dict[str, Any], first: str
) -> None:
    async def run() -> list[str]:
        store, queue = Store(), WorkQueue()
        watch = Watch(NAMESPACE, cast(Kube, None), store, queue, Health(queue, 300))
        store.put(Kind.RLHFJOB, job_document())
        if kind is Kind.POD:
            store.put(Kind.JOB, stamped(make_job(), 2))
        # It is due already, and all workers are busy.
        queue.add((NAMESPACE, "other"))
        for number in range(3, 6):
            watch._take_in(kind, event_type, stamped(raw, number))
        await asyncio.sleep(2 * watches.CHILD_SECONDS)
        async with asyncio.timeout(30):
            taken = [await queue.take() for _ in range(2)]
        assert queue.age() == 0
        return [name for _, name in taken]

    found = asyncio.run(run())
    assert found == [first, *({"demo", "other"} - {first})]


def stamped(raw: dict[str, Any], version: int) -> dict[str, Any]:
    metadata = {"namespace": NAMESPACE, "uid": "pod"} | raw["metadata"]
    return raw | {"metadata": metadata | {"resourceVersion": str(version)}}


FORBIDDEN = {"kind": "Status", "reason": "Forbidden", "code": 403, "message": "no"}


@pytest.mark.parametrize("may_get", [False, True])
def test_twenty_namespaces_cost_less_than_a_read_a_second_at_rest(
    may_get: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(request: Asked) -> tuple[int, dict[str, Any]]:
        asked.append(request.path)
        if "rlhfjobs" in request.path or may_get:
            return 200, {"kind": "List", "items": []}
        # The chart's Role grants nothing about the namespace itself.
        return 403, FORBIDDEN

    async def watch(kube: Kube, namespace: str) -> float:
        """Seconds in which it was looked for ten times."""
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) > 10:
                raise WatchError("enough")

        queue = WorkQueue()
        watch = Watch(namespace, kube, Store(), queue, Health(queue, 300))
        watch._may_get = await watches.check_namespace(kube, namespace)
        asked.clear()
        monkeypatch.setattr(watches, "asyncio", SimpleNamespace(sleep=sleep))
        with pytest.raises(WatchError, match="enough"):
            await watch._look_for_namespace()
        monkeypatch.undo()
        return sum(slept[:10])

    with answering(answer) as session:
        seconds = session.wait(watch(session.kube, NAMESPACE))
    assert len(asked) == 10
    # Of three LISTs at each resync, and three watches that begin anew as often, comes the rest.
    assert 20 * (len(asked) / seconds + 6 / 300) < 1


def test_a_watch_that_ends_as_its_namespace_goes_is_no_fault_of_the_replica(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = False
    told: list[tuple[str, bool]] = []

    class Ending:
        """kopf, whose watch is refused since the operator's rights went with the namespace."""

        def __init__(self, *_: Any) -> None:
            nonlocal gone
            gone = True
            self.ended = asyncio.get_running_loop().create_future()
            self.ended.set_exception(WatchError("the watcher for pods has ended: 403"))

        async def stop(self, _: float) -> None:
            pass

    class Heard(Health):
        def complains(self, namespace: str, complaint: str, *, missing: bool = False) -> None:
            told.append((complaint, missing))
            super().complains(namespace, complaint, missing=missing)

    def answer(request: Asked) -> tuple[int, dict[str, Any]]:
        if request.path == "/apis/rlhf.dev/v1alpha1":
            return 200, {"resources": [{"name": PLURAL}]}
        return (403, FORBIDDEN) if gone else (200, {"kind": "List", "items": []})

    async def watch(kube: Kube) -> str:
        queue = WorkQueue()
        health = Heard(queue, 300)
        health.leads = True
        watching = asyncio.create_task(Watch(NAMESPACE, kube, Store(), queue, health).run(300))
        while not told:
            await asyncio.sleep(0.01)
        watching.cancel()
        await asyncio.wait({watching}, timeout=10)
        return health.unready()

    monkeypatch.setattr(watches, "KopfThread", Ending)
    with answering(answer) as session:
        assert session.wait(watch(session.kube)) == ""
    ((complaint, missing),) = told
    assert complaint.startswith("it does not exist, or the operator has no rights in it")
    assert missing
