"""One pass over one job: read the store, plan, write the status, let Events be told, act.

Called by the workers of `serve`, by one at a time for each job. A pass sends nothing but its
writes, save where something is missing from the store that a verdict needs (`absences`), and when
the pods of a gang have come to run, for the Service by which they find each other.
"""

import logging
import time
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rlhf_api.errors import ConfigError
from rlhf_api.names import ConditionType, Reason, StageState
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus
from rlhf_operator.absences import Absences
from rlhf_operator.act import Actor
from rlhf_operator.fields import pods_of_gang
from rlhf_operator.job_series import is_told
from rlhf_operator.kube import ApiError, Kube, OutdatedError, job_path
from rlhf_operator.manifests import cluster_placement, is_attempt, is_disowned
from rlhf_operator.memory import (
    CONFIRM,
    EXPIRY,
    SERVICE,
    AttemptId,
    Memory,
    ident_of,
)
from rlhf_operator.observe import (
    SeenAttempt,
    pods_by_index,
    seen_attempts,
    without_taken_away,
)
from rlhf_operator.oddities import oddities
from rlhf_operator.planning.actions import Action
from rlhf_operator.planning.conditions import find_condition
from rlhf_operator.planning.events import derive_events
from rlhf_operator.planning.invalid import invalid_status, says_invalid
from rlhf_operator.planning.observed import Observed, ObservedAttempt, Oddity
from rlhf_operator.planning.pace import Change, change, is_expired
from rlhf_operator.planning.plan import Plan, plan
from rlhf_operator.planning.removal import RemoveAttempt
from rlhf_operator.planning.statuses import stages_of
from rlhf_operator.recorder import Recorder
from rlhf_operator.refusals import ChildError
from rlhf_operator.scraper import Scraper
from rlhf_operator.settings import Settings
from rlhf_operator.stage_counts import count_stages
from rlhf_operator.store import Gang, Kind, Store
from rlhf_operator.wakeups import next_look, spare_look
from rlhf_operator.work_queue import Key

Raw = dict[str, Any]

logger = logging.getLogger(__name__)


