"""What the leading replica does: watches, workers, scrapes, Events; if one fails, all end.

Called by `__main__`.
"""

import asyncio
import gc
import logging
from contextlib import suppress

import aiohttp

from rlhf_operator.health import Health
from rlhf_operator.job_metrics import JobMetrics, exported
from rlhf_operator.kopf_thread import WatchError
from rlhf_operator.kube import ApiError, Kube, OutdatedError
from rlhf_operator.metrics import CONFLICT, RECONCILE_ERRORS, RECONCILE_SECONDS
from rlhf_operator.reconcile import Reconciler
from rlhf_operator.recorder import Recorder
from rlhf_operator.scraper import Scraper
from rlhf_operator.settings import Settings
from rlhf_operator.store import Store
from rlhf_operator.watches import NamespaceMissingError, Watch, check_namespace, check_served
from rlhf_operator.work_queue import Key, WorkQueue

COLLECT_SECONDS = 300.0
PROBE_SECONDS = 2.0
PROBE_AGAIN_SECONDS = 30.0
"""Between the looks of a replica that is ready."""

logger = logging.getLogger(__name__)


async def serve(kube: Kube, settings: Settings, health: Health, queue: WorkQueue) -> None:
    """Look after all jobs until cancelled."""
    store, recorder = Store(), Recorder(kube)
    async with aiohttp.ClientSession() as session:
        scraper = Scraper(session, queue.add)
        reconciler = Reconciler(kube, store, scraper, recorder, settings)
        metrics = JobMetrics(store, scraper, settings.job_metrics_seconds)
        with exported(metrics, health.looks):
            async with asyncio.TaskGroup() as tasks:
                for namespace in dict.fromkeys(settings.namespaces) or ("",):
                    watch = Watch(namespace, kube, store, queue, health)
                    tasks.create_task(watch.run(settings.resync_seconds))
                for _ in range(settings.workers):
                    tasks.create_task(_work(reconciler, queue))
                tasks.create_task(scraper.run())
                tasks.create_task(recorder.run())
                tasks.create_task(_collect_garbage())
                health.leads = True


async def probe(kube: Kube, settings: Settings, health: Health) -> None:
    """Find out again and again whether this replica could take over, until it leads."""
    while not health.leads:
        problem = await _problem(kube, settings)
        if problem and problem != health.problem:
            logger.warning("not ready: %s", problem)
        health.served, health.problem = not problem, problem
        await asyncio.sleep(PROBE_SECONDS if problem else PROBE_AGAIN_SECONDS)


async def _problem(kube: Kube, settings: Settings) -> str:
    try:
        await check_served(kube)
        for namespace in settings.namespaces or ("",):
            with suppress(NamespaceMissingError):
                await check_namespace(kube, namespace)
    except (ApiError, WatchError) as error:
        return str(error)
    return ""


async def _collect_garbage() -> None:
    """A whole collection takes a tenth of a second, which a pass would otherwise wait for."""
    while True:
        await asyncio.sleep(COLLECT_SECONDS)
        gc.collect()


async def _work(reconciler: Reconciler, queue: WorkQueue) -> None:
    while True:
        key = await queue.take()
        try:
            with RECONCILE_SECONDS.time():
                again = await reconciler.reconcile(key)
        except ApiError as error:
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
    if isinstance(error, OutdatedError):
        # The store has been brought up to date.
        RECONCILE_ERRORS.labels(CONFLICT).inc()
        queue.add(key)
        return
    RECONCILE_ERRORS.labels(f"http-{error.status}").inc()
    logger.warning("%s/%s: %s", *key, error)
    queue.retry(key, error.retry_after or 0)
