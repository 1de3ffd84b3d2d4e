"""One replica leads, by a Lease; at its end it gives the Lease back: another takes over at once.

Called by `__main__`. Clocks of two machines are never compared: a candidate counts the time since
it saw the Lease change, and a leader ends its work before that time can be over for anybody.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import Any

from rlhf_api.errors import RLHFError
from rlhf_operator.kube import ApiError, Kube, Raw
from rlhf_operator.lease import (
    RETRY_SECONDS,
    Renew,
    Sight,
    Take,
    Wait,
    decide,
    given_back,
    held,
    owner_reference,
    owners_of,
    see,
    uid_of,
)
from rlhf_operator.metrics import LEADER
from rlhf_operator.settings import Settings

RENEW_SECONDS = 8
"""Without a renewal for so long the work ends."""
REQUEST_SECONDS = 3
STOP_SECONDS = 3
"""For the work to end: with RENEW_SECONDS less than `lease.LEASE_SECONDS`."""
REQUESTS_PER_SECOND = 10

Work = Coroutine[Any, Any, None]

logger = logging.getLogger(__name__)


class LeadershipLostError(RLHFError):
    """Another replica may lead by now; nothing more may be written."""


class Election:
    """The Lease, taken and renewed under one identity.

    Attributes:
        renewed_at: when the last request was sent that wrote our name, by the monotonic clock.
    """

    def __init__(self, kube: Kube, settings: Settings) -> None:
        # A budget of its own: no burst of the workers delays a renewal.
        self._kube = Kube(kube.client, REQUESTS_PER_SECOND)
        self._identity, self._name = settings.identity, settings.lease_name
        self._leases = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        self._deployments = f"/apis/apps/v1/namespaces/{settings.namespace}/deployments"
        self._deployment = settings.deployment
        self._owner: Raw | None = None
        self._sight: Sight | None = None
        self._complaint = ""
        self.renewed_at = -float("inf")

    async def acquire(self) -> None:
        """Wait until the Lease is ours, whatever becomes of single requests."""
        while True:
            started = time.monotonic()
            try:
                step = await self._look()
                if not isinstance(step, Wait):
                    await self._find_owner()
                    await self._write()
                    return
                pause, self._complaint = step.seconds, ""
            except ApiError as error:
                self._complain("not taken", error)
                pause = started + RETRY_SECONDS - time.monotonic()
            await asyncio.sleep(max(0, pause))

    async def keep(self) -> None:
        """Renew the Lease until it is another's; failed requests are repeated without end.

        Raises:
            LeadershipLostError: another replica holds it.
        """
        pause: float = RETRY_SECONDS
        stale = False
        while True:
            await asyncio.sleep(max(0, pause))
            started = time.monotonic()
            try:
                if stale and not isinstance(await self._look(), Renew):
                    raise LeadershipLostError(f"Lease {self._name} is held by {self._holder()}")
                await self._write()
                stale = False
                await self._find_owner()
                pause = started + RETRY_SECONDS - time.monotonic()
            except ApiError as error:
                self._complain("not renewed", error)
                # Whoever changed it may lead: that is to be seen at once. If nobody did, a webhook
                # or what stands in between says so, and would say it again.
                changed = not stale and error.status in (404, 409)
                stale = True
                pause = 0 if changed else started + RETRY_SECONDS - time.monotonic()

    async def release(self) -> None:
        """Give the Lease back if it is ours; else another replica waits until it has run out."""
        try:
            if not isinstance(await self._look(), Renew):
                return
            assert self._sight is not None
            if self._sight.lease is None:
                return
            lease = given_back(self._sight, self._identity, datetime.now(UTC))
            await self._request("Lease", "PUT", self._path, lease)
        except ApiError as error:
            logger.warning("Lease %s is not given back: %s", self._name, error)

    @property
    def _path(self) -> str:
        return f"{self._leases}/{self._name}"

    async def _look(self) -> Take | Renew | Wait:
        try:
            lease = await self._request("Lease", "GET", self._path)
        except ApiError as error:
            if error.status != 404:
                raise
            lease = None
        now = time.monotonic()
        self._sight = see(self._sight, lease, now)
        return decide(self._sight, now, self._identity)

    async def _write(self) -> None:
        """Write our name, if the Lease is still the one that was seen (else 409)."""
        assert self._sight is not None
        lease = held(self._sight, self._identity, self._owner, datetime.now(UTC))
        started = time.monotonic()
        try:
            if self._sight.lease is None:
                lease["metadata"] = {**lease["metadata"], "name": self._name}
                written = await self._request("Lease", "POST", self._leases, lease)
            else:
                written = await self._request("Lease", "PUT", self._path, lease)
        except ApiError as error:
            new_owner = owners_of(lease) != owners_of(self._sight.lease)
            if error.status == 403 and self._owner and new_owner:
                self._do_without_owner(error, f"`delete` on the Lease {self._name}")
            raise
        self._sight = Sight.of(written, started)
        self.renewed_at = started
        self._complaint = ""

    async def _request(self, kind: str, method: str, path: str, body: Raw | None = None) -> Raw:
        answer = await self._kube.request(method, path, body, timeout=REQUEST_SECONDS)
        if answer.get("kind") != kind:  # Something in between answers for the API server.
            raise ApiError(path, 0, {"message": f"{method} {path}: the answer is no {kind}"})
        return answer

    async def _find_owner(self) -> None:
        """Look once for our own Deployment: with it, the garbage collector removes the Lease."""
        if not self._deployment or self._owner:
            return
        path = f"{self._deployments}/{self._deployment}"
        try:
            uid = uid_of(await self._request("Deployment", "GET", path))
        except ApiError as error:
            if error.status in (403, 404):
                self._do_without_owner(error, f"`get` on the Deployment {self._deployment}")
            return  # Else it is looked for again with the next renewal.
        self._owner = owner_reference(self._deployment, uid)

    def _do_without_owner(self, error: ApiError, right: str) -> None:
        self._deployment, self._owner = "", None
        logger.warning(
            "Lease %s gets no owner and will outlive an uninstall: %s; grant the operator %s, "
            "or correct RLHF_OPERATOR_DEPLOYMENT",
            *(self._name, error, right),
        )

    def _holder(self) -> str:
        record = self._sight.record if self._sight else {}
        return record.get("holderIdentity") or "nobody"

    def _complain(self, what: str, error: ApiError) -> None:
        """Log a failure once, not every two seconds."""
        complaint = f"Lease {self._name} is {what}: {error}; trying again"
        if complaint != self._complaint:
            logger.warning("%s", complaint)
        self._complaint = complaint


async def lead(kube: Kube, settings: Settings, work: Callable[[], Work]) -> None:
    """Wait until this replica leads, then do `work` and give the Lease back.

    Raises:
        LeadershipLostError: the Lease could not be renewed in time, or is another's; `work` was
            cancelled, and what does not end within STOP_SECONDS is left behind.
    """
    election = Election(kube, settings)
    tasks: list[asyncio.Task[None]] = []
    lost = False
    try:
        await election.acquire()
        logger.info("%s leads", settings.identity)
        LEADER.set(1)
        tasks += [asyncio.create_task(election.keep()), asyncio.create_task(work())]
        await _until_over(election, *tasks)
    except LeadershipLostError as error:
        lost = True
        logger.warning("%s is stopping its work: %s", settings.identity, error)
        raise
    finally:
        LEADER.set(0)
        stopped = await _stop(tasks, election.renewed_at + RENEW_SECONDS + STOP_SECONDS)
        if stopped and tasks:
            logger.info("%s has stopped leading", settings.identity)
        if stopped and not lost:
            await election.release()


async def _until_over(
    election: Election, renewing: asyncio.Task[None], working: asyncio.Task[None]
) -> None:
    """Until the work ends or the time to renew is over, whatever the renewals are waiting for."""
    while (left := election.renewed_at + RENEW_SECONDS - time.monotonic()) > 0:
        await asyncio.wait({renewing, working}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for task in (renewing, working):
            if task.done():
                return task.result()
    raise LeadershipLostError(
        f"the Lease was not renewed for {RENEW_SECONDS} s; see that the API server answers"
    )


async def _stop(tasks: list[asyncio.Task[None]], deadline: float) -> bool:
    """Cancel what still runs; False if it has not ended by the deadline."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if not running:
        return True
    done, late = await asyncio.wait(running, timeout=max(0, deadline - time.monotonic()))
    for task in done:
        if not task.cancelled() and (error := task.exception()):
            logger.error("the work failed while it was stopped: %s", error)
    if late:
        logger.error("the work has not ended in time; the Lease is not given back")
    return not late
