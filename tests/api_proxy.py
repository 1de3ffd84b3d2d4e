"""An HTTP proxy before the API server that delays, holds, cuts, answers and adds events by rule.

The operator speaks plain HTTP to it; the API server is spoken to as the user of a kubeconfig. Where
connections themselves hang or are refused, `interrupting` does it a layer below.
"""

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp
import yaml
from aiohttp import web

T = TypeVar("T")

_LONGEST_LINE = 1 << 22
_ANSWER_SECONDS = 10.0
_NOT_FORWARDED = {"host", "accept-encoding", "connection", "content-length", "transfer-encoding"}


@dataclass(frozen=True)
class Call:
    """A request, as rules see it."""

    method: str
    path: str
    query: Mapping[str, str]
    agent: str = ""
    at: float = 0.0

    @property
    def watches(self) -> bool:
        """Whether the answer is a stream of events."""
        return self.query.get("watch", "") in ("true", "1")


Predicate = Callable[[Call], bool]


def watch_of(plural: str, namespace: str = "") -> Predicate:
    """Watches of a kind of object, of one namespace if it is given."""
    return lambda call: call.watches and _is_of(call, plural, namespace)


def list_of(plural: str, namespace: str = "") -> Predicate:
    """LISTs of a kind of object, of one namespace if it is given."""
    return lambda call: (
        call.method == "GET" and not call.watches and _is_of(call, plural, namespace)
    )


def gone(message: str = "too old resource version") -> dict[str, Any]:
    """The event by which the API server ends a watch whose version it has forgotten."""
    return error_event(410, "Expired", message)


def error_event(code: int, reason: str, message: str) -> dict[str, Any]:
    """An event of type ERROR."""
    return {"type": "ERROR", "object": status(code, reason, message)}


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    """A Status object by which the API server refuses."""
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


@dataclass(eq=False)
class Rule:
    """What happens to the calls that fit; made and ended by the proxy's methods.

    Attributes:
        seconds: by which a request, or each event of a watch, comes later.
        opened: set unless calls are held.
        answer: status and body that are given in place of the API server's.
        line: the only event of a watch; for the first call that fits.
        drops: whether the connection is broken in place of an answer.
        loses: whether it is broken once the API server has answered; for the first call that fits.
    """

    fits: Predicate
    seconds: float = 0.0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    answer: tuple[int, dict[str, Any]] | None = None
    line: bytes = b""
    drops: bool = False
    loses: bool = False


@dataclass(eq=False)
class _Stream:
    """A watch that is open; lines with the time at which they came, None at its end."""

    call: Call
    lines: asyncio.Queue[tuple[float, bytes] | None]
    transport: asyncio.Transport


