"""`python -m rlhf_operator`: the operator as a process. `settings` says how it is set."""

import asyncio
import faulthandler
import gc
import logging
import os
import signal
import sys
from typing import NoReturn

import uvloop
from kubernetes.aio.config import ConfigException

from rlhf_api.errors import ConfigError, RLHFError
from rlhf_api.names import ExitCode
from rlhf_operator.health import Health, served
from rlhf_operator.kube import Kube
from rlhf_operator.leader import lead
from rlhf_operator.serve import probe, serve
from rlhf_operator.settings import Settings, read_settings
from rlhf_operator.work_queue import WorkQueue

logger = logging.getLogger("rlhf_operator")


async def run(settings: Settings) -> None:
    """Lead or wait to lead, until cancelled."""
    queue = WorkQueue()
    health = Health(queue, settings.resync_seconds)
    async with (
        served(health, settings.port) as port,
        Kube.connect(settings.api_requests_per_second) as kube,
    ):
        logger.info("serving /healthz, /readyz and /metrics on port %d", port)
        probing = asyncio.create_task(probe(kube, settings, health))
        try:
            await lead(kube, settings, lambda: serve(kube, settings, health, queue))
        finally:
            probing.cancel()


async def _until_signal(settings: Settings) -> None:
    task = asyncio.create_task(run(settings))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        logger.info("stopped on request")


def _favour_latency() -> None:
    """Let neither the collector nor kopf's threads hold up a pass for long."""
    # What is imported by now lives on; to walk through it in each collection takes 50 ms.
    gc.collect()
    gc.freeze()
    # The store is walked through by `serve`, at long intervals, and not in the midst of a burst.
    gc.set_threshold(50_000, 20, 100)
    sys.setswitchinterval(0.001)


def main() -> int:
    """The process; gives its exit code."""
    try:
        settings = read_settings()
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    logging.basicConfig(
        level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if settings.log_level != "DEBUG":
        # `watches` tells what ends a watch of kopf, and begins it anew.
        logging.getLogger("kopf").setLevel(logging.CRITICAL)
    logger.info("settings: %s", settings.model_dump_json())
    _favour_latency()
    failures: list[Exception] = []
    # Never closed, which would wait without a bound for work that does not end; `leave` does not.
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        runner.run(_until_signal(settings))
    except* (RLHFError, ConfigException, OSError) as group:
        failures += group.exceptions
    for failure in failures:
        logger.error("%s", failure)
    return ExitCode.CRASH if failures else ExitCode.DONE


def leave(code: int) -> NoReturn:
    """End the process at once, whatever tasks and threads still run.

    A kopf that did not end in time runs on in its thread. While the interpreter would take down
    everything around it, that thread can crash the process, and the exit code would be the
    crash's.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    faulthandler.enable()
    leave(main())
