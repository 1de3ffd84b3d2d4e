"""The children of an RLHFJob as plain objects: Service, ConfigMap, Job. Pure; called by `act`."""

import copy
import functools
import hashlib
import re
from importlib.resources import files
from typing import Any

import yaml

from rlhf_api.names import (
    API_VERSION,
    KIND,
    OPERATOR_NAME,
    Annotation,
    ContainerPath,
    EnvVar,
    Label,
    Port,
    StageName,
)
from rlhf_api.v1alpha1 import CLAIM, RLHFJob, StageStatus, claim_of, uris
from rlhf_operator.fields import CONFIG_VOLUME, TRAINER, attempt_of, config_of, owner_uid
from rlhf_operator.planning.actions import StartAttempt
from rlhf_operator.planning.configs import Placement
from rlhf_operator.planning.guardrails import guardrails_digest

Raw = dict[str, Any]

_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
"""Annotation by which kubectl chooses a container of a pod where others stand beside it."""
_LABEL_LENGTH = 63
_HASH_LENGTH = 10
_LOOKS_HASHED = re.compile(rf"-[0-9a-f]{{{_HASH_LENGTH}}}$")

_PASSED_ON = ("affinity", "serviceAccountName", "imagePullSecrets", "runtimeClassName")
_OF_THE_POD = (*_PASSED_ON, "nodeSelector", "priorityClassName", "terminationGracePeriodSeconds")


def cluster_placement(job: RLHFJob) -> Placement:
    """Where the job's stages run; no stage of a job without storage is started."""
    root = job.spec.storage.uri if job.spec.storage is not None else CLAIM
    claim = claim_of(root) or ""
    path = root.removeprefix(f"{CLAIM}{claim}").strip("/")
    name, namespace = job.metadata.name, job.metadata.namespace
    return Placement(
        storage=f"{_folder(claim)}/{path}".rstrip("/") if claim else "",
        claims={claim: _folder(claim) for stage in StageName for claim in claims_of(job, stage)},
        master_address=f"{name}-{{stage}}-{{attempt}}-0.{name}.{namespace}.svc",
        master_port=Port.RENDEZVOUS,
        metrics_port=Port.METRICS,
    )


def claims_of(job: RLHFJob, stage: StageName) -> list[str]:
    """The claims that a stage's pods mount, that of storage among them."""
    spec = job.spec.stages.present().get(stage)
    found = [uri for _, uri in uris(spec)] if spec is not None else []
    if job.spec.storage is not None:
        found.append(job.spec.storage.uri)
    return sorted({claim for uri in found if (claim := claim_of(uri)) is not None})


def needed_claims(job: RLHFJob, stage: StageName) -> list[str]:
    """The claims without which a stage's pods cannot be scheduled: those of `claims_of`, and those
    that the user's own volumes name."""
    volumes = job.spec.template.volumes or ()
    own = [each.persistent_volume_claim for each in volumes]
    return sorted({*claims_of(job, stage), *(each.claim_name for each in own if each is not None)})


def child_name(job: RLHFJob, stage: StageName, attempt: int) -> str:
    """Name of an attempt's Job and ConfigMap; an attempt is never made under two names."""
    return f"{job.metadata.name}-{stage}-{attempt}"


def is_attempt(job: RLHFJob, child: Raw) -> bool:
    """Whether a batch/v1 Job of `job`, by owner or labels, was made for one of its attempts.

    Told by what nobody can change in a Job: its name, and the ConfigMap that its pods read, which
    has the same name. That of a copy is still the one of what was copied. And status knows of every
    attempt before it is made.
    """
    attempt = attempt_of(job.metadata.name, child["metadata"]["name"])
    if attempt is None or not is_made_for_its_name(child):
        return False
    stage: StageStatus | None = getattr(job.status.stages, attempt[0])
    return stage is not None and attempt[1] <= stage.attempt


def is_disowned(job: RLHFJob, child: Raw) -> bool:
    """Whether a batch/v1 Job is one of the job's attempts in all but its owner.

    Somebody has taken that away, or the Job out of the hands of the operator: it may train.
    """
    metadata = child["metadata"]
    named = (metadata.get("labels") or {}).get(Label.JOB_UID) == job.metadata.uid
    here = metadata["namespace"] == job.metadata.namespace
    return named and here and owner_uid(child) != job.metadata.uid and is_attempt(job, child)


def is_made_for_its_name(child: Raw) -> bool:
    """Whether the pods of a batch/v1 Job read the ConfigMap that is made with a Job of its name."""
    return bool(config_of(child) == child["metadata"]["name"])


