"""Whether watches and passes move on, and the HTTP endpoint that says so.

A process that answers is no proof: a watch can die in silence. So every LIST of jobs is compared
with what the watch has shown, and a job that the watch is late with makes /healthz fail.
"""

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web
from prometheus_client import REGISTRY
from prometheus_client.exposition import choose_encoder, gzip_accepted

from rlhf_api.errors import ConfigError
from rlhf_operator.metrics import QUEUE_AGE
from rlhf_operator.settings import PREFIX
from rlhf_operator.work_queue import WorkQueue

WATCH_LAG_SECONDS = 120.0
PASS_SECONDS = 300.0
GZIP_LEVEL = 4


@dataclass
class _Unit:
    """A watched namespace.

    Attributes:
        compared_at: when jobs were last listed, or the watch was begun.
        filled: whether the store holds what was there when the watch began.
        complaint: why it is not watched; empty if it is.
        missing: whether it is not watched because it is not there.
        seen: the version of a job that the watch has shown, by uid.
        late: since when the watch owes a version of a job, by uid.
    """

    compared_at: float
    filled: bool = False
    complaint: str = ""
    missing: bool = False
    seen: dict[str, int] = field(default_factory=dict)
    late: dict[str, tuple[int, float]] = field(default_factory=dict)


class Health:
    """What is known of the process's own progress."""

    def __init__(
        self,
        queue: WorkQueue,
        resync_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue, self._resync_seconds, self._clock = queue, resync_seconds, clock
        self._units: dict[str, _Unit] = {}
        self.leads = False
        self.served = False
        """Whether the API server has answered, and serves our CRD."""
        self.problem = "the API server has not answered yet"
        """Why it does not, for a replica that does not lead."""
        self.looks: list[Callable[[], None]] = [lambda: QUEUE_AGE.set(queue.age())]
        """What sets metrics that are worked out when they are asked for; called on the loop."""

    def begins(self, namespace: str) -> None:
        """A watch is begun; what was told against it holds until the store is filled."""
        old = self._units.get(namespace) or _Unit(0.0)
        self._units[namespace] = _Unit(self._clock(), complaint=old.complaint, missing=old.missing)

    def filled(self, namespace: str) -> None:
        """The first LISTs of a namespace are in."""
        unit = self._units[namespace]
        unit.filled, unit.complaint, unit.missing = True, "", False

    def complains(self, namespace: str, complaint: str, *, missing: bool = False) -> None:
        """A namespace is not watched, for want of the namespace itself or another reason."""
        self._units[namespace] = _Unit(self._clock(), complaint=complaint, missing=missing)

    def seen(self, namespace: str, uid: str, version: int) -> None:
        """The watch shows a job, or its deletion."""
        unit = self._units[namespace]
        unit.seen[uid] = max(version, unit.seen.get(uid, version))
        if uid in unit.late and version >= unit.late[uid][0]:
            del unit.late[uid]

    def compare(self, namespace: str, listed: Mapping[str, int], version: int) -> None:
        """Compare the versions by uid of a LIST with what the watch has shown.

        Args:
            namespace: that was listed.
            listed: the version of each job.
            version: at which the LIST was made; what was seen later is not in it.
        """
        unit, now = self._units[namespace], self._clock()
        unit.seen = {u: v for u, v in unit.seen.items() if u in listed or v > version}
        behind = {uid: v for uid, v in listed.items() if unit.seen.get(uid, -1) < v}
        # Counted from the first LIST that showed it: a job that is written to often is no excuse.
        unit.late = {
            uid: (v, unit.late[uid][1] if uid in unit.late else now) for uid, v in behind.items()
        }
        unit.compared_at = now

    def complaint(self) -> str:
        """What does not move on; empty when all does."""
        if not self.leads:
            return ""
        now = self._clock()
        for namespace, unit in self._units.items():
            where = f" of namespace {namespace}" if namespace else ""
            if unit.complaint:
                continue  # It is tried again, and told; a restart would not help.
            if now - unit.compared_at > 2 * self._resync_seconds + WATCH_LAG_SECONDS:
                return f"no LIST{where} has come to its end"
            if any(now - since > WATCH_LAG_SECONDS for _, since in unit.late.values()):
                return f"the watch{where} is behind"
        if self._queue.oldest_pass() > PASS_SECONDS:
            return "a pass does not end"
        return ""

    def unready(self) -> str:
        """Why this replica could not take over, or does not work yet; empty when it does.

        A namespace that is missing is no fault of this replica, and keeps no other one waiting.
        """
        if not self.leads:
            return "" if self.served else self.problem
        units = [unit for unit in self._units.values() if not unit.missing]
        for unit in units:
            if unit.complaint:
                return unit.complaint
        if self._units and all(unit.filled for unit in units):
            return ""
        return "the store is not filled yet"


@asynccontextmanager
async def served(health: Health, port: int) -> AsyncIterator[int]:
    """Serve /healthz, /readyz and /metrics; gives the port.

    Raises:
        ConfigError: the port cannot be had.
    """

    def answer(complaint: str) -> web.Response:
        return web.Response(text=complaint or "ok", status=500 if complaint else 200)

    async def healthz(_: web.Request) -> web.Response:
        return answer(health.complaint())

    async def readyz(_: web.Request) -> web.Response:
        return answer(health.unready())

    async def metrics(request: web.Request) -> web.Response:
        for look in health.looks:
            look()
        # In a thread: with a thousand jobs it takes longer than a renewal of the Lease may wait.
        return await asyncio.to_thread(_exposition, request)

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            site = web.SockSite(runner, _listening(port))
        except OSError as error:
            raise ConfigError(
                f"{PREFIX}PORT: is {port}, at which nothing can be served ({error.strerror}); "
                "free it, or set another one"
            ) from error
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _listening(port: int) -> socket.socket:
    """One socket for IPv4 and IPv6: of two, each would choose a free port of its own."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _exposition(request: web.Request) -> web.Response:
    """All metrics in the format, and with the compression, that were asked for."""
    encode, content_type = choose_encoder(",".join(request.headers.getall("Accept", ())))
    headers, body = {"Content-Type": content_type}, encode(REGISTRY)
    if gzip_accepted(",".join(request.headers.getall("Accept-Encoding", ()))):
        headers["Content-Encoding"] = "gzip"
        body = gzip.compress(body, GZIP_LEVEL)
    return web.Response(body=body, headers=headers)
