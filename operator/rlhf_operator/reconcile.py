"""One pass over one job: observe, plan, write the status, act, tell Events.

Called by the workers of `serve`, by one at a time for each job. What it keeps in memory saves
requests and nothing else: a new leader starts with none of it.
"""

import logging
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import aiohttp

from rlhf_api.errors import ConfigError
from rlhf_api.names import ConditionType, Label, Reason, StageName
from rlhf_api.v1alpha1 import RLHFJob, RLHFJobStatus
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH
from rlhf_operator.act import act
from rlhf_operator.kube import ApiError, Kube, batch_path, core_path, job_path
from rlhf_operator.manifests import cluster_placement
from rlhf_operator.observe import (
    lacks_pods,
    observed_attempts,
    pod_index,
    pods_of,
    refused_pod,
)
from rlhf_operator.planning.conditions import Finding, find_condition, set_condition
from rlhf_operator.planning.observed import Observed, ObservedProcess
from rlhf_operator.planning.pace import is_expired, is_worth_writing, next_look
from rlhf_operator.planning.plan import (
    Action,
    Plan,
    StartAttempt,
    fail_stage,
    is_finished,
    plan,
    stages_of,
)
from rlhf_operator.planning.summaries import derive_summary
from rlhf_operator.refusals import ChildError, Refusal
from rlhf_operator.scrape import Progress
from rlhf_operator.settings import Settings
from rlhf_operator.work_queue import Key

Raw = dict[str, Any]

logger = logging.getLogger(__name__)


