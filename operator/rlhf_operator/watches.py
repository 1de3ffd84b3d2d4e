"""Keeps the store as the cluster is: for each watched namespace, kopf's watches and our LISTs.

Called by `serve`. A namespace is a unit of its own: one that is missing, or whose watch ends, is
told and tried again while the others go on. kopf runs in a thread for each, since it ends every
task of its event loop when it ends.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from rlhf_api.names import GROUP, PLURAL, VERSION
from rlhf_operator.fields import is_over, is_same_but_for_status, trimmed
from rlhf_operator.health import Health
from rlhf_operator.kopf_thread import KopfThread, WatchError
from rlhf_operator.kube import MANAGED, ApiError, Kube, batch_path, core_path, job_path
from rlhf_operator.metrics import NAMESPACE_MISSING, WATCH_STARTS
from rlhf_operator.store import Kind, Store, key_of
from rlhf_operator.work_queue import Key, WorkQueue

PAUSE_SECONDS = 2.0
"""Between the end of a watch, or a try in vain, and the next one."""
FILL_SECONDS = 60.0
"""How long kopf may take to begin, and the first LISTs to come in."""
NAMESPACE_SECONDS = 60.0
"""How often it is asked whether a namespace whose watch goes on is still there; when a watch ends,
as one that may not be begun anew does, it is asked at once."""
CHILD_SECONDS = 0.1
"""News of children come in bursts, of which one pass makes one status."""
STOP_SECONDS = 1.0
"""How long kopf is waited for; one that takes longer, as it does while it first asks an API server
that hangs, is heard no more. Well below `leader.STOP_SECONDS`, in which all work must be over."""

Raw = dict[str, Any]

logger = logging.getLogger(__name__)


class NamespaceMissingError(WatchError):
    """A watched namespace is not there, as far as it can be seen."""


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
        self._ending: set[Key] = set()
        self._may_get = True

    async def run(self, resync_seconds: float) -> None:
        """Watch until cancelled, whatever ends a watch."""
        while True:
            try:
                await check_served(self._kube)
                self._may_get = await check_namespace(self._kube, self._namespace)
                # A TaskGroup that ends by a failure forgets, before Python 3.13, a cancellation
                # that comes meanwhile; `gather` does not.
                watch = self._watch(resync_seconds)
                (failure,) = await asyncio.gather(watch, return_exceptions=True)
                if failure is not None:
                    raise failure
            except* (ApiError, WatchError) as group:
                self._complain(await self._cause(_first(group)))
            await asyncio.sleep(PAUSE_SECONDS)

    async def _watch(self, resync_seconds: float) -> None:
        """Watch until kopf ends, or the namespace is gone.

        Raises:
            ExceptionGroup: with the WatchError or ApiError that ended it.
        """
        WATCH_STARTS.labels(self._namespace).inc()
        self._filled.clear()
        self._to_list.clear()
        # Until the store is as the cluster was when the watch began.
        self._queue.hold(self._namespace)
        self._health.begins(self._namespace)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._run_kopf())
            tasks.create_task(self._list_what_was_listed())
            tasks.create_task(self._resync(resync_seconds))
            tasks.create_task(self._fill_in_time())
            if self._namespace:
                tasks.create_task(self._look_for_namespace())

    async def _cause(self, error: BaseException) -> BaseException:
        """Why a watch has ended: for want of the namespace, if that is gone, whatever was said."""
        try:
            await check_namespace(self._kube, self._namespace)
        except NamespaceMissingError as missing:
            return missing
        except (ApiError, WatchError):
            pass
        return error

    def _complain(self, error: BaseException) -> None:
        """Tell why the namespace is not watched, each reason once."""
        complaint, missing = str(error), isinstance(error, NamespaceMissingError)
        if complaint != self._complaint:
            logger.error("%s: not watched: %s", self._where(), complaint)
        self._complaint = complaint
        NAMESPACE_MISSING.labels(self._namespace).set(missing)
        self._health.complains(self._namespace, complaint, missing=missing)
        if missing:
            # Nothing can be done for its jobs, and nothing is known of them any more.
            for key in self._store.forget(self._namespace):
                self._queue.add(key)
            self._queue.release(self._namespace)

    def _where(self) -> str:
        return f"namespace {self._namespace}" if self._namespace else "all namespaces"

    async def _run_kopf(self) -> None:
        loop, over = asyncio.get_running_loop(), False

        def hear(what: Callable[..., None], *news: Any) -> None:
            if not over:
                what(*news)

        def happened(kind: Kind, event_type: str | None, raw: Raw) -> None:
            loop.call_soon_threadsafe(hear, self._take_in, kind, event_type, raw)

        def listed(kind: Kind) -> None:
            loop.call_soon_threadsafe(hear, self._note_listing, kind)

        thread = KopfThread(self._namespace, happened, listed)
        try:
            await thread.ended
        finally:
            over = True
            await thread.stop(STOP_SECONDS)

    def _take_in(self, kind: Kind, event_type: str | None, raw: Raw) -> None:
        if kind is Kind.RLHFJOB:
            metadata = raw["metadata"]
            version = int(metadata["resourceVersion"])
            self._health.seen(self._namespace, metadata["uid"], version)
        known = self._store.job(key_of(raw)) if kind is Kind.RLHFJOB else None
        deleted = event_type == "DELETED"
        key = self._store.remove(kind, raw) if deleted else self._store.put(kind, raw)
        if key is None:
            return
        if kind is not Kind.RLHFJOB and event_type == "MODIFIED" and is_over(kind, raw):
            if key not in self._ending:
                self._ending.add(key)
                asyncio.get_running_loop().call_later(CHILD_SECONDS, self._wake_ending, key)
        elif kind is not Kind.RLHFJOB:
            self._queue.add(key, CHILD_SECONDS)
        elif not deleted and known is not None and is_same_but_for_status(known, raw):
            loop = asyncio.get_running_loop()
            loop.call_later(CHILD_SECONDS, self._wake_unless_ours, key, raw)
        else:
            # A new job is started before anything else is done, whatever there is to do.
            self._queue.add(key, urgent="status" not in raw)

    def _wake_unless_ours(self, key: Key, raw: Raw) -> None:
        """The echo of a write of ours may be here before its answer is."""
        if not self._store.is_own(raw):
            self._queue.add(key)

    def _wake_ending(self, key: Key) -> None:
        """A verdict may follow: before that of jobs that merely wait."""
        self._ending.discard(key)
        self._queue.add(key, urgent=True)

    def _note_listing(self, kind: Kind) -> None:
        self._to_list.add(kind)
        self._listed.set()

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
        if self._filled < set(Kind):
            return
        self._health.filled(self._namespace)
        if self._complaint:
            logger.info("%s: watched again", self._where())
            self._complaint = ""
        NAMESPACE_MISSING.labels(self._namespace).set(0)
        for key in self._store.keys(self._namespace):
            self._queue.add(key)
        self._queue.release(self._namespace)

    async def _list(self, kind: Kind) -> None:
        """Take in a LIST, and wake the jobs that it is news of."""
        selector = "" if kind is Kind.RLHFJOB else MANAGED
        path, trim = _path(kind, self._namespace), partial(trimmed, kind)
        listing = await self._kube.list(path, selector, trim=trim)
        if kind is Kind.RLHFJOB:
            items = (
                (i["metadata"]["uid"], i["metadata"]["resourceVersion"]) for i in listing.items
            )
            versions = {uid: int(version) for uid, version in items}
            self._health.compare(self._namespace, versions, listing.version)
        for key in self._store.replace(kind, self._namespace, listing.items, listing.version):
            self._queue.add(key)

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
                self._queue.add(key, random.uniform(0, seconds / 10))

    async def _fill_in_time(self) -> None:
        await asyncio.sleep(FILL_SECONDS)
        missing = sorted(set(Kind) - self._filled)
        if missing:
            raise WatchError(f"no LIST of {', '.join(missing)} within {FILL_SECONDS:.0f} s")

    async def _look_for_namespace(self) -> None:
        while True:
            await asyncio.sleep(NAMESPACE_SECONDS)
            try:
                await check_namespace(self._kube, self._namespace, may_get=self._may_get)
            except ApiError as error:
                logger.warning("%s: %s", self._where(), error)


async def check_served(kube: Kube) -> None:
    """See that the API server answers, and serves RLHFJobs.

    Raises:
        WatchError: it does not serve them.
        ApiError: it does not answer.
    """
    try:
        found = await kube.request("GET", f"/apis/{GROUP}/{VERSION}")
    except ApiError as error:
        # For a group that is not known there is no answer in JSON.
        if error.status != 404:
            raise
        found = {}
    if PLURAL not in {each["name"] for each in found.get("resources") or ()}:
        raise WatchError(f"the CRD {PLURAL}.{GROUP} is not installed; apply crds/rlhfjobs.yaml")


async def check_namespace(kube: Kube, namespace: str, *, may_get: bool = True) -> bool:
    """See that RLHFJobs of a namespace, or of all, can be listed.

    Args:
        kube: the session.
        namespace: the namespace; empty for all.
        may_get: False where it is known that the namespace itself may not be read.

    Returns:
        Whether the namespace itself may be read, which is enough.

    Raises:
        NamespaceMissingError: the namespace is not there, or our rights in it are gone with it.
        WatchError: the rights are missing.
        ApiError: the API server does not answer.
    """
    try:
        if may_get and namespace and await _is_there(kube, namespace):
            return True
        await kube.request("GET", job_path(namespace), query={"limit": 1})
        return False
    except ApiError as error:
        if error.status != 403:
            raise
        if namespace:
            text = (
                f"it does not exist, or the operator has no rights in it ({error.message}); "
                "create it with the Role and RoleBinding of the chart, or take it out of "
                "RLHF_OPERATOR_NAMESPACES"
            )
            raise NamespaceMissingError(text) from error
        raise WatchError(f"{error.message}; grant it to the operator") from error


async def _is_there(kube: Kube, namespace: str) -> bool:
    """Whether a namespace can be seen to be there; False if we may not ask.

    Raises:
        NamespaceMissingError: it is not there.
    """
    try:
        await kube.request("GET", f"/api/v1/namespaces/{namespace}")
    except ApiError as error:
        if error.status == 404:
            text = "it does not exist; create it, or take it out of RLHF_OPERATOR_NAMESPACES"
            raise NamespaceMissingError(text) from error
        if error.status == 403:
            return False
        raise
    # One that is being deleted is watched to its end: its pods save, and its jobs are told.
    return True


def _path(kind: Kind, namespace: str) -> str:
    if kind is Kind.RLHFJOB:
        return job_path(namespace)
    return batch_path(namespace) if kind is Kind.JOB else core_path(namespace, "pods")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
