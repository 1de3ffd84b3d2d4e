"""Carries out the actions of a plan; each may be repeated. Called by `reconcile` alone."""

import asyncio
from typing import Any

from rlhf_api.names import Reason
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_operator.kube import ApiError, Kube, batch_path, core_path
from rlhf_operator.manifests import child_name, claims_of, config_map, service, stage_job
from rlhf_operator.observe import is_owned
from rlhf_operator.planning.plan import Action, StopAttempt
from rlhf_operator.refusals import ChildError, Refusal, refusal
from rlhf_operator.settings import Settings

Raw = dict[str, Any]


async def act(kube: Kube, job: RLHFJob, action: Action, settings: Settings) -> None:
    """Make or delete an attempt's children.

    Raises:
        ChildError: a child was refused, or cannot be there yet.
        ApiError: a deletion failed.
    """
    if isinstance(action, StopAttempt):
        await _stop(kube, job, action)
        return
    await asyncio.gather(
        _ensure_service(kube, job),
        _ensure(
            kube, job, core_path(job.metadata.namespace, "configmaps"), config_map(job, action)
        ),
        *(_check_claim(kube, job, claim) for claim in claims_of(job, action.stage)),
    )
    image, policy = settings.trainer_image, settings.trainer_image_pull_policy
    manifest = stage_job(job, action, image, policy)
    await _ensure(kube, job, batch_path(job.metadata.namespace), manifest)


async def _stop(kube: Kube, job: RLHFJob, action: StopAttempt) -> None:
    """Delete the attempt's Job in the foreground: its pods get SIGTERM and save."""
    path = batch_path(job.metadata.namespace, child_name(job, action.stage, action.attempt))
    try:
        await kube.request("DELETE", path, {"propagationPolicy": "Foreground"})
    except ApiError as error:
        if error.status != 404:
            raise


async def _ensure_service(kube: Kube, job: RLHFJob) -> None:
    """Asked for first, since it is there for all attempts but the first."""
    path, manifest = core_path(job.metadata.namespace, "services"), service(job)
    found = await kube.find(f"{path}/{job.metadata.name}")
    if found is None:
        await _ensure(kube, job, path, manifest)
    else:
        _check_owner(job, manifest, found)


async def _ensure(kube: Kube, job: RLHFJob, path: str, manifest: Raw) -> None:
    name = f"{manifest['kind']} {manifest['metadata']['name']}"
    try:
        await kube.request("POST", path, manifest)
    except ApiError as error:
        if error.status != 409:
            raise ChildError(refusal(name, error)) from error
        found = await kube.find(f"{path}/{manifest['metadata']['name']}")
        if found is None:
            raise ChildError(Refusal(Reason.API_ERROR, f"{name} is being deleted")) from error
        _check_owner(job, manifest, found)


def _check_owner(job: RLHFJob, manifest: Raw, found: Raw) -> None:
    if is_owned(found, job.metadata.uid):
        return
    kind, name = manifest["kind"], manifest["metadata"]["name"]
    message = (
        f"{kind} {name} exists and is not of this job; delete it, or give the job another name"
    )
    raise ChildError(Refusal(Reason.NAME_CONFLICT, message, at_least=15))


async def _check_claim(kube: Kube, job: RLHFJob, claim: str) -> None:
    namespace = job.metadata.namespace
    if await kube.find(core_path(namespace, "persistentvolumeclaims", claim)) is None:
        message = f"PersistentVolumeClaim {claim} is not in namespace {namespace}; create it"
        raise ChildError(Refusal(Reason.CLAIM_MISSING, message, at_least=5))
