"""What becomes of answers that are not the API server's, read from a real server; who waits for
whom where requests are few."""

import asyncio
from typing import Any

import pytest
from aiohttp import web
from answering import served

from rlhf_operator.kube import MAX_EVENT_LENGTH, ApiError

SECONDS = 30
REMEDY = "; free the node, or correct resources"
RAW = {"kind": "RLHFJob", "metadata": {"name": "a", "namespace": "b", "uid": "c"}}


def asked(status: int, text: str) -> dict[str, Any]:
    """What a request comes to that is answered by this."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text=text)

    async def run() -> dict[str, Any]:
        async with served(answer, 100) as kube:
            return await kube.request("GET", "/api")

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


def test_events_have_a_budget_of_their_own() -> None:
    """Neither do they wait for the workers' requests, nor take from them."""
    made: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        made.append(request.path)
        return web.Response(text="{}")

    async def run() -> None:
        # One request, and then none for a quarter of an hour.
        async with served(answer, 0.001) as kube, asyncio.timeout(SECONDS):
            for number in range(3):
                await kube.tell(RAW, "Normal", "Created", str(number), "2026-01-01T00:00:00Z")
            await kube.request("GET", "/api")
            await kube.tell(RAW, "Normal", "Created", "last", "2026-01-01T00:00:00Z")
            assert kube.has_spare()

    asyncio.run(run())
    events = "/api/v1/namespaces/b/events"
    assert made == [*[events] * 3, "/api", events]


def test_an_event_of_a_long_text_keeps_the_end_where_the_remedy_stands() -> None:
    made: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        made.append((await request.json())["message"])
        return web.Response(text="{}")

    async def run() -> None:
        async with served(answer, 100) as kube, asyncio.timeout(SECONDS):
            for length in (MAX_EVENT_LENGTH - len(REMEDY), 5000):
                message = "x" * length + REMEDY
                await kube.tell(RAW, "Warning", "PodRejected", message, "2026-01-01T00:00:00Z")

    asyncio.run(run())
    assert [len(message) for message in made] == [MAX_EVENT_LENGTH] * 2
    assert all(message.endswith(f"x{REMEDY}") for message in made)
    assert [" ... " in message for message in made] == [False, True]


def test_each_page_of_a_list_is_trimmed_as_it_comes() -> None:
    kept: list[list[str]] = []

    def names(raw: dict[str, Any]) -> dict[str, Any]:
        kept[-1].append(raw["name"])
        return {"only": raw["name"]}

    async def answer(request: web.Request) -> web.Response:
        last = "continue" in request.query
        kept.append([])
        metadata = {"resourceVersion": "7"} | ({} if last else {"continue": "more"})
        items = [{"name": "c"}] if last else [{"name": "a"}, {"name": "b"}]
        return web.json_response({"kind": "XList", "metadata": metadata, "items": items})

    async def run() -> None:
        async with served(answer, 100) as kube:
            listing = await kube.list("/api/v1/x", trim=names)
            assert listing.items == [{"only": "a"}, {"only": "b"}, {"only": "c"}]
            assert listing.version == 7

    asyncio.run(run())
    # The first page was trimmed before the second was asked for.
    assert kept == [["a", "b"], ["c"]]
