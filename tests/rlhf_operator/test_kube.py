"""What becomes of answers that are not the API server's, read from a real server."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from rlhf_operator.kube import ApiError, Kube


def asked(status: int, text: str) -> dict[str, Any]:
    """What a request comes to that is answered by this."""

    async def run() -> dict[str, Any]:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(status=status, text=text)

        app = web.Application()
        app.add_routes([web.get("/api", answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        configuration = Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")
        try:
            async with ApiClient(configuration) as client:
                return await Kube(client, 100).request("GET", "/api")
        finally:
            await runner.cleanup()

    return asyncio.run(run())


@pytest.mark.parametrize("text", ["<html>busy</html>", "null", "503", '"busy"', '["busy"]'])
@pytest.mark.parametrize(("status", "told"), [(200, 0), (503, 503)])
def test_an_answer_that_is_no_object_is_an_api_error(status: int, told: int, text: str) -> None:
    with pytest.raises(ApiError) as caught:
        asked(status, text)
    assert caught.value.status == told
    assert caught.value.body.get("reason") is None
    assert "GET /api" in str(caught.value)


def test_an_object_is_given_as_it_is() -> None:
    assert asked(200, '{"kind": "APIVersions"}') == {"kind": "APIVersions"}
