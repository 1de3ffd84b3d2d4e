"""A server on this machine that answers an operator's requests as a test says, for answers that a
real API server gives rarely: failures, and objects that others have changed on the way."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple

from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from rlhf_operator.kube import Kube

Raw = dict[str, Any]
Answer = Callable[[web.Request], Awaitable[web.Response]]
SECONDS = 60.0


class Asked(NamedTuple):
    """One request.

    Attributes:
        method: for example POST.
        path: with the name of the object, if it is about one.
        body: what was sent, as JSON; None if nothing was.
    """

    method: str
    path: str
    body: Any


@asynccontextmanager
async def served(answer: Answer, requests_per_second: float) -> AsyncIterator[Kube]:
    """A session with a server that answers every request so."""
    app = web.Application()
    app.add_routes([web.route("*", "/{path:.*}", answer)])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        async with ApiClient(configuration) as client:
            yield Kube(client, requests_per_second)
    finally:
        await runner.cleanup()


class Session:
    """The operator's session with that server, for tests that are no coroutines."""

    def __init__(self, kube: Kube, runner: asyncio.Runner) -> None:
        self.kube = kube
        self._runner = runner

    def wait(self, work: Awaitable[Any]) -> Any:
        """What the work comes to."""

        async def bounded() -> Any:
            async with asyncio.timeout(SECONDS):
                return await work

        return self._runner.run(bounded())


@contextmanager
def answering(answer: Callable[[Asked], tuple[int, Raw]]) -> Iterator[Session]:
    """A server that answers each request by status and object."""

    async def handle(request: web.Request) -> web.Response:
        sent = await request.text()
        status, found = answer(Asked(request.method, request.path, json.loads(sent or "null")))
        return web.json_response(found, status=status)

    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            yield Session(runner.run(stack.enter_async_context(served(handle, 1000))), runner)
        finally:
            runner.run(stack.aclose())
