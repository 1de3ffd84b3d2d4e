"""How a namespace's watch ends when it is stopped; what it sees is tested on an API server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from rlhf_api.names import PLURAL
from rlhf_operator import watches
from rlhf_operator.health import Health
from rlhf_operator.kube import Kube
from rlhf_operator.store import Store
from rlhf_operator.watches import Watch
from rlhf_operator.work_queue import WorkQueue

NAMESPACE = "team"


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