class Reconciler:
    """Passes over jobs."""

    def __init__(
        self, kube: Kube, store: Store, scraper: Scraper, recorder: Recorder, settings: Settings
    ) -> None:
        self._kube, self._store, self._scraper, self._recorder = kube, store, scraper, recorder
        self._actor = Actor(kube, store, settings)
        self._absences = Absences(kube, store)
        self._keep_metrics = timedelta(seconds=settings.job_metrics_seconds)
        self._memory: dict[str, Memory] = {}
        self._refused: dict[str, str] = {}
        self._uids: dict[Key, str] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Do what is to be done about a job now.

        Returns:
            Seconds until it must be looked at again; None if nothing waits for a time.

        Raises:
            OutdatedError: someone else wrote to the job meanwhile.
            ApiError: the API server cannot be asked, or refuses.
        """
        raw = self._store.job(key)
        self._keep_in_mind(key, raw)
        if raw is None:
            return None
        if raw["metadata"].get("deletionTimestamp"):
            self._scraper.forget(raw["metadata"]["uid"])
            return None
        now = datetime.now(UTC)
        try:
            job = RLHFJob.from_document(raw)
        except ConfigError as error:
            await self._refuse(raw, str(error), now)
            return None
        memory = self._memory.get(job.metadata.uid) or Memory.begin(job.status)
        self._memory[job.metadata.uid] = memory
        job = job.model_copy(update={"status": memory.status_of(raw, job.status)})
        if await self._expire(job, raw, memory, now):
            self._keep_in_mind(key, None)
            return None
        if not is_told(job.status, now, self._keep_metrics):
            self._scraper.forget(job.metadata.uid)
        observed, decided = await self._decide(job, memory, now)
        if not await self._tell(job, raw, memory, observed, decided):
            return spare_look(decided, memory)
        if await self._act(job, decided, memory):
            return 0.0
        return next_look(decided, memory)

    def _keep_in_mind(self, key: Key, raw: Raw | None) -> None:
        """Forget what was kept of another job of this name."""
        uid = None if raw is None else raw["metadata"]["uid"]
        known = self._uids.get(key)
        if known is not None and known != uid:
            del self._uids[key]
            self._memory.pop(known, None)
            self._refused.pop(known, None)
            self._scraper.forget(known)
        if uid is not None:
            self._uids[key] = uid

    async def _decide(self, job: RLHFJob, memory: Memory, now: datetime) -> tuple[Observed, Plan]:
        placement = cluster_placement(job)
        jobs = await self._absences.find_unwatched(job, memory)
        pods = await self._absences.find_unwatched_pods(job, memory)
        unwatched = min((at for at in (jobs, pods) if at is not None), default=None)
        seen = self._seen(job, now)
        await self._check_services(job, seen, memory)
        observed = await self._observed(job, seen, memory, unwatched)
        decided = plan(job, observed, now, placement)
        if memory.forget_reads_but(decided.unconfirmed, CONFIRM) or decided.unconfirmed:
            seen = await self._confirmed(job, seen, decided.unconfirmed, memory, now)
            observed = await self._observed(job, seen, memory, unwatched)
            decided = plan(job, observed, now, placement)
        return observed, decided

    async def _confirmed(
        self,
        job: RLHFJob,
        seen: list[SeenAttempt],
        unconfirmed: Collection[AttemptId],
        memory: Memory,
        now: datetime,
    ) -> list[SeenAttempt]:
        """What is seen after asking about the attempts of which something would follow."""
        asked = [each for each in seen if each.ident in unconfirmed]
        listed = [each.ident for each in asked if await self._absences.list_pods(job, each, memory)]
        found = []
        for each in self._seen(job, now):
            known = each.ident in listed and await self._absences.find_remains(job, each, memory)
            found.append(replace(each, attempt=replace(each.attempt, confirmed=known)))
        return found

    async def _observed(
        self, job: RLHFJob, seen: list[SeenAttempt], memory: Memory, unwatched: datetime | None
    ) -> Observed:
        self._ask_for_progress(job, seen)
        memory.forget_attempts_but(each.ident for each in seen)
        attempts, times = [], [] if unwatched is None else [unwatched]
        for each in seen:
            told, look_at = await self._absences.missing(each, memory)
            times += [at for at in (each.look_at, look_at) if at is not None]
            attempts.append(self._with_progress(job, replace(each.attempt, processes=told)))
        # Their Jobs may be there and train: nothing is made beside them, and nothing follows.
        unread = sorted(memory.unread() - {each.ident for each in seen})
        attempts += [ObservedAttempt(*ident, disowned=True, unread=True) for ident in unread]
        return Observed(
            attempts=tuple(attempts),
            refusals=memory.refusals(),
            unremoved=frozenset(memory.unremoved),
            expiry=memory.expiry_refusal(),
            oddities=self._oddities(job),
            look_at=min(times, default=None),
        )

    def _seen(self, job: RLHFJob, now: datetime) -> list[SeenAttempt]:
        gangs = [without_taken_away(job, gang, now) for gang in self._gangs(job)]
        found = seen_attempts(job.metadata.name, gangs, now)
        return [
            replace(each, attempt=replace(each.attempt, disowned=is_disowned(job, each.gang.job)))
            for each in found
        ]

    async def _check_services(self, job: RLHFJob, seen: list[SeenAttempt], memory: Memory) -> None:
        """Look once whether the pods of a gang that has come to run can find each other.

        They look for each other for half an hour, and nothing that is watched shows it.
        """
        asked = [each.ident for each in seen if _seeks_peers(job, each, memory)]
        memory.forget_reads_but(asked, SERVICE)
        for ident in asked:
            if not memory.may_try((SERVICE, *ident), time.monotonic()):
                continue
            try:
                await self._actor.check_service(job)
            except ChildError as error:
                logger.warning("%s/%s: %s", job.metadata.namespace, job.metadata.name, error)
                # Pods run already: nothing that happens to their Service is a stage's end.
                waits = replace(error.refusal, final=False)
                memory.refuse((SERVICE, *ident), waits, time.monotonic())
            else:
                memory.refused.pop((SERVICE, *ident), None)

    def _gangs(self, job: RLHFJob) -> list[Gang]:
        """Those that were made for an attempt of the job: all others are named and left alone."""
        uid = job.metadata.uid
        owned = [gang for gang in self._store.gangs(uid) if is_attempt(job, gang.job)]
        claiming = self._store.claiming_gangs(uid)
        return [*owned, *(gang for gang in claiming if is_disowned(job, gang.job))]

    def _oddities(self, job: RLHFJob) -> tuple[Oddity, ...]:
        metadata = job.metadata
        strays = self._store.strays((metadata.namespace, metadata.name), metadata.uid)
        return oddities(job, self._store.gangs(metadata.uid), strays)

    def _ask_for_progress(self, job: RLHFJob, seen: list[SeenAttempt]) -> None:
        """Let rank 0 of each attempt that runs be asked how far it is."""
        addresses: dict[AttemptId, str] = {}
        for each in seen:
            first = pods_by_index(each.gang).get(0)
            address = "" if first is None else first["status"].get("podIP", "")
            if address and each.attempt.ready and each.attempt.live:
                addresses[each.ident] = address
        metadata = job.metadata
        self._scraper.keep((metadata.namespace, metadata.name), metadata.uid, addresses)

    def _with_progress(self, job: RLHFJob, attempt: ObservedAttempt) -> ObservedAttempt:
        progress = self._scraper.find(job.metadata.uid, (attempt.stage, attempt.attempt))
        if progress is None:
            return attempt
        return replace(attempt, progress=progress.told, scrape_error=progress.error)

    async def _tell(
        self, job: RLHFJob, raw: Raw, memory: Memory, observed: Observed, decided: Plan
    ) -> bool:
        """Write the status and let its Events be told; False if that is put off.

        Nothing is lost then: whoever looks next finds the same to tell, its Events included.
        """
        kind = change(job.status, decided.status)
        # Not from what was read: a status may have been written, and the answer lost.
        told = memory.untold_since or job.status
        events = tuple(derive_events(told, decided.status))
        acts = any(memory.may_try(ident_of(each), time.monotonic()) for each in decided.actions)
        urgent = acts or kind is Change.DECISION
        if not (urgent or kind is Change.NOTHING or self._kube.has_spare()):
            # A worker that waited for the budget would do nothing for the jobs that begin or end.
            return False
        memory.untold_since = told
        raw = await self._write(raw, decided.status, kind, observed, spare=not urgent)
        memory.untold_since = None
        for event in events:
            self._recorder.tell(raw, event.type, event.reason, event.message)
        count_stages(told, decided.status)
        return True

    async def _write(
        self, raw: Raw, status: RLHFJobStatus, kind: Change, observed: Observed, *, spare: bool
    ) -> Raw:
        """Write the status if there is something to tell; the job as it is then."""
        uid = raw["metadata"]["uid"]
        known = [
            (each, self._scraper.find(uid, (each.stage, each.attempt)))
            for each in observed.attempts
        ]
        read = [(each, told) for each, told in known if told is not None and told.fresh]
        if kind is Change.NOTHING or (kind is Change.PROGRESS and not read):
            return raw
        document = status.to_resolved_document()
        written = await self._write_status(raw, document, spare=spare)
        self._memory[uid].written(status, document, written.get("status") or {})
        for each, told in read:
            # What was read while status was written is not in it.
            if (told.told, told.error) == (each.progress, each.scrape_error):
                told.fresh = False
        return written

    async def _write_status(self, raw: Raw, status: Raw, *, spare: bool = False) -> Raw:
        try:
            written = await self._kube.write_status(raw, status, spare=spare)
        except ApiError as error:
            # A webhook may answer with the same HTTP statuses, and would do so again at once.
            if error.status in (404, 409) and await self._read_again(raw):
                raise OutdatedError("", error.status, error.body) from error
            raise
        self._store.put_own(Kind.RLHFJOB, written)
        return written

    async def _read_again(self, raw: Raw) -> bool:
        """Whether the job was written to, or deleted, which the watch has not said yet."""
        metadata = raw["metadata"]
        found = await self._kube.find(job_path(metadata["namespace"], metadata["name"]))
        if found is None or found["metadata"]["uid"] != metadata["uid"]:
            self._store.remove(Kind.RLHFJOB, raw)
        if found is None:
            return True
        self._store.put(Kind.RLHFJOB, found)
        versions = (each["metadata"]["resourceVersion"] for each in (raw, found))
        return len(set(versions)) > 1

    async def _act(self, job: RLHFJob, decided: Plan, memory: Memory) -> bool:
        """Try each action that may be tried; True if one is refused, or no more."""
        news = False
        memory.forget_all_but(ident_of(action) for action in decided.actions)
        # Before anything is tried: whatever comes in between, it is asked for until it is done.
        memory.unremoved |= {
            (each.stage, each.attempt)
            for each in decided.actions
            if isinstance(each, RemoveAttempt)
        }
        for action in decided.actions:
            news |= await self._try(job, action, memory)
        return news

    async def _try(self, job: RLHFJob, action: Action, memory: Memory) -> bool:
        ident = ident_of(action)
        if not memory.may_try(ident, time.monotonic()):
            return False
        try:
            await self._actor.act(job, action)
        except ChildError as error:
            logger.warning("%s/%s: %s", job.metadata.namespace, job.metadata.name, error)
            return memory.refuse(ident, error.refusal, time.monotonic())
        if isinstance(action, RemoveAttempt):
            memory.unremoved.discard((action.stage, action.attempt))
        # Where nothing is made nothing else wakes the job, and it says still that it is refused.
        return memory.refused.pop(ident, None) is not None

    async def _expire(self, job: RLHFJob, raw: Raw, memory: Memory, now: datetime) -> bool:
        """Delete the job if its time is over and that may be tried now; True if it is gone."""
        if not is_expired(job, now):
            # It may have been given more time since that was refused.
            memory.refused.pop(EXPIRY, None)
            return False
        if not memory.may_try(EXPIRY, time.monotonic()):
            return False
        try:
            await self._actor.expire(raw)
        except ChildError as error:
            logger.warning("%s/%s: %s", job.metadata.namespace, job.metadata.name, error)
            memory.refuse(EXPIRY, error.refusal, time.monotonic())
            return False
        return True

    async def _refuse(self, raw: Raw, message: str, now: datetime) -> None:
        """Say that the job is not understood; a newer operator, or an older one, may be right."""
        remedy = f"{message}; correct it, or use the CRD of this operator's release"
        status, generation = raw.get("status") or {}, raw["metadata"].get("generation", 1)
        stands = says_invalid(status, remedy)
        known = self._refused.setdefault(raw["metadata"]["uid"], remedy if stands else "")
        told = invalid_status(status, remedy, generation, now)
        if told != status:
            raw = await self._write_status(raw, told)
        # Not from what was read: it may have been written, and the answer lost.
        if known != remedy:
            self._recorder.tell(raw, "Warning", Reason.INVALID_SPEC, remedy)
            self._refused[raw["metadata"]["uid"]] = remedy


def _seeks_peers(job: RLHFJob, seen: SeenAttempt, memory: Memory) -> bool:
    """Whether pods of the attempt have just come to run, or could not find each other then."""
    attempt, stage = seen.attempt, stages_of(job.status).get(seen.attempt.stage)
    if stage is None or stage.attempt != attempt.attempt or attempt.disowned:
        return False
    runs = attempt.ready and attempt.live and pods_of_gang(seen.gang.job["spec"]) > 1
    ready = find_condition(job.status.conditions, ConditionType.CHILDREN_READY)
    told = ready is not None and (ready.status, ready.reason) == ("False", Reason.CHILD_CHANGED)
    again = told or (SERVICE, *seen.ident) in memory.refused
    return runs and (again or stage.state is StageState.STARTING)
