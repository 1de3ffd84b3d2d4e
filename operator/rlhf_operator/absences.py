"""Asks for what the store cannot show: Jobs that no watch shows, pods that came before they were
seen, or were never made, and what keeps a pod from its start.

Called by `reconcile`. Jobs and Pods are separate streams: a Job can be seen complete before the
results of its pods are. So a verdict that follows from what is not there is preceded by one LIST.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rlhf_api.names import Reason, StageState
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.fields import attempt_of, is_hidden, is_watched, owner_uid
from rlhf_operator.kube import ApiError, Kube, batch_path, core_path
from rlhf_operator.manifests import child_name, is_disowned, is_made_for_its_name
from rlhf_operator.memory import (
    CONFIRM,
    LACKING_SECONDS,
    LAST_RETRY_SECONDS,
    READ,
    AttemptId,
    Lookup,
    Memory,
)
from rlhf_operator.mounting import before_start, hindered_pod, in_turn
from rlhf_operator.observe import (
    SeenAttempt,
    has_unseen_pods,
    lacks_pods,
    refused_pod,
    vanished_pod,
)
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.observed import ObservedProcess
from rlhf_operator.planning.stages import ACTIVE
from rlhf_operator.planning.statuses import is_finished, stages_of
from rlhf_operator.refusals import refusal, steady
from rlhf_operator.store import Gang, Kind, Store

Raw = dict[str, Any]
Processes = tuple[ObservedProcess, ...]

logger = logging.getLogger(__name__)

_CONTROLLER = "batch.kubernetes.io/controller-uid"
"""Label that the Job controller gives to the pods of a Job."""

ASKED_AT_ONCE = 8
"""Pods of a gang whose Events are read at one look."""


class Absences:
    """Questions about what is missing."""

    def __init__(self, kube: Kube, store: Store) -> None:
        self._kube, self._store = kube, store

    async def list_pods(self, job: RLHFJob, seen: SeenAttempt, memory: Memory) -> bool:
        """Bring the pods of an attempt up to date before a verdict; False if that is refused.

        Then this verdict alone waits, and `Memory.refused` tells of it.
        """
        if not memory.may_try((CONFIRM, *seen.ident), time.monotonic()):
            return False
        try:
            await self._list_pods(seen.gang.job)
        except ApiError as error:
            _refuse(job, seen, "listing the pods", error, memory)
            return False
        return True

    async def find_remains(self, job: RLHFJob, seen: SeenAttempt, memory: Memory) -> bool:
        """Ask once what Events tell of an attempt that left no pods; False if that is refused now.

        Args:
            job: whose attempt it is.
            seen: the attempt, of which the pods were listed.
            memory: where the answer is kept, and a refusal.
        """
        if not _needs_remains(seen) or seen.ident in memory.remains:
            memory.refused.pop((CONFIRM, *seen.ident), None)
            return True
        metadata = seen.gang.job["metadata"]
        path = core_path(metadata["namespace"], "events")
        try:
            events = (await self._kube.list(path, fields="involvedObject.kind=Pod")).items
        except ApiError as error:
            if error.status != 403:
                _refuse(job, seen, "listing Events of the pods", error, memory)
                return False
            logger.warning("Events in %s: %s; grant it", metadata["namespace"], error)
            events = []
        memory.remains[seen.ident] = vanished_pod(metadata["name"], events)
        memory.refused.pop((CONFIRM, *seen.ident), None)
        return True

    async def _list_pods(self, job: Raw) -> None:
        """Bring the pods of a Job in the store up to date."""
        metadata = job["metadata"]
        path, uid = core_path(metadata["namespace"], "pods"), metadata["uid"]
        listing = await self._kube.list(path, f"{_CONTROLLER}={uid}")
        self._store.replace_pods(uid, listing.items, listing.version)

    async def find_unwatched(self, job: RLHFJob, memory: Memory) -> datetime | None:
        """Bring the Jobs up to date that no watch shows, since somebody took our label away.

        An attempt is lost only when there is no Job of its name: what is not seen may train. One
        that may not be asked for is neither lost nor there: `Memory.unread` tells of it.

        Returns:
            When to look again; None if all that is there is watched.
        """
        known = {raw["metadata"]["name"]: raw for raw in self._children(job)}
        unwatched = {name for name, raw in known.items() if not is_watched(raw)}
        names = unwatched | (_awaited(job, memory) - known.keys())
        idents = {name: attempt_of(job.metadata.name, name) for name in sorted(names)}
        memory.forget_reads_but(ident for ident in idents.values() if ident is not None)
        for name, ident in idents.items():
            if ident is None or memory.may_try((READ, *ident), time.monotonic()):
                await self._read(job, name, ident, known.get(name), memory)
        left = any(not is_watched(raw) for raw in self._children(job))
        return datetime.now(UTC) + timedelta(seconds=LACKING_SECONDS) if left else None

    async def _read(
        self, job: RLHFJob, name: str, ident: AttemptId | None, known: Raw | None, memory: Memory
    ) -> None:
        """Bring one Job up to date; where that is refused, what is known of it stays."""
        namespace = job.metadata.namespace
        try:
            found = await self._kube.find(batch_path(namespace, name))
        except ApiError as error:
            refused = refusal(f"reading Job {name}", error, making=False)
            logger.warning("%s/%s: %s", namespace, job.metadata.name, refused.message)
            if ident is not None:
                memory.refuse((READ, *ident), refused, time.monotonic())
            return
        if ident is not None:
            memory.refused.pop((READ, *ident), None)
        if found is not None and _is_child(job, found):
            self._store.put_read(Kind.JOB, found)
        elif known is not None:
            self._store.remove(Kind.JOB, known)

    async def find_unwatched_pods(self, job: RLHFJob, memory: Memory) -> datetime | None:
        """Bring the pods up to date that no watch shows, since they lack our label: they train.

        Their Job counts them. It is watched, and says so when they end.

        Returns:
            When to look again; None if all that have not ended are watched.
        """
        now, looks = time.monotonic(), {}
        for found in self._gangs(job):
            uid = found.job["metadata"]["uid"]
            hidden = any(is_hidden(pod) for pod in found.pods)
            # The Job may be seen before the pods that it has just made.
            if not (hidden or has_unseen_pods(found)):
                continue
            looks[uid] = memory.pod_looks.get(uid, now + (0 if hidden else LACKING_SECONDS))
            if now >= looks[uid]:
                looks[uid] = now + LACKING_SECONDS
                try:
                    await self._list_pods(found.job)
                except ApiError as error:
                    # What is known of them stays.
                    logger.warning("Pods of Job %s: %s", found.job["metadata"]["name"], error)
        memory.pod_looks = looks
        if not looks:
            return None
        return datetime.now(UTC) + timedelta(seconds=max(0.0, min(looks.values()) - now))

    def _gangs(self, job: RLHFJob) -> list[Gang]:
        claiming = self._store.claiming_gangs(job.metadata.uid)
        disowned = (gang for gang in claiming if is_disowned(job, gang.job))
        return [*self._store.gangs(job.metadata.uid), *disowned]

    def _children(self, job: RLHFJob) -> list[Raw]:
        return [gang.job for gang in self._gangs(job)]

    async def missing(self, seen: SeenAttempt, memory: Memory) -> tuple[Processes, datetime | None]:
        """The processes of an attempt, with those that there are no pods of, and with what keeps a
        pod from its start.

        Returns:
            The processes, and when to look again.
        """
        attempt = seen.attempt
        if lacks_pods(seen.gang):
            return await self._lacking(seen, memory)
        memory.lookups.pop(seen.ident, None)
        waiting = [] if attempt.failed else before_start(attempt.processes, seen.gang.pods)
        if waiting:
            return await self._hindered(seen, waiting, memory)
        memory.waits.pop(seen.ident, None)
        found = (
            memory.remains.get(seen.ident) if attempt.confirmed and _needs_remains(seen) else None
        )
        if found is None:
            return attempt.processes, None
        return (replace(found, finished_at=found.finished_at or attempt.killed_at),), None

    async def _lacking(
        self, seen: SeenAttempt, memory: Memory
    ) -> tuple[Processes, datetime | None]:
        lookup = memory.lookups.setdefault(seen.ident, _first_lookup())
        if self._is_due(lookup):
            told = await self._refusal_of_pods(seen, lookup.found)
            if told is not None:
                lookup.hear(told)
        name = seen.gang.job["metadata"]["name"]
        unmade = lookup.found or ObservedProcess(f"{name}-?", -1)
        return (*seen.attempt.processes, unmade), _next_look(lookup)

    def _is_due(self, lookup: Lookup) -> bool:
        """Whether Events are asked for now; then the next time is later."""
        now = time.monotonic()
        # A worker that waited for the budget would do nothing for jobs that begin or end.
        if now < lookup.next or not self._kube.has_spare():
            return False
        lookup.pause = min(LAST_RETRY_SECONDS, lookup.pause * 2)
        lookup.next = now + lookup.pause
        return True

    async def _hindered(
        self, seen: SeenAttempt, waiting: Sequence[Raw], memory: Memory
    ) -> tuple[Processes, datetime | None]:
        """The processes of an attempt of which pods wait on their nodes."""
        lookup = memory.waits.setdefault(seen.ident, _first_lookup())
        processes = {each.name: each for each in seen.attempt.processes}
        if self._is_due(lookup):
            await self._ask(waiting, processes, lookup)
        found = lookup.found
        # The pod that was asked about before may have started since.
        if found is not None and any(pod["metadata"]["name"] == found.name for pod in waiting):
            known = processes[found.name]
            processes[found.name] = replace(known, reason=found.reason, message=found.message)
        return tuple(processes.values()), _next_look(lookup)

    async def _ask(
        self, waiting: Sequence[Raw], processes: Mapping[str, ObservedProcess], lookup: Lookup
    ) -> None:
        """Ask about the pods that wait, in turn, until one has a cause to tell."""
        for pod in in_turn(waiting, lookup.found)[:ASKED_AT_ONCE]:
            told = await self._hindrance_of(pod, processes[pod["metadata"]["name"]])
            if told is not None:
                lookup.hear(told)
            if told is None or told.reason is not None or not self._kube.has_spare():
                return

    async def _hindrance_of(self, pod: Raw, process: ObservedProcess) -> ObservedProcess | None:
        """The pod with what its Events tell; None where they cannot be read."""
        metadata = pod["metadata"]
        path = core_path(metadata["namespace"], "events")
        try:
            listing = await self._kube.list(
                path, fields=f"involvedObject.uid={metadata['uid']}", spare=True
            )
        except ApiError as error:
            # They only explain; the job goes on without.
            logger.warning("Events of Pod %s: %s", process.name, error)
            return None
        return hindered_pod(process, listing.items)

    async def _refusal_of_pods(
        self, seen: SeenAttempt, known: ObservedProcess | None
    ) -> ObservedProcess | None:
        """The pod that was not made, as Events tell; None where they cannot be read, and what is
        known says more than that."""
        metadata = seen.gang.job["metadata"]
        fields = f"involvedObject.uid={metadata['uid']},reason=FailedCreate"
        path = core_path(metadata["namespace"], "events")
        try:
            found = (await self._kube.list(path, fields=fields, spare=True)).items
        except ApiError as error:
            # They only explain; the job goes on without.
            name = metadata["name"]
            logger.warning("Events of Job %s: %s", name, error)
            if known is not None and known.reason not in (None, Reason.PODS_PENDING):
                return None
            message = f"Job {name} lacks pods, and its Events cannot be read: {steady(str(error))}"
            return ObservedProcess(f"{name}-?", -1, reason=Reason.PODS_PENDING, message=message)
        return refused_pod(seen.gang.job, found)


def _refuse(job: RLHFJob, seen: SeenAttempt, what: str, error: ApiError, memory: Memory) -> None:
    metadata, child = job.metadata, f"Job {seen.gang.job['metadata']['name']}"
    refused = refusal(f"{what} of {child}", error, making=False)
    logger.warning("%s/%s: %s", metadata.namespace, metadata.name, refused.message)
    memory.refuse((CONFIRM, *seen.ident), refused, time.monotonic())


def _needs_remains(seen: SeenAttempt) -> bool:
    """Whether nothing but Events can tell how an attempt has ended."""
    gone = seen.attempt.failed and not seen.gang.pods
    return gone and not seen.gang.job["metadata"].get("deletionTimestamp")


def _is_child(job: RLHFJob, raw: Raw) -> bool:
    owned = owner_uid(raw) == job.metadata.uid and is_made_for_its_name(raw)
    return owned or is_disowned(job, raw)


def _first_lookup() -> Lookup:
    return Lookup(time.monotonic() + LACKING_SECONDS)


def _next_look(lookup: Lookup) -> datetime:
    seconds = max(1.0, lookup.next - time.monotonic())
    return datetime.now(UTC) + timedelta(seconds=seconds)


def _awaited(job: RLHFJob, memory: Memory) -> set[str]:
    """Names of the Jobs that should be there, or may still run, by the job's status."""
    if is_finished(job.status):
        return set()
    return {
        child_name(job, name, stage.attempt)
        for name, stage in stages_of(job.status).items()
        if (stage.state in ACTIVE or stage.state is StageState.FAILED)
        and stage.attempt > 0
        and (StartAttempt, name, stage.attempt) not in memory.refused
    }