def service(job: RLHFJob) -> Raw:
    """The headless Service by which the pods of all stages find each other."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(job, job.metadata.name, _labels(job)),
        "spec": {
            "clusterIP": "None",
            # Ranks look for each other before all of them are ready.
            "publishNotReadyAddresses": True,
            "selector": {Label.JOB_UID: job.metadata.uid},
            "ports": [{"name": Port.METRICS_NAME, "port": Port.METRICS}],
        },
    }


def config_map(job: RLHFJob, action: StartAttempt) -> Raw:
    """The ConfigMap with `stage.json`."""
    labels = _labels(job, action)
    file = ContainerPath.STAGE_CONFIG.rsplit("/", 1)[1]
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(job, child_name(job, action.stage, action.attempt), labels),
        "immutable": True,
        "data": {file: action.config.to_json()},
    }


def stage_job(job: RLHFJob, action: StartAttempt, image: str, pull_policy: str) -> Raw:
    """The Indexed Job of an attempt.

    Args:
        job: whose attempt it is.
        action: the attempt.
        image: what runs, unless the job names another one.
        pull_policy: when a node pulls it.
    """
    name, labels = child_name(job, action.stage, action.attempt), _labels(job, action)
    metadata = _metadata(job, name, labels | _queue_label(job))
    metadata["annotations"] |= {
        Annotation.CONFIG_DIGEST: action.config.config_digest,
        Annotation.GUARDRAILS: guardrails_digest(action.config.guardrails),
    }
    if action.checkpoint_step is not None:
        metadata["annotations"][Annotation.CHECKPOINT_STEP] = str(action.checkpoint_step)
    template = job.spec.template.to_document()
    of_pods = _of_the_user(job, labels)
    of_pods["annotations"] = {_DEFAULT_CONTAINER: TRAINER} | of_pods["annotations"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": action.config.nodes,
            "parallelism": action.config.nodes,
            "backoffLimit": 0,
            # Kueue lets it run.
            "suspend": job.spec.queue_name is not None,
            "template": {
                "metadata": of_pods,
                "spec": _pod(job, action, template, image, pull_policy),
            },
        },
    }


def _pod(job: RLHFJob, action: StartAttempt, template: Raw, image: str, policy: str) -> Raw:
    own = job.spec.stages.present()[action.stage].to_document()
    given = template | {
        key: own[key] for key in ("nodeSelector", "priorityClassName") if key in own
    }
    pod = copy.deepcopy(_default_pod())
    pod |= {key: given[key] for key in _OF_THE_POD if key in given}
    grace = job.spec.template.termination_grace_period_seconds
    pod["terminationGracePeriodSeconds"] = grace
    pod["subdomain"] = job.metadata.name
    pod["securityContext"] |= template.get("securityContext", {})
    pod["tolerations"] += template.get("tolerations", []) + own.get("tolerations", [])
    # Pods of one attempt share no node while there is another one.
    pod["topologySpreadConstraints"] = [_spread(_labels(job, action))]
    claims = claims_of(job, action.stage)
    name = child_name(job, action.stage, action.attempt)
    pod["volumes"] += [
        {"name": CONFIG_VOLUME, "configMap": {"name": name}},
        *({"name": _volume(c), "persistentVolumeClaim": {"claimName": c}} for c in claims),
        *template.get("volumes", []),
    ]
    container = pod["containers"][0]
    container["image"], container["imagePullPolicy"] = job.spec.image or image, policy
    container["resources"] = template.get("resources", {}) | own.get("resources", {})
    container["env"] += [{"name": EnvVar.GRACE_PERIOD_SECONDS, "value": str(grace)}]
    container["env"] = _by_name(container["env"] + template.get("env", []) + own.get("env", []))
    container["envFrom"] = template.get("envFrom", [])
    container["ports"] = [{"name": Port.METRICS_NAME, "containerPort": Port.METRICS}]
    given_mounts = template.get("volumeMounts", [])
    container["volumeMounts"] += [
        {"name": _volume(claim), "mountPath": _folder(claim)} for claim in claims
    ]
    _give_way(pod, {mount["mountPath"].rstrip("/") for mount in given_mounts})
    container["volumeMounts"] += given_mounts
    return pod


def _give_way(pod: Raw, paths: set[str]) -> None:
    """Leave out our mounts where the user has one, and our volumes that nobody mounts then."""
    container = pod["containers"][0]
    lost = [mount for mount in container["volumeMounts"] if mount["mountPath"] in paths]
    container["volumeMounts"] = [each for each in container["volumeMounts"] if each not in lost]
    idle = {mount["name"] for mount in lost}
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] not in idle]


@functools.cache
def _default_pod() -> Raw:
    return dict(yaml.safe_load(files("rlhf_operator").joinpath("pod.yaml").read_text("utf-8")))


def _labels(job: RLHFJob, action: StartAttempt | None = None) -> dict[str, str]:
    labels = {
        Label.MANAGED_BY: OPERATOR_NAME,
        Label.JOB: job.metadata.name,
        Label.JOB_UID: job.metadata.uid,
    }
    if action is not None:
        labels |= {Label.STAGE: action.stage.value, Label.ATTEMPT: str(action.attempt)}
    return labels


def _queue_label(job: RLHFJob) -> dict[str, str]:
    return {Label.QUEUE: job.spec.queue_name} if job.spec.queue_name is not None else {}


def _metadata(job: RLHFJob, name: str, labels: dict[str, str]) -> Raw:
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    where = {"name": name, "namespace": job.metadata.namespace}
    return where | {"ownerReferences": [owner]} | _of_the_user(job, labels)


def _of_the_user(job: RLHFJob, labels: dict[str, str]) -> Raw:
    """Labels and annotations of `spec.template`, which policies look at, and ours above them."""
    template = job.spec.template
    return {
        "labels": dict(template.labels or {}) | labels,
        "annotations": dict(template.annotations or {}),
    }


def _spread(labels: dict[str, str]) -> Raw:
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": labels},
    }


def _by_name(variables: list[Raw]) -> list[Raw]:
    """Each variable once; the last one wins."""
    return list({variable["name"]: variable for variable in variables}.values())


def _folder(claim: str) -> str:
    return f"{ContainerPath.CLAIMS}/{claim}"


def _volume(claim: str) -> str:
    """Name of a claim's volume: no two claims have the same.

    A claim's own name may hold dots and be longer than a DNS label. What is changed ends in a hash,
    and so does what would look as if it were.
    """
    name = f"rlhf-claim-{claim}"
    if len(name) <= _LABEL_LENGTH and "." not in claim and not _LOOKS_HASHED.search(claim):
        return name
    digest = hashlib.sha256(claim.encode()).hexdigest()[:_HASH_LENGTH]
    cut = name[: _LABEL_LENGTH - _HASH_LENGTH - 1].replace(".", "-").rstrip("-")
    return f"{cut}-{digest}"
