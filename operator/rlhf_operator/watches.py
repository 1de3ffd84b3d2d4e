"""Keeps the store as the cluster is: for each watched namespace, kopf's watches and our LISTs.

Called by `serve`. A namespace is a unit of its own: one that is missing, or whose watch ends, is
told and tried again while the others go on. kopf runs in a thread for each, since it ends every
task of its event loop when it ends.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import kopf

from rlhf_api.errors import RLHFError
from rlhf_operator.handlers import kopf_settings, registry
from rlhf_operator.health import Health
from rlhf_operator.kube import MANAGED, ApiError, Kube, batch_path, core_path, job_path
from rlhf_operator.metrics import NAMESPACE_MISSING, WATCH_STARTS
from rlhf_operator.store import Kind, Store
from rlhf_operator.work_queue import Key, WorkQueue

PAUSE_SECONDS = 2.0
"""Between the end of a watch, or a try in vain, and the next one."""
FILL_SECONDS = 60.0
"""How long kopf may take to begin, and the first LISTs to come in."""
NAMESPACE_SECONDS = 30.0
"""How often it is asked whether a watched namespace is still there."""
STOP_SECONDS = 5.0

_WATCHER = "watcher for "

Raw = dict[str, Any]

logger = logging.getLogger(__name__)


class WatchError(RLHFError):
    """A namespace cannot be watched now; the message says why and what to do."""


class Watch:
    """The watches of one namespace, or of all when its name is empty."""

    def __init__(
        self, namespace: str, kube: Kube, store: Store, queue: WorkQueue, health: Health
    ) -> None:
        self._namespace, self._kube, self._store = namespace, kube, store
        self._queue, self._health = queue, health
        self._to_list: set[Kind] = set()
        self._listed = asyncio.Event()
        self._filled: set[Kind] = set()
        self._complaint = ""

    async def run(self, resync_seconds: float) -> None:
        """Watch until cancelled, whatever ends a watch."""
        while True:
            try:
                await check_served(self._kube, self._namespace)
                self._say("")
                await self._watch(resync_seconds)
            except* (ApiError, WatchError) as group:
                self._say(str(_first(group)))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _watch(self, resync_seconds: float) -> None:
        """Watch until kopf ends, or the namespace is gone.

        Raises:
            ExceptionGroup: with the WatchError or ApiError that ended it.
        """
        WATCH_STARTS.labels(self._namespace).inc()
        self._filled.clear()
        self._to_list.clear()
        self._health.begins(self._namespace)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_kopf())
            tasks.create_task(self._list_what_was_listed())
            tasks.create_task(self._resync(resync_seconds))
            tasks.create_task(self._fill_in_time())
            if self._namespace:
                tasks.create_task(self._look_for_namespace())

    def _say(self, complaint: str) -> None:
        """Tell why the namespace is not watched, each reason once."""
        where = f"namespace {self._namespace}" if self._namespace else "all namespaces"
        if complaint and complaint != self._complaint:
            logger.error("%s: not watched: %s", where, complaint)
        elif self._complaint and not complaint:
            logger.info("%s: watched again", where)
        self._complaint = complaint
        NAMESPACE_MISSING.labels(self._namespace).set(bool(complaint))
        self._health.complains(self._namespace, complaint)

    async def _run_kopf(self) -> None:
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def happened(kind: Kind, event_type: str | None, raw: Raw) -> None:
            loop.call_soon_threadsafe(self._take_in, kind, event_type, raw)

        def listed(kind: Kind) -> None:
            loop.call_soon_threadsafe(self._note_listing, kind)

        ended = _in_thread(lambda: _kopf(self._namespace, happened, listed, stop))
        try:
            await asyncio.shield(ended)
            raise WatchError("the watches have ended; they are begun anew")
        finally:
            stop.set()
            await asyncio.wait({ended}, timeout=STOP_SECONDS)

    def _take_in(self, kind: Kind, event_type: str | None, raw: Raw) -> None:
        if kind is Kind.RLHFJOB:
            self._health.seen(raw["metadata"]["uid"], int(raw["metadata"]["resourceVersion"]))
        deleted = event_type == "DELETED"
        key = self._store.remove(kind, raw) if deleted else self._store.put(kind, raw)
        if key is not None:
            self._wake(key)

    def _note_listing(self, kind: Kind) -> None:
        self._to_list.add(kind)
        self._listed.set()

    def _wake(self, key: Key, delay: float = 0.0) -> None:
        """Let a pass be made, once the store is as the cluster was when the watch began."""
        if self._filled == set(Kind):
            self._queue.add(key, delay)

    async def _list_what_was_listed(self) -> None:
        """kopf has begun a watch anew: see what is gone since the last one."""
        while True:
            await self._listed.wait()
            self._listed.clear()
            while self._to_list:
                kind = self._to_list.pop()
                await self._list(kind)
                self._fill(kind)

    def _fill(self, kind: Kind) -> None:
        if kind in self._filled:
            return
        self._filled.add(kind)
        if self._filled == set(Kind):
            self._health.filled(self._namespace)
            for key in self._store.keys(self._namespace):
                self._wake(key)

    async def _list(self, kind: Kind) -> None:
        """Take in a LIST, and wake the jobs that it is news of."""
        selector = "" if kind is Kind.RLHFJOB else MANAGED
        listing = await self._kube.list(_path(kind, self._namespace), selector)
        if kind is Kind.RLHFJOB:
            items = (
                (i["metadata"]["uid"], i["metadata"]["resourceVersion"]) for i in listing.items
            )
            self._health.compare(self._namespace, {uid: int(version) for uid, version in items})
        for key in self._store.replace(kind, self._namespace, listing.items, listing.version):
            self._wake(key)

    async def _resync(self, seconds: float) -> None:
        """See now and then that the store is as the cluster is, and look at every job."""
        while True:
            await asyncio.sleep(seconds * random.uniform(0.9, 1.1))
            try:
                for kind in Kind:
                    await self._list(kind)
            except ApiError as error:
                logger.warning("resync: %s", error)
                continue
            for key in self._store.keys(self._namespace):
                self._wake(key, random.uniform(0, seconds / 10))

    async def _fill_in_time(self) -> None:
        await asyncio.sleep(FILL_SECONDS)
        missing = sorted(set(Kind) - self._filled)
        if missing:
            raise WatchError(f"no LIST of {', '.join(missing)} within {FILL_SECONDS:.0f} s")

    async def _look_for_namespace(self) -> None:
        while True:
            await asyncio.sleep(NAMESPACE_SECONDS)
            await check_namespace(self._kube, self._namespace)


async def check_served(kube: Kube, namespace: str) -> None:
    """See that RLHFJobs of a namespace, or of all, can be listed.

    Raises:
        WatchError: with what is missing.
        ApiError: the API server does not answer.
    """
    if namespace:
        await check_namespace(kube, namespace)
    try:
        await kube.request("GET", job_path(namespace), query={"limit": 1})
    except ApiError as error:
        if error.status == 404:
            text = "the CRD rlhfjobs.rlhf.dev is not installed; apply crds/rlhfjobs.yaml"
            raise WatchError(text) from error
        if error.status == 403:
            text = f"{error.message}; grant it to the operator"
            raise WatchError(text) from error
        raise


async def check_namespace(kube: Kube, namespace: str) -> None:
    """See that a namespace is there.

    Raises:
        WatchError: it is not.
    """
    try:
        await kube.request("GET", f"/api/v1/namespaces/{namespace}")
    except ApiError as error:
        if error.status == 404:
            text = "it does not exist; create it, or take it out of RLHF_OPERATOR_NAMESPACES"
            raise WatchError(text) from error
        # Whoever may not read the namespace may still list what is in it.
        if error.status != 403:
            raise


async def _kopf(
    namespace: str,
    happened: Callable[[Kind, str | None, Raw], None],
    listed: Callable[[Kind], None],
    stop: threading.Event,
) -> None:
    """Run kopf until told to stop, or one of its watches has ended."""
    overseer = asyncio.create_task(_stop_when_one_ends(stop))
    try:
        await kopf.operator(
            registry=registry(happened, listed),
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not namespace,
            namespaces=[namespace] if namespace else [],
            stop_flag=stop,
        )
    finally:
        overseer.cancel()


async def _stop_when_one_ends(stop: threading.Event) -> None:
    """kopf goes on, and says nothing, when the task that watches a resource has ended."""
    most = 0
    while not stop.is_set():
        await asyncio.sleep(1)
        names = [task.get_name() for task in asyncio.all_tasks()]
        alive = sum(name.startswith(_WATCHER) for name in names)
        if alive < most:
            stop.set()
        most = max(most, alive)


def _in_thread(program: Callable[[], Coroutine[Any, Any, None]]) -> asyncio.Future[None]:
    """Run a coroutine in a loop and a thread of its own, which never holds up the process."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def finish(error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(WatchError(f"kopf: {str(error) or type(error).__name__}"))

    def target() -> None:
        failure: BaseException | None = None
        try:
            asyncio.run(program())
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits for it
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, failure)

    threading.Thread(target=target, name="kopf", daemon=True).start()
    return ended


def _path(kind: Kind, namespace: str) -> str:
    if kind is Kind.RLHFJOB:
        return job_path(namespace)
    return batch_path(namespace) if kind is Kind.JOB else core_path(namespace, "pods")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
