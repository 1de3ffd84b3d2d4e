"""One replica leads, by a Lease, and gives it back at its end: another takes over at once."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from rlhf_api.errors import RLHFError
from rlhf_operator.kube import ApiError, Kube
from rlhf_operator.metrics import LEADER
from rlhf_operator.settings import Settings

LEASE_SECONDS = 12
RENEW_SECONDS = 8
RETRY_SECONDS = 2

logger = logging.getLogger(__name__)


class LeadershipLostError(RLHFError):
    """Another replica may lead by now; nothing more may be written."""


async def lead(kube: Kube, settings: Settings, work: Callable[[], Awaitable[None]]) -> None:
    """Wait until this replica leads, then do `work` and give the Lease back.

    Raises:
        LeadershipLostError: the Lease could not be renewed in time; `work` was cancelled.
    """
    await _make_lease(kube, settings)
    lock = LeaseLock(settings.lease_name, settings.namespace, settings.identity, kube.client)
    elected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def leading() -> None:
        elected.set_result(None)

    async def lost() -> None:
        LEADER.set(0)

    config = Config(lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, leading, lost)
    election = asyncio.create_task(LeaderElection(config).run())
    working: asyncio.Task[None] | None = None
    try:
        await asyncio.wait({election, elected}, return_when=asyncio.FIRST_COMPLETED)
        if not election.done():
            logger.info("%s leads", settings.identity)
            LEADER.set(1)
            working = asyncio.create_task(_awaited(work))
            await asyncio.wait({election, working}, return_when=asyncio.FIRST_COMPLETED)
        if election.done():
            election.result()
            raise LeadershipLostError(f"Lease {settings.lease_name} was not renewed in time")
        assert working is not None
        await working
    finally:
        for task in filter(None, (election, working)):
            task.cancel()
        await asyncio.gather(*filter(None, (election, working)), return_exceptions=True)
        LEADER.set(0)
        await _release(kube, settings)


async def _awaited(work: Callable[[], Awaitable[None]]) -> None:
    await work()


async def _make_lease(kube: Kube, settings: Settings) -> None:
    """Make the Lease, held by nobody: LeaseLock.create of kubernetes 37.0.2 fails by itself."""
    try:
        await kube.request("POST", _leases(settings), {"metadata": {"name": settings.lease_name}})
    except ApiError as error:
        if error.status != 409:
            raise


async def _release(kube: Kube, settings: Settings) -> None:
    """Give the Lease back if it is ours; else another replica waits until it has run out."""
    path = f"{_leases(settings)}/{settings.lease_name}"
    try:
        lease = await kube.find(path)
        if lease is None or lease["spec"].get("holderIdentity") != settings.identity:
            return
        lease["spec"].pop("holderIdentity")
        await kube.request("PUT", path, lease)
    except ApiError as error:
        logger.warning("Lease %s is not given back: %s", settings.lease_name, error)


def _leases(settings: Settings) -> str:
    return f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