class Reconciler:
    """Passes over jobs."""

    def __init__(self, kube: Kube, session: aiohttp.ClientSession, settings: Settings) -> None:
        self._kube, self._session, self._settings = kube, session, settings
        self._progress: dict[Key, dict[tuple[StageName, int], Progress]] = {}
        self._written_at: dict[Key, datetime] = {}

    async def reconcile(self, key: Key) -> float | None:
        """Do what is to be done about a job now.

        Returns:
            Seconds until it must be looked at again; None if it is gone.

        Raises:
            ApiError: the API server cannot be asked, or someone else wrote to the job meanwhile.
            ChildError: a child was refused; the job's conditions tell it.
        """
        raw = await self._kube.find(job_path(*key))
        if raw is None or raw["metadata"].get("deletionTimestamp"):
            self._progress.pop(key, None)
            self._written_at.pop(key, None)
            return None
        now = datetime.now(UTC).replace(microsecond=0)
        try:
            job = RLHFJob.from_document(raw)
        except ConfigError as error:
            await self._refuse(raw, str(error), now)
            return self._settings.resync_seconds
        if is_expired(job, now):
            preconditions = {"preconditions": {"uid": job.metadata.uid}}
            await self._kube.request("DELETE", job_path(*key), preconditions)
            return None
        observed = await self._observe(job, key, now)
        if job.spec.storage is None and not is_finished(job.status):
            message = "spec.storage is missing; name a claim, for example pvc://claim/runs"
            stage = next(iter(job.spec.stages.present()))
            status = fail_stage(job, stage, Reason.INVALID_SPEC, message, now)
            job = job.model_copy(update={"status": status})
        decided = plan(job, observed, now, cluster_placement(job))
        await self._carry_out(raw, job, decided, observed, now)
        return next_look(job.model_copy(update={"status": decided.status}), observed, now)

    async def _observe(self, job: RLHFJob, key: Key, now: datetime) -> Observed:
        uid, namespace = job.metadata.uid, job.metadata.namespace
        selector = f"{Label.JOB_UID}={uid}"
        # Pods after Jobs, so that every pod is at least as new as what its Job says of it.
        jobs = await self._kube.items(batch_path(namespace), selector)
        pods = await self._kube.items(core_path(namespace, "pods"), selector) if jobs else []
        attempts = observed_attempts(uid, jobs, pods, now)
        known = self._progress.setdefault(key, {})
        found, error = [], ""
        for attempt, owner in zip(attempts, jobs, strict=True):
            progress = known.setdefault((attempt.stage, attempt.attempt), Progress())
            if attempt.ready and attempt.live:
                first = next(pod for pod in pods_of(owner, pods) if pod_index(pod) == 0)
                await progress.renew(self._session, first, now)
                error = error or progress.error
            if lacks_pods(owner, pods):
                processes = (*attempt.processes, await self._refused_pod(namespace, owner))
                attempt = replace(attempt, processes=processes)
            found.append(replace(attempt, progress=progress.told))
        return Observed(tuple(found), scrape_error=error)

    async def _refused_pod(self, namespace: str, owner: Raw) -> ObservedProcess:
        fields = f"involvedObject.uid={owner['metadata']['uid']},reason=FailedCreate"
        events = await self._kube.items(core_path(namespace, "events"), fields=fields)
        return refused_pod(owner, events)

    async def _carry_out(
        self, raw: Raw, job: RLHFJob, decided: Plan, observed: Observed, now: datetime
    ) -> None:
        status = decided.status
        starts = any(isinstance(action, StartAttempt) for action in decided.actions)
        if observed.attempts and not starts:
            status = _with_children(job, status, None, now)
        raw = await self._write(raw, job, status, now)
        action: Action | None = None
        try:
            for action in decided.actions:
                await act(self._kube, job, action, self._settings)
        except ChildError as error:
            assert action is not None
            refusal, stage = error.refusal, action.stage
            status = _with_children(job, status, refusal, now)
            if refusal.final:
                failed = job.model_copy(update={"status": status})
                status = fail_stage(failed, stage, refusal.reason, refusal.message, now)
            await self._write(raw, job, status, now)
            raise
        finally:
            # Told last, since nobody waits for them.
            for event in decided.events:
                await self._tell(raw, event.type, event.reason, event.message, now)

    async def _write(self, raw: Raw, job: RLHFJob, status: RLHFJobStatus, now: datetime) -> Raw:
        """Write the status if there is something to tell; the job as it is then."""
        key = job.metadata.namespace, job.metadata.name
        last = self._written_at.get(key)
        since = (now - last).total_seconds() if last is not None else float("inf")
        old = RLHFJobStatus.model_validate(raw.get("status") or {})
        if not is_worth_writing(old, status, since):
            return raw
        written = await self._kube.write_status(raw, status.to_resolved_document())
        self._written_at[key] = now
        return written

    async def _tell(self, raw: Raw, kind: str, reason: str, message: str, now: datetime) -> None:
        """Make an Event; a job goes on without it."""
        metadata = raw["metadata"]
        logger.info("%s/%s: %s: %s", metadata["namespace"], metadata["name"], reason, message)
        try:
            await self._kube.tell(raw, kind, reason, message, now.strftime("%Y-%m-%dT%H:%M:%SZ"))
        except ApiError as error:
            logger.warning("Event %s of %s: %s", reason, metadata["name"], error)

    async def _refuse(self, raw: Raw, message: str, now: datetime) -> None:
        """Say that the job is not understood; a newer operator, or an older one, may be right."""
        remedy = f"{message}; correct it, or use the CRD of this operator's release"
        status = raw.get("status") or {}
        conditions = {each["type"]: each for each in status.get("conditions") or ()}
        condition = {
            "type": ConditionType.ACCEPTED,
            "status": "False",
            "reason": Reason.INVALID_SPEC,
            "message": remedy[:MAX_MESSAGE_LENGTH],
            "lastTransitionTime": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        old = conditions.get(ConditionType.ACCEPTED) or {}
        if old.get("status") == "False" and old.get("message") == condition["message"]:
            return
        conditions[ConditionType.ACCEPTED] = condition
        await self._kube.write_status(raw, status | {"conditions": list(conditions.values())})
        await self._tell(raw, "Warning", Reason.INVALID_SPEC, remedy, now)


def _with_children(
    job: RLHFJob, status: RLHFJobStatus, refusal: Refusal | None, now: datetime
) -> RLHFJobStatus:
    """The status whose condition ChildrenReady says whether all children could be made."""
    finding = Finding(ConditionType.CHILDREN_READY, "True", Reason.CREATED, "all children are made")
    if refusal is not None:
        kind = ConditionType.CHILDREN_READY
        finding = Finding(kind, "False", refusal.reason, refusal.message)
    old = find_condition(status.conditions, finding.type)
    if old is not None and (old.status, old.message) == (finding.status, finding.message):
        return status
    generation = job.metadata.generation
    conditions = set_condition(status.conditions, finding, now, generation)
    summary = derive_summary(conditions, stages_of(status))
    return status.model_copy(update={"conditions": conditions, "summary": summary})