class ApiProxy:
    """Passes requests on to the API server of a kubeconfig, as its user, unless a rule fits.

    Attributes:
        kubeconfig: by way of the proxy, for the operator.
        calls: every request so far, in the order of arrival.
    """

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._server, self._tls = _upstream(kubeconfig)
        self.calls: list[Call] = []
        self._rules: list[Rule] = []
        self._streams: list[_Stream] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._folder = folder

    def __enter__(self) -> Self:
        self._thread.start()
        self._on_loop(self._start())
        self.kubeconfig = self._folder / f"api-proxy-{self._port}.kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(_kubeconfig(f"http://127.0.0.1:{self._port}")))
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._on_loop(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ANSWER_SECONDS)
        self._loop.close()

    def delay(self, fits: Predicate, seconds: float) -> Rule:
        """Requests go on, and events of watches that are open or begin, so much later."""
        return self._add(Rule(fits, seconds=seconds))

    def hold(self, fits: Predicate) -> Rule:
        """Requests, and the events of watches, wait until `release`."""
        return self._add(Rule(fits), opened=False)

    def answer(self, fits: Predicate, code: int, reason: str, message: str) -> Rule:
        """Requests are refused with this status until `release`."""
        return self._add(Rule(fits, answer=(code, status(code, reason, message))))

    def answer_nothing(self, fits: Predicate) -> Rule:
        """Requests are answered by an empty object until `release`."""
        return self._add(Rule(fits, answer=(200, {})))

    def drop(self, fits: Predicate) -> Rule:
        """Connections of requests are broken without an answer until `release`."""
        return self._add(Rule(fits, drops=True))

    def lose(self, fits: Predicate) -> Rule:
        """The next request that fits is carried out, and its connection broken after that."""
        return self._add(Rule(fits, loses=True))

    def expire(self, fits: Predicate) -> Rule:
        """The next watch that fits is told that its version is too old."""
        return self._add(Rule(fits, line=_line(gone())))

    def release(self, rule: Rule | None = None) -> None:
        """End one rule, or all."""

        async def end() -> None:
            for each in [rule] if rule else list(self._rules):
                each.opened.set()
                if each in self._rules:
                    self._rules.remove(each)

        self._on_loop(end())

    def is_in_force(self, rule: Rule) -> bool:
        """Whether a rule has not ended."""
        return rule in self._rules

    def inject(self, fits: Predicate, event: Mapping[str, Any]) -> int:
        """Put an event into every open watch that fits; gives how many there are."""

        async def put() -> int:
            streams = [stream for stream in self._streams if fits(stream.call)]
            for stream in streams:
                stream.lines.put_nowait((time.monotonic(), _line(event)))
            return len(streams)

        return self._on_loop(put())

    def cut(self, fits: Predicate) -> int:
        """Break the connection of every open watch that fits; gives how many there are."""

        async def abort() -> int:
            streams = [stream for stream in self._streams if fits(stream.call)]
            for stream in streams:
                stream.transport.abort()
                stream.lines.put_nowait(None)
            return len(streams)

        return self._on_loop(abort())

    def watching(self, fits: Predicate) -> int:
        """How many open watches fit."""

        async def count() -> int:
            return sum(fits(stream.call) for stream in self._streams)

        return self._on_loop(count())

    def refuse(self) -> None:
        """Break all connections and refuse new ones, as an API server that is away."""

        async def refuse() -> None:
            await self._site.stop()
            for stream in self._streams:
                stream.lines.put_nowait(None)
            server = self._runner.server
            for connection in server.connections if server else ():
                if connection.transport is not None:
                    connection.transport.abort()

        self._on_loop(refuse())

    def accept(self) -> None:
        """End `refuse`."""
        self._on_loop(self._listen(self._port))

    def _add(self, rule: Rule, *, opened: bool = True) -> Rule:
        async def add() -> None:
            if opened:
                rule.opened.set()
            self._rules.append(rule)

        self._on_loop(add())
        return rule

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_ANSWER_SECONDS)

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls),
            timeout=aiohttp.ClientTimeout(total=None),
            read_bufsize=_LONGEST_LINE,
        )
        app = web.Application(client_max_size=_LONGEST_LINE)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
        )
        await self._runner.setup()
        await self._listen(0)
        self._port = int(self._runner.addresses[0][1])

    async def _listen(self, port: int) -> None:
        self._site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await self._site.start()

    async def _stop(self) -> None:
        for stream in self._streams:
            stream.lines.put_nowait(None)
        await self._runner.cleanup()
        await self._session.close()
        # TLS says goodbye before the sockets are closed.
        await asyncio.sleep(0.25)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        agent = request.headers.get("User-Agent", "")
        call = Call(request.method, request.path, dict(request.query), agent, time.monotonic())
        self.calls.append(call)
        if (instead := self._instead(request, call)) is not None:
            return instead
        body = await request.read()
        if not call.watches:
            await self._pass(call, call.at)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_FORWARDED}
        url = self._server + request.raw_path
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body or None
            ) as answer:
                if call.watches and answer.status == 200:
                    return await self._stream(request, call, answer)
                self._lose(request, call)
                return web.Response(
                    status=answer.status,
                    body=await answer.read(),
                    headers={"Content-Type": answer.headers.get("Content-Type", "text/plain")},
                )
        except aiohttp.ClientConnectionError as error:
            return web.json_response(status(503, "ServiceUnavailable", str(error)), status=503)

    def _instead(self, request: web.Request, call: Call) -> web.Response | None:
        """What the first rule that forwards nothing answers."""
        for rule in [rule for rule in self._rules if rule.fits(call)]:
            if rule.drops and request.transport is not None:
                request.transport.abort()
                return web.Response(status=503)  # Nobody hears it.
            if rule.answer is not None:
                return web.json_response(rule.answer[1], status=rule.answer[0])
            if rule.line:
                self._rules.remove(rule)
                return web.Response(body=rule.line, content_type="application/json")
        return None

    def _lose(self, request: web.Request, call: Call) -> None:
        """Break the connection if a rule says that its answer gets lost."""
        for rule in [rule for rule in self._rules if rule.loses and rule.fits(call)][:1]:
            self._rules.remove(rule)
            if request.transport is not None:
                request.transport.abort()

    async def _pass(self, call: Call, came: float) -> None:
        """Wait as long as the rules ask for, including those that are made meanwhile."""
        while True:
            rules = [rule for rule in self._rules if rule.fits(call)]
            left = came + max((rule.seconds for rule in rules), default=0.0) - time.monotonic()
            shut = [rule for rule in rules if not rule.opened.is_set()]
            if left > 0:
                await asyncio.sleep(min(left, 0.05))
            elif shut:
                await shut[0].opened.wait()
            else:
                return

    async def _stream(
        self, request: web.Request, call: Call, answer: aiohttp.ClientResponse
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        assert request.transport is not None
        stream = _Stream(call, asyncio.Queue(), request.transport)
        self._streams.append(stream)
        reading = asyncio.create_task(_read(answer, stream))
        try:
            while (item := await stream.lines.get()) is not None:
                came, line = item
                await self._pass(call, came)
                await response.write(line)
        except ConnectionError:
            return response  # The operator has gone.
        finally:
            reading.cancel()
            self._streams.remove(stream)
        return response


async def _read(answer: aiohttp.ClientResponse, stream: _Stream) -> None:
    try:
        async for line in answer.content:
            stream.lines.put_nowait((time.monotonic(), line))
    except aiohttp.ClientError:
        stream.transport.abort()
    stream.lines.put_nowait(None)


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def _is_of(call: Call, plural: str, namespace: str) -> bool:
    parts = call.path.split("/")
    return parts[-1] == plural and (not namespace or parts[-2] == namespace)


def _upstream(kubeconfig: Path) -> tuple[str, ssl.SSLContext]:
    """URL of the API server, and the certificates of a kubeconfig's user."""
    document = yaml.safe_load(kubeconfig.read_text())
    cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
    context = ssl.create_default_context(cafile=cluster["certificate-authority"])
    context.load_cert_chain(user["client-certificate"], user["client-key"])
    return cluster["server"], context


def _kubeconfig(server: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "proxy", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        "current-context": "proxy",
    }
