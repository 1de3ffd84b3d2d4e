"""What the leading replica does: kopf's watches, the workers, the resync; one fails, all end.

Called by `__main__`.
"""

import asyncio
import functools
import logging
import random
import threading

import aiohttp
import kopf

from rlhf_api.errors import RLHFError
from rlhf_operator.handlers import kopf_settings, registry
from rlhf_operator.health import Health
from rlhf_operator.kube import ApiError, Kube, job_path
from rlhf_operator.metrics import RECONCILE_ERRORS, RECONCILE_SECONDS
from rlhf_operator.reconcile import Reconciler
from rlhf_operator.refusals import ChildError
from rlhf_operator.settings import Settings
from rlhf_operator.work_queue import Key, WorkQueue

CONFLICT_SECONDS = 0.1
FIRST_COMPARISON_SECONDS = 15.0

logger = logging.getLogger(__name__)


class SetupError(RLHFError):
    """The cluster lacks what the operator needs."""


class WatchError(RLHFError):
    """Nothing is watched any more."""


async def serve(kube: Kube, settings: Settings, queue: WorkQueue, health: Health) -> None:
    """Look after all jobs until cancelled.

    Raises:
        SetupError: the CRD is not installed.
        ExceptionGroup: with a WatchError; the watches have ended.
    """
    await _check_crd(kube, settings)
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        reconciler = Reconciler(kube, session, settings)
        for _ in range(settings.workers):
            tasks.create_task(_work(reconciler, queue))
        tasks.create_task(_resync(kube, settings, queue, health))
        tasks.create_task(_watch(settings, queue, health))
        health.leads = True


async def _watch(settings: Settings, queue: WorkQueue, health: Health) -> None:
    """Run kopf until cancelled.

    In a thread of its own, since kopf ends every task of its event loop when it ends, and takes
    over the signals.
    """
    loop, stop = asyncio.get_running_loop(), threading.Event()

    def seen(uid: str, version: str) -> None:
        loop.call_soon_threadsafe(health.seen, uid, version)

    def changed(key: Key) -> None:
        loop.call_soon_threadsafe(queue.add, key)

    run = functools.partial(
        kopf.run,
        registry=registry(changed, seen),
        settings=kopf_settings(),
        standalone=True,
        clusterwide=not settings.namespaces,
        namespaces=settings.namespaces,
        stop_flag=stop,
    )
    watching = asyncio.create_task(asyncio.to_thread(run))
    try:
        await asyncio.shield(watching)
        raise WatchError("the watches have ended by themselves")
    finally:
        stop.set()
        await watching


async def _work(reconciler: Reconciler, queue: WorkQueue) -> None:
    while True:
        key = await queue.take()
        try:
            with RECONCILE_SECONDS.time():
                again = await reconciler.reconcile(key)
        except ChildError as error:
            RECONCILE_ERRORS.labels(error.refusal.reason).inc()
            queue.retry(key, error.refusal.at_least)
        except ApiError as error:
            RECONCILE_ERRORS.labels(f"http-{error.status}").inc()
            _retry(queue, key, error)
        except Exception:  # One job's fault must not stop the others.
            RECONCILE_ERRORS.labels("bug").inc()
            logger.exception("%s/%s: this is a fault of the operator; please report it", *key)
            queue.retry(key)
        else:
            queue.forget_failures(key)
            if again is not None:
                queue.add(key, again)
        finally:
            queue.done(key)


def _retry(queue: WorkQueue, key: Key, error: ApiError) -> None:
    if error.status == 409:
        # Someone else wrote to the job; the watch shows it in a moment.
        queue.add(key, CONFLICT_SECONDS)
        return
    logger.warning("%s/%s: %s", *key, error)
    queue.retry(key, error.retry_after or 0)


async def _resync(kube: Kube, settings: Settings, queue: WorkQueue, health: Health) -> None:
    """Look at every job now and then, and see that the watch shows what is there."""
    delay = FIRST_COMPARISON_SECONDS
    while True:
        await asyncio.sleep(delay)
        delay = settings.resync_seconds * random.uniform(0.9, 1.1)
        try:
            jobs = [
                job
                for namespace in settings.namespaces or ("",)
                for job in await kube.items(job_path(namespace))
            ]
        except ApiError as error:
            logger.warning("resync: %s", error)
            delay = FIRST_COMPARISON_SECONDS
            continue
        health.compare((job["metadata"]["uid"], job["metadata"]["resourceVersion"]) for job in jobs)
        for job in jobs:
            queue.add((job["metadata"]["namespace"], job["metadata"]["name"]), random.uniform(0, 5))


async def _check_crd(kube: Kube, settings: Settings) -> None:
    """kopf would wait in silence for a resource that does not exist."""
    namespace = settings.namespaces[0] if settings.namespaces else ""
    try:
        await kube.items(job_path(namespace))
    except ApiError as error:
        if error.status != 404:
            raise
        raise SetupError(
            "the CRD rlhfjobs.rlhf.dev is not installed; apply crds/rlhfjobs.yaml"
        ) from error
