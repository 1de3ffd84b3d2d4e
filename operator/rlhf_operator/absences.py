"""Asks for what the store cannot show: pods that came before they were seen, or were never made.

Called by `reconcile`. Jobs and Pods are separate streams: a Job can be seen complete before the
results of its pods are. So a verdict that follows from what is not there is preceded by one LIST.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rlhf_operator.kube import Kube, core_path
from rlhf_operator.memory import LACKING_SECONDS, LAST_RETRY_SECONDS, AttemptId, Lookup, Memory
from rlhf_operator.observe import SeenAttempt, lacks_pods, refused_pod, vanished_pod
from rlhf_operator.planning.observed import ObservedProcess
from rlhf_operator.store import Store

Raw = dict[str, Any]
Processes = tuple[ObservedProcess, ...]

_CONTROLLER = "batch.kubernetes.io/controller-uid"
"""Label that the Job controller gives to the pods of a Job."""


class Absences:
    """Questions about what is missing."""

    def __init__(self, kube: Kube, store: Store) -> None:
        self._kube, self._store = kube, store

    async def list_pods(self, jobs: Sequence[Raw]) -> None:
        """Bring the pods of these Jobs in the store up to date."""
        for job in jobs:
            metadata = job["metadata"]
            path, uid = core_path(metadata["namespace"], "pods"), metadata["uid"]
            listing = await self._kube.list(path, f"{_CONTROLLER}={uid}")
            self._store.replace_pods(uid, listing.items, listing.version)

    async def missing(self, seen: SeenAttempt, memory: Memory) -> tuple[Processes, datetime | None]:
        """The processes of an attempt, with those that there are no pods of.

        Returns:
            The processes, and when to look again.
        """
        attempt = seen.attempt
        if lacks_pods(seen.gang):
            return await self._lacking(seen, memory)
        memory.lookups.pop(seen.ident, None)
        gone = attempt.failed and not seen.gang.pods and attempt.confirmed
        deleted = seen.gang.job["metadata"].get("deletionTimestamp")
        if gone and not deleted:
            found = await self._remains(seen, memory)
            return (found,) if found is not None else attempt.processes, None
        return attempt.processes, None

    async def _lacking(
        self, seen: SeenAttempt, memory: Memory
    ) -> tuple[Processes, datetime | None]:
        now = time.monotonic()
        lookup = memory.lookups.setdefault(seen.ident, Lookup(now + LACKING_SECONDS))
        if now >= lookup.next:
            lookup.found = await self._refusal_of_pods(seen)
            lookup.pause = min(LAST_RETRY_SECONDS, lookup.pause * 2)
            lookup.next = now + lookup.pause
        look_at = datetime.now(UTC) + timedelta(seconds=lookup.next - now)
        name = seen.gang.job["metadata"]["name"]
        unmade = lookup.found or ObservedProcess(f"{name}-?", -1)
        return (*seen.attempt.processes, unmade), look_at

    async def _refusal_of_pods(self, seen: SeenAttempt) -> ObservedProcess:
        metadata = seen.gang.job["metadata"]
        fields = f"involvedObject.uid={metadata['uid']},reason=FailedCreate"
        path = core_path(metadata["namespace"], "events")
        return refused_pod(seen.gang.job, (await self._kube.list(path, fields=fields)).items)

    async def _remains(self, seen: SeenAttempt, memory: Memory) -> ObservedProcess | None:
        """What the Events of pods that are gone tell; asked for once."""
        ident: AttemptId = seen.ident
        if ident not in memory.remains:
            metadata = seen.gang.job["metadata"]
            path = core_path(metadata["namespace"], "events")
            listing = await self._kube.list(path, fields="involvedObject.kind=Pod")
            memory.remains[ident] = vanished_pod(metadata["name"], listing.items)
        found = memory.remains[ident]
        killed_at = seen.attempt.killed_at
        return None if found is None else replace(found, finished_at=found.finished_at or killed_at)
