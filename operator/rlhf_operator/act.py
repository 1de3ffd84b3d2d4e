"""Carries out the actions of a plan; each may be repeated. Called by `reconcile` alone.

What the API server answers enters the store at once: the next pass need not wait for the watch.
"""

import asyncio
import json
from typing import Any

from rlhf_api.names import KIND, Reason
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.fields import owner_uid
from rlhf_operator.kube import ApiError, Kube, batch_path, core_path, job_path
from rlhf_operator.manifests import (
    child_name,
    config_map,
    is_made_for_its_name,
    needed_claims,
    service,
    stage_job,
)
from rlhf_operator.planning.actions import Action, StartAttempt, StopAttempt
from rlhf_operator.planning.observed import Refusal
from rlhf_operator.planning.removal import RemoveAttempt
from rlhf_operator.refusals import ChildError, refusal
from rlhf_operator.settings import Settings
from rlhf_operator.store import Kind, Store

Raw = dict[str, Any]

CREATE_SECONDS = 15
"""Longer than the API server waits for one webhook, which is 10 s unless its configuration says
otherwise: who gives up first does not learn which one it was."""


class Actor:
    """Makes and deletes the children of jobs."""

    def __init__(self, kube: Kube, store: Store, settings: Settings) -> None:
        self._kube, self._store, self._settings = kube, store, settings

    async def act(self, job: RLHFJob, action: Action) -> None:
        """Make or delete an attempt's children.

        Raises:
            ChildError: one of them was refused, or cannot be there yet.
        """
        if isinstance(action, StopAttempt):
            await self._stop(job, action)
        elif isinstance(action, RemoveAttempt):
            await self._remove(job, action)
        else:
            await self._start(job, action)

    async def expire(self, raw: Raw) -> None:
        """Delete an RLHFJob whose time is over.

        Raises:
            ChildError: it was refused.
        """
        metadata = raw["metadata"]
        path = job_path(metadata["namespace"], metadata["name"])
        await self._delete(f"{KIND} {metadata['name']}", path, raw, "Background")
        self._store.remove(Kind.RLHFJOB, raw)

    async def check_service(self, job: RLHFJob) -> None:
        """See that the Service is there by which the pods of a gang find each other, or make it.

        Raises:
            ChildError: it was not there, or does not select them, or cannot be asked for.
        """
        if await self._find_or_make_service(job):
            return
        child = f"Service {job.metadata.name}"
        message = f"{child}, by which pods find each other, was gone and is made anew"
        remedy = "see to it that nobody deletes it"
        gone = Refusal(Reason.CHILD_CHANGED, f"{message}; {remedy}", at_least=1, child=child)
        raise ChildError(gone)

    async def _start(self, job: RLHFJob, action: StartAttempt) -> None:
        namespace = job.metadata.namespace
        await _all(
            self._ensure_service(job, action),
            self._ensure(job, core_path(namespace, "configmaps"), config_map(job, action)),
            *(self._check_claim(job, claim) for claim in needed_claims(job, action.stage)),
        )
        image, policy = self._settings.trainer_image, self._settings.trainer_image_pull_policy
        manifest = stage_job(job, action, image, policy)
        self._store.put_own(Kind.JOB, await self._ensure(job, batch_path(namespace), manifest))

    async def _stop(self, job: RLHFJob, action: StopAttempt) -> None:
        """Delete the attempt's Job in the foreground: its pods get SIGTERM and save."""
        for found in self._jobs_of(job, action):
            await self._delete_job(job, found, "Foreground")

    async def _remove(self, job: RLHFJob, action: RemoveAttempt) -> None:
        """Delete the attempt's ConfigMap, and then its Job: while that is there it is tried again.

        The ConfigMap is read before, since it is not watched and may be another one of its name.
        """
        name = child_name(job, action.stage, action.attempt)
        path = core_path(job.metadata.namespace, "configmaps", name)
        found = await self._find(f"ConfigMap {name}", path)
        if found is not None and owner_uid(found) == job.metadata.uid:
            await self._delete(f"ConfigMap {name}", path, found, "Background")
        for each in self._jobs_of(job, action):
            if not each["metadata"].get("deletionTimestamp"):
                await self._delete_job(job, each, "Background")

    def _jobs_of(self, job: RLHFJob, action: StopAttempt | RemoveAttempt) -> list[Raw]:
        name = child_name(job, action.stage, action.attempt)
        jobs = [gang.job for gang in self._store.gangs(job.metadata.uid)]
        named = [found for found in jobs if found["metadata"]["name"] == name]
        return [found for found in named if is_made_for_its_name(found)]

    async def _delete_job(self, job: RLHFJob, found: Raw, propagation: str) -> None:
        name = found["metadata"]["name"]
        path = batch_path(job.metadata.namespace, name)
        answer = await self._delete(f"Job {name}", path, found, propagation)
        if answer is not None and answer.get("kind") == "Job":
            # It is there until its pods are gone.
            self._store.put_own(Kind.JOB, answer)
        else:
            self._store.remove(Kind.JOB, found)

    async def _delete(self, name: str, path: str, found: Raw, propagation: str) -> Raw | None:
        """Delete the object that was seen; the answer, None if it is gone already."""
        options = {
            "propagationPolicy": propagation,
            "preconditions": {"uid": found["metadata"]["uid"]},
        }
        try:
            return await self._kube.request("DELETE", path, options)
        except ApiError as error:
            if error.says_gone():
                return None
            raise _not_done(f"deleting {name}", error) from error

    async def _ensure_service(self, job: RLHFJob, action: StartAttempt) -> None:
        """Asked for first where an attempt has been: then it is there."""
        if self._store.gangs(job.metadata.uid):
            await self.check_service(job)
        elif action.attempt > 1:
            await self._find_or_make_service(job)
        else:
            await self._make_service(job)

    async def _find_or_make_service(self, job: RLHFJob) -> bool:
        """Whether the Service was there; if not, it is made."""
        name = job.metadata.name
        path = core_path(job.metadata.namespace, "services", name)
        found = await self._find(f"Service {name}", path)
        if found is None:
            await self._make_service(job)
            return False
        _check_owner(job, service(job), found)
        return True

    async def _make_service(self, job: RLHFJob) -> None:
        path, manifest = core_path(job.metadata.namespace, "services"), service(job)
        _check_selector(manifest, await self._ensure(job, path, manifest))

    async def _ensure(self, job: RLHFJob, path: str, manifest: Raw) -> Raw:
        """The child, made unless it is there."""
        name = f"{manifest['kind']} {manifest['metadata']['name']}"
        try:
            return await self._kube.request("POST", path, manifest, timeout=CREATE_SECONDS)
        except ApiError as error:
            # 409 is the answer, too, when a quota is written to at the same time.
            if error.status != 409 or error.body.get("reason") != "AlreadyExists":
                raise ChildError(refusal(name, error, sent=manifest)) from error
            found = await self._find(name, f"{path}/{manifest['metadata']['name']}")
            if found is None:
                message = f"{name} was just being deleted; it is made anew"
                gone = Refusal(Reason.NAME_CONFLICT, message, child=name)
                raise ChildError(gone) from error
            _check_owner(job, manifest, found)
            return found

    async def _check_claim(self, job: RLHFJob, claim: str) -> None:
        namespace = job.metadata.namespace
        name = f"PersistentVolumeClaim {claim}"
        if await self._find(name, core_path(namespace, "persistentvolumeclaims", claim)) is None:
            message = f"{name} is not in namespace {namespace}; create it"
            raise ChildError(Refusal(Reason.CLAIM_MISSING, message, at_least=5, child=name))

    async def _find(self, name: str, path: str) -> Raw | None:
        try:
            return await self._kube.find(path)
        except ApiError as error:
            raise _not_done(f"reading {name}", error) from error


