"""Events about jobs, told in a loop of their own: nobody waits for them, and no job needs them.

Fed by `reconcile`; ends with the work of the leader, so that nothing is told after the loss.
"""

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rlhf_operator.kube import ApiError, Kube
from rlhf_operator.metrics import EVENTS_DROPPED

Raw = dict[str, Any]

WAITING_EVENTS = 10_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Told:
    about: Raw
    kind: str
    reason: str
    message: str
    at: str


class Recorder:
    """A bounded row of Events that are still to be made."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube
        self._waiting: asyncio.Queue[_Told] = asyncio.Queue(WAITING_EVENTS)

    def tell(self, raw: Raw, kind: str, reason: str, message: str) -> None:
        """Let an Event about the job `raw` be made soon."""
        metadata = raw["metadata"]
        logger.info("%s/%s: %s: %s", metadata["namespace"], metadata["name"], reason, message)
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        # Not all of its metadata: thousands may wait.
        named = {field: metadata[field] for field in ("namespace", "name", "uid")}
        about = {"kind": raw["kind"], "metadata": named}
        try:
            self._waiting.put_nowait(_Told(about, kind, reason, message, at))
        except asyncio.QueueFull:
            EVENTS_DROPPED.inc()

    async def run(self) -> None:
        """Make them, one after another, until cancelled."""
        while True:
            told = await self._waiting.get()
            name = told.about["metadata"]["name"]
            try:
                await self._kube.tell(told.about, told.kind, told.reason, told.message, told.at)
            except ApiError as error:
                logger.warning("Event %s of %s: %s", told.reason, name, error)
