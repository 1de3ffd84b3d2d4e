"""Runs kopf in a thread and a loop of its own, and tells when one of its watches has ended.

Called by `watches`. That kopf runs is no proof that it watches: it can go on, or never come to its
end, when the task that watches a resource has failed. So the tasks themselves are looked at, and a
kopf that does not end is left behind with its loop.
"""

import asyncio
import threading
from typing import Any

import kopf
import uvloop

from rlhf_api.errors import RLHFError
from rlhf_operator.handlers import RESOURCES, Happened, Listed, kopf_settings, registry

BEGIN_SECONDS = 3.0
"""How much later than the first watch the others may begin."""
END_SECONDS = 10.0
"""How long kopf may take to end in order; nobody waits for it."""

_LOOK_SECONDS = 0.05
_WATCHER = "watcher for "


class WatchError(RLHFError):
    """A namespace cannot be watched now; the message says why and what to do."""


class KopfThread:
    """kopf for one namespace, or for all when its name is empty.

    Attributes:
        ended: has the WatchError that says why it watches no more.
    """

    def __init__(self, namespace: str, happened: Happened, listed: Listed) -> None:
        self._namespace = namespace
        self._registry = registry(happened, listed)
        self._owner = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._closed: asyncio.Future[None] = self._owner.create_future()
        self.ended: asyncio.Future[None] = self._owner.create_future()
        threading.Thread(target=self._run, name=f"kopf {namespace}", daemon=True).start()

    async def stop(self, seconds: float) -> None:
        """Let it end, and wait for that for at most so many seconds."""
        self._stop.set()
        self.ended.cancel()
        await asyncio.wait({self._closed}, timeout=seconds)

    def _run(self) -> None:
        loop = uvloop.new_event_loop()
        # Of what kopf leaves behind nothing can be said that helps.
        loop.set_exception_handler(lambda *_: None)
        try:
            loop.run_until_complete(self._watch())
        finally:
            loop.close()
            self._tell(self._closed, None)

    async def _watch(self) -> None:
        overseer = asyncio.create_task(_until_one_ends())
        running = asyncio.create_task(self._operate())
        stopping = asyncio.create_task(asyncio.to_thread(self._stop.wait))
        tasks: set[asyncio.Task[Any]] = {overseer, running, stopping}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            error = WatchError(f"{_why(overseer, running)}; begun anew")
            self._tell(self.ended, error)
        self._stop.set()
        # In order: kopf waits forever for watches whose helpers it has cancelled before them.
        for task in _watchers():
            task.cancel()
        await asyncio.wait({running}, timeout=END_SECONDS)
        overseer.cancel()

    async def _operate(self) -> None:
        await kopf.operator(
            registry=self._registry,
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not self._namespace,
            namespaces=[self._namespace] if self._namespace else [],
            stop_flag=self._stop,
        )

    def _tell(self, future: asyncio.Future[None], error: Exception | None) -> None:
        """Settle a future of the owner's loop, unless it is too late for that."""

        def settle() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        if not self._owner.is_closed():
            self._owner.call_soon_threadsafe(settle)


async def _until_one_ends() -> str:
    """Until a watch has ended, or was never begun; gives why."""
    while not (watchers := _watchers()):
        await asyncio.sleep(_LOOK_SECONDS)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + BEGIN_SECONDS
    while len(watchers := watchers | _watchers()) < len(RESOURCES):
        if loop.time() > deadline:
            # kopf looks once for what is served, and an API server can be late to list it.
            return f"kopf watches {len(watchers)} of {len(RESOURCES)} resources"
        await asyncio.sleep(_LOOK_SECONDS)
    done, _ = await asyncio.wait(watchers, return_when=asyncio.FIRST_COMPLETED)
    ended = next(iter(done))
    return f"the {ended.get_name()} has ended{_cause(ended)}"


def _watchers() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task.get_name().startswith(_WATCHER)}


def _why(overseer: asyncio.Task[str], running: asyncio.Task[None]) -> str:
    if overseer.done():
        return overseer.result()
    return f"kopf has ended{_cause(running)}"


def _cause(task: asyncio.Task[Any]) -> str:
    error = None if task.cancelled() else task.exception()
    return "" if error is None else f": {str(error) or type(error).__name__}"