def _not_done(what: str, error: ApiError) -> ChildError:
    """A read or a deletion that was refused, which is no fault of the spec."""
    return ChildError(refusal(what, error, making=False))


def _check_owner(job: RLHFJob, manifest: Raw, found: Raw) -> None:
    is_own = owner_uid(found) == job.metadata.uid
    if is_own and manifest["kind"] == "Service":
        _check_selector(manifest, found)
    if is_own and (manifest["kind"] != "Job" or is_made_for_its_name(found)):
        return
    child = f"{manifest['kind']} {manifest['metadata']['name']}"
    if not is_own and _is_of_earlier_job(job, found):
        message = f"{child} is of a deleted {KIND} of the same name; waits until it is gone"
        raise ChildError(Refusal(Reason.NAME_CONFLICT, message, at_least=1, child=child))
    message = f"{child} exists and is not of this job; delete it, or give the job another name"
    raise ChildError(Refusal(Reason.NAME_CONFLICT, message, at_least=15, child=child))


def _check_selector(manifest: Raw, found: Raw) -> None:
    """A gang whose Service selects no pods, or others, waits for its first rank without end."""
    wanted, given = manifest["spec"]["selector"], found["spec"].get("selector")
    if given == wanted:
        return
    child = f"Service {manifest['metadata']['name']}"
    message = (
        f"{child}: spec.selector is {json.dumps(given)}; write {json.dumps(wanted)} again, or "
        "delete the Service, and it is made anew; "
        "if a webhook or policy sets it, correct that first"
    )
    raise ChildError(Refusal(Reason.CHILD_CHANGED, message, at_least=5, child=child))


def _is_of_earlier_job(job: RLHFJob, found: Raw) -> bool:
    owners = found["metadata"].get("ownerReferences") or ()
    return any(
        owner.get("kind") == KIND and owner.get("name") == job.metadata.name for owner in owners
    )


async def _all(*parts: Any) -> None:
    """Wait for all parts, so that nothing goes on unseen, and raise the first failure."""
    results = await asyncio.gather(*parts, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
