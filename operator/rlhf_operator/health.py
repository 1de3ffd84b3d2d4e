"""Whether watches and passes move on, and the HTTP endpoint that says so.

A process that answers is no proof: a watch can die in silence. So every resync compares what it
lists with what the watch has shown, and a job that the watch is late with makes /healthz fail.
"""

import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from rlhf_operator.work_queue import WorkQueue

WATCH_LAG_SECONDS = 120.0
PASS_SECONDS = 300.0


class Health:
    """What is known of the process's own progress."""

    def __init__(self, queue: WorkQueue, resync_seconds: float) -> None:
        self._queue, self._resync_seconds = queue, resync_seconds
        self._seen: dict[str, int] = {}
        self._late: dict[str, float] = {}
        self._compared_at = time.monotonic()
        self.leads = False

    def seen(self, uid: str, resource_version: str) -> None:
        """The watch shows a job."""
        self._seen[uid] = int(resource_version)

    def compare(self, listed: Iterable[tuple[str, str]]) -> None:
        """Compare uids and resource versions of a LIST with what the watch has shown."""
        now, versions = time.monotonic(), {uid: int(version) for uid, version in listed}
        self._seen = {uid: seen for uid, seen in self._seen.items() if uid in versions}
        behind = {uid for uid, version in versions.items() if self._seen.get(uid, -1) < version}
        self._late = {uid: self._late.get(uid, now) for uid in behind}
        self._compared_at = now

    def complaint(self) -> str:
        """What does not move on; empty when all does."""
        now = time.monotonic()
        if not self.leads:
            return ""
        if now - self._compared_at > 2 * self._resync_seconds + WATCH_LAG_SECONDS:
            return "no resync has come to its end"
        if any(now - since > WATCH_LAG_SECONDS for since in self._late.values()):
            return "the watch is behind"
        if self._queue.oldest_pass() > PASS_SECONDS:
            return "a pass does not end"
        return ""


@asynccontextmanager
async def served(health: Health, port: int) -> AsyncIterator[int]:
    """Serve /healthz, /readyz and /metrics; gives the port."""

    async def healthz(_: web.Request) -> web.Response:
        complaint = health.complaint()
        return web.Response(text=complaint or "ok", status=500 if complaint else 200)

    async def readyz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes(
        [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, port=port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
