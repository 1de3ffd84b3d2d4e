"""What `docs/troubleshooting.md` says of each cause, besides what is shown of it.

Read by `troubleshooting_page` and its tests.
"""

from collections.abc import Callable
from dataclasses import dataclass

import staged_causes as staged
from staged_causes import Scene

from rlhf_api.names import ConditionType, Reason


@dataclass(frozen=True)
class Cause:
    """A cause, and what people are told of it besides what they see.

    Attributes:
        title: its heading.
        condition: type of the condition that tells of it; None if nothing does.
        reason: in that condition, in the Event and in the column; None if nothing tells of it.
        stage: brings it about.
        means: what has happened, and what the operator does.
        remedy: what to do.
    """

    title: str
    condition: ConditionType | None
    reason: Reason | None
    stage: Callable[[Scene], None]
    means: str
    remedy: str


_CHILDREN, _RUNNING, _FAILED = (
    ConditionType.CHILDREN_READY,
    ConditionType.RUNNING,
    ConditionType.FAILED,
)
_SPEC = "The spec of a job is frozen: correct it in a new job"
_COUNTED = (
    "which counts in `disruptions`, or in `restarts` if no checkpoint was written since the "
    "attempt began"
)

CAUSES = (
    Cause(
        "A claim is missing",
        _CHILDREN,
        Reason.CLAIM_MISSING,
        staged.claim_missing,
        "A PersistentVolumeClaim of a `pvc://` URI or among `template.volumes` is not in the job's "
        "namespace. The stage starts within a minute after it is.",
        "Create the claim, or correct the URI or the volume in a new job.",
    ),
    Cause(
        "A quota is used up",
        _RUNNING,
        Reason.QUOTA_EXCEEDED,
        staged.quota,
        "A ResourceQuota of the namespace does not let a Job or its pods be made. Of a quota that "
        "counts Jobs ChildrenReady False tells, of one that counts pods or what they ask for "
        "Running False.",
        "Wait for, or end, what uses the quota, or have it raised.",
    ),
    Cause(
        "A LimitRange is violated",
        _RUNNING,
        Reason.LIMIT_RANGE_VIOLATED,
        staged.limit_range,
        "The trainer's container asks for more, or less, than a LimitRange of the namespace "
        "allows.",
        f"{_SPEC} (`template.resources`, or `resources` of a stage), or have the LimitRange "
        "changed.",
    ),
    Cause(
        "Pod Security refuses the pods",
        _RUNNING,
        Reason.POD_SECURITY_VIOLATED,
        staged.pod_security,
        "The namespace enforces a Pod Security Standard. Without settings of the job's own the "
        "pods keep to `restricted`.",
        f"{_SPEC} (`template.securityContext`), or have the namespace allow it.",
    ),
    Cause(
        "An admission policy refuses",
        _CHILDREN,
        Reason.POLICY_DENIED,
        staged.policy,
        "A ValidatingAdmissionPolicy of the cluster refuses a child. Whoever made it may take it "
        "back, so it is waited for. Of a policy on pods Running False tells in the same way, and "
        "ChildrenReady is True: the Job could be made.",
        "Do what the policy's sentence asks for in a new job (`template.labels` reach the Job), "
        "or ask who made the policy.",
    ),
    Cause(
        "A webhook is down",
        _CHILDREN,
        Reason.WEBHOOK_UNAVAILABLE,
        staged.webhook_down,
        "The API server asks an admission webhook before it makes a child, and gets no answer.",
        "Bring back the service behind the webhook that is named, or remove its configuration.",
    ),
    Cause(
        "A webhook refuses",
        _CHILDREN,
        Reason.WEBHOOK_DENIED,
        staged.webhook_refusing,
        "An admission webhook refuses a child, in words of its own. Of a webhook on pods Running "
        "False tells.",
        "Do what it asks for in a new job, or ask who runs the webhook.",
    ),
    Cause(
        "A PriorityClass is missing",
        _RUNNING,
        Reason.PRIORITY_CLASS_MISSING,
        staged.priority_class,
        "`priorityClassName` names a class that the cluster does not have, so that no pod can be "
        "made.",
        "Have the class made, or name another one in a new job.",
    ),
    Cause(
        "A ServiceAccount is missing",
        _RUNNING,
        Reason.SERVICE_ACCOUNT_MISSING,
        staged.service_account,
        "`template.serviceAccountName` names an account that is not in the namespace, so that no "
        "pod can be made.",
        "Create it, or name another one in a new job.",
    ),
    Cause(
        "An image cannot be pulled",
        _RUNNING,
        Reason.IMAGE_PULL,
        staged.image,
        "A node cannot pull the trainer's image: it is not there, its registry does not answer, or "
        "its signature is refused. The node goes on trying.",
        "Push the image, or name in a new job another `image` or `template.imagePullSecrets`. "
        "`kubectl describe pod` has the registry's words.",
    ),
    Cause(
        "A volume cannot be mounted",
        _RUNNING,
        Reason.VOLUME_NOT_MOUNTED,
        staged.volume_not_mounted,
        "A Secret or a ConfigMap among `template.volumes` is not in the namespace, or the "
        "disk behind a claim cannot be attached, as where another node has it. The kubelet tries "
        "again and again; its Events are read after five seconds, and at least once a minute.",
        "Create what is named, correct the volume in a new job, or look at the claim and its "
        "driver. A claim that pods of several nodes use has to be `ReadWriteMany`.",
    ),
    Cause(
        "A Secret or ConfigMap is missing",
        _RUNNING,
        Reason.CONTAINER_CONFIG,
        staged.secret_missing,
        "`env` or `envFrom` of a container names a Secret, a ConfigMap or a key that is not in the "
        "namespace. The kubelet looks for it again and again.",
        "Create it, or correct the name in a new job.",
    ),
    Cause(
        "A container cannot be made",
        _RUNNING,
        Reason.CONTAINER_NOT_STARTED,
        staged.not_started,
        "The node's runtime cannot make or start a container, in words of its own. The kubelet "
        "tries again.",
        "Correct in a new job what it names, or the node: a device, a runtime class, a mount.",
    ),
    Cause(
        "A sidecar crashes",
        _RUNNING,
        Reason.CRASH_LOOP,
        staged.sidecar_crashes,
        "A container that was injected, and that is to run before the trainer, ends and is "
        "started again and again.",
        "`kubectl -n NAMESPACE logs POD -c CONTAINER --previous`; keep it out of training pods by "
        "[labels or annotations](install.md#sidecars) of a new job.",
    ),
    Cause(
        "A pod cannot be scheduled",
        _RUNNING,
        Reason.UNSCHEDULABLE,
        staged.unschedulable,
        "No node has room for a pod, or matches its selector, affinity and tolerations. The "
        "scheduler's causes are told without its counts of nodes, which "
        "`kubectl describe pod` has.",
        "Add nodes, end what takes the room, or ask for less in a new job. Mind that a gang "
        "trains only when all of its pods run.",
    ),
    Cause(
        "A node is lost",
        _RUNNING,
        Reason.NODE_LOST,
        staged.node_lost,
        "A node has not answered for half a minute. Its pods are not waited for: the gang starts "
        f"anew from the last checkpoint, {_COUNTED}.",
        "Nothing for the job. Look at the node; with many losses write checkpoints more often "
        "(`checkpoint.everySeconds`).",
    ),
    Cause(
        "A node is drained",
        _RUNNING,
        Reason.DRAINED,
        staged.drained,
        "Somebody, or an autoscaler, evicts the pod. It saves a checkpoint in its grace period, "
        f"and the gang starts anew from there, {_COUNTED}.",
        "Nothing. Where saving takes longer than `template.terminationGracePeriodSeconds` (300), "
        "raise it in the next job.",
    ),
    Cause(
        "A pod is preempted",
        _RUNNING,
        Reason.PREEMPTED,
        staged.preempted,
        "A pod of higher priority, or one that the node itself needs, takes the room. "
        "The pod saves a checkpoint, and the gang starts"
        f" anew where there is room, {_COUNTED}.",
        "Nothing, or a higher `priorityClassName` in the next job. `runPolicy.maxDisruptions` "
        "bounds how often.",
    ),
    Cause(
        "Out of memory",
        _FAILED,
        Reason.OUT_OF_MEMORY,
        staged.out_of_memory,
        "The container went beyond its memory limit, or CUDA had none left. Before the first step"
        " it would happen again, and the job fails "
        "at once; later the stage is restarted, counted.",
        "Raise `resources.limits.memory`, or lower `batchSize`, `microBatchSize` or lengths, in a"
        " new job.",
    ),
    Cause(
        "The data cannot be used",
        _FAILED,
        Reason.DATA_ERROR,
        staged.bad_data,
        "A row, or a file, cannot be used (exit code 65); file, line, field and value are named. "
        "No restart can help, and none is tried.",
        "Correct the file and make the job anew.",
    ),
    Cause(
        "The disk is full",
        _RUNNING,
        Reason.IO_ERROR,
        staged.disk_full,
        "The storage is full or failing (exit code 74). The last good checkpoint stays; the stage"
        " is restarted with growing pauses, counted "
        "against `runPolicy.maxRestarts`.",
        "Free or add space on the claim. `runPolicy.maxRestarts` may be raised while the job "
        "lives.",
    ),
    Cause(
        "A pod exceeds its disk limit",
        _RUNNING,
        Reason.STORAGE_EXCEEDED,
        staged.storage_exceeded,
        "The kubelet evicts a pod that writes more to its node's disk than its limit of "
        "`ephemeral-storage`, or than the `sizeLimit` of an emptyDir. That is no disruption: the "
        "stage is restarted, counted against `runPolicy.maxRestarts`. A pod that is evicted since "
        "its node lacks room is disrupted, with reason NodePressure.",
        f"{_SPEC} (`resources.limits` or `sizeLimit`), or write less there: rows' tokens are kept "
        "below `/tmp`.",
    ),
    Cause(
        "The job is suspended",
        ConditionType.SUSPENDED,
        Reason.USER_REQUESTED,
        staged.suspended,
        "`spec.suspend` is true: the pods have saved a checkpoint and are gone, with their logs. "
        "Deadlines stand still. With reason Guardrail "
        "it was a [guardrail](guardrails.md#health-and-guardrails) that suspended the job, and "
        "`spec.suspend` has to be set to true first, until the reason is UserRequested.",
        '`kubectl patch rlhf JOB --type=merge -p \'{"spec":{"suspend":false}}\'` lets it go on '
        "from the checkpoint.",
    ),
    Cause(
        "The job waits in a queue",
        ConditionType.ADMITTED,
        Reason.QUEUED,
        staged.queue,
        "`spec.queueName` is set, and Kueue has not admitted the Job yet, or has preempted it: "
        "then its pods have saved a checkpoint, and go on from there as the same attempt. This "
        "time counts against no deadline. A Job without a queue that somebody has suspended waits "
        "in the same way, and its message says how it goes on.",
        "Look at `kubectl -n NAMESPACE get localqueues,workloads`: without Kueue, or without the "
        "queue, nobody ever admits it.",
    ),
    Cause(
        "The operator is away",
        None,
        None,
        staged.operator_away,
        "Nobody has looked at the job: it has no status, and no Event. Of a job that was looked "
        "at before, `status.observedGeneration` stays "
        "behind `metadata.generation`. Pods that run go on without the operator.",
        "`kubectl -n rlhf-system get pods` and the logs of `deployment/rlhf-operator`; see "
        "whether `watch.namespaces` leaves out the namespace. "
        "The alert [OperatorDown](runbook.md#operatordown) tells of it.",
    ),
)
