"""What each `Reason` says in one line: a table of `docs/troubleshooting.md`. Pure.

Read by `troubleshooting_page`; a reason that has no line fails the tests.
"""

from collections.abc import Mapping

from rlhf_api.names import Reason

LINES: Mapping[Reason, str] = {
    Reason.CRASHED: (
        "The trainer ended by itself, and nothing names a cause that we know: read the log "
        "of the attempt's pods. Restarted from the last checkpoint, counted."
    ),
    Reason.ADMISSION_DENIED: (
        "An admission plug-in of the cluster refuses a child or its pods, in words of its "
        "own: do what it asks for in a new job, or have it changed. Waited for."
    ),
    Reason.ADMITTED: "The queue lets the job run.",
    Reason.API_ERROR: "The API server has failed or is not ready for a request. It is tried again.",
    Reason.ARTIFACT_INVALID: (
        "A stage ended well, but what it says of its artifact is not of this attempt, or "
        "cannot be used: use an operator and a trainer image of one release."
    ),
    Reason.CHILD_CHANGED: (
        "Somebody has changed a child's labels, ownerReferences, number of pods or selector, or "
        "a child lost them: put them back. The job goes on, but starts nothing beside a Job "
        "that has lost its owner, or behind a Service that does not select its pods. Or its "
        "Service was deleted, and is made anew: see who does that. The operator looks when an "
        "attempt starts, and once more when all pods of a gang run."
    ),
    Reason.CHILD_ENDED: (
        "A pod, or the batch Job of an attempt, was ended by a limit or a rule that is none of "
        "the job's own, as an admission policy may set it: change that. Restarted."
    ),
    Reason.CLAIM_MISSING: (
        "A claim of a `pvc://` URI or of `template.volumes` is not in the namespace: create it."
    ),
    Reason.CONFIG_INVALID: (
        "The configuration, the models' tokens or the memory that is needed do not fit "
        "(exit code 78): correct the field that is named, in a new job."
    ),
    Reason.CONTAINER_CONFIG: (
        "The kubelet cannot make a container of what it is given, a Secret, a ConfigMap or "
        "a user: correct what it names."
    ),
    Reason.CONTAINER_NOT_STARTED: (
        "The node's runtime cannot make or start a container: correct what it names, or the node."
    ),
    Reason.CONTRACT_VERSION: (
        "Operator and trainer image are of releases that do not know each other's files: "
        "use those of one release."
    ),
    Reason.CRASH_LOOP: "A container beside the trainer ends again and again: read its log.",
    Reason.CREATED: "The Job of an attempt is made, or all children of the job are.",
    Reason.DATA_ERROR: (
        "A row or a file cannot be used (exit code 65): correct it and make the job anew."
    ),
    Reason.DEADLINE_EXCEEDED: (
        "`runPolicy.stageDeadlineSeconds` or `activeDeadlineSeconds` is over: raise it, in "
        "a new job."
    ),
    Reason.DISRUPTED: (
        "The platform ended a pod, or the attempt's Job was deleted: look at who did."
    ),
    Reason.DRAINED: "A pod was evicted from a node that is drained or tainted.",
    Reason.EVICTED: (
        "The kubelet ended a pod, and says neither that it exceeded a limit of its own nor that "
        "the node lacked something: correct what it names."
    ),
    Reason.FINISHED: "Nothing of the stage, or of the job, runs any more.",
    Reason.FORBIDDEN: "The operator, or who is named, lacks a right: grant it. Waited for.",
    Reason.FOREIGN_CHILD: (
        "Something carries the job's labels that is not its own: remove the labels, or the "
        "object. The job goes on."
    ),
    Reason.FRESH: "Progress is read from rank 0.",
    Reason.GUARDRAIL: (
        "A [guardrail](guardrails.md) has suspended or failed the stage: condition Healthy "
        "has rule and numbers."
    ),
    Reason.IMAGE_PULL: (
        "A node cannot pull the image: push it, or correct its name or `imagePullSecrets`."
    ),
    Reason.INPUT_INVALID: (
        "A model, a checkpoint or another input is missing or cannot be used (exit code "
        "66): name another one in a new job, or make it again."
    ),
    Reason.INTACT: "All that carries the job's labels is its own.",
    Reason.INVALID_MUTATION: (
        "A mutating webhook or policy makes of a child what the API server cannot take: "
        "correct it. Waited for."
    ),
    Reason.INVALID_POD: (
        "What the cluster adds to pods, a LimitRange's defaults or a webhook's, makes them "
        "invalid: correct that. Waited for."
    ),
    Reason.INVALID_SPEC: (
        "The operator, or the API server, cannot make anything of the spec: use the CRD and the "
        "operator of one release, or make the job anew with what is named corrected."
    ),
    Reason.IO_ERROR: (
        "The storage is full or failing (exit code 74): free space. Restarted with pauses, counted."
    ),
    Reason.JOB_SUSPENDED: (
        "The attempt's batch Job was suspended by somebody else, as Kueue does to preempt it, and "
        "has failed by that."
    ),
    Reason.LIMIT_RANGE_VIOLATED: "The pods ask for more or less than a LimitRange allows.",
    Reason.MAX_DISRUPTIONS: (
        "`runPolicy.maxDisruptions` is used up; the message has the last cause: see what "
        "ends the pods, and make the job anew."
    ),
    Reason.MAX_RESTARTS: (
        "`runPolicy.maxRestarts` is used up; the message has the last cause: mend that, and "
        "make the job anew."
    ),
    Reason.NAMESPACE_TERMINATING: "The namespace is being deleted, and nothing can be made in it.",
    Reason.NAME_CONFLICT: (
        "A foreign object has the name that a child is to get: remove it, or name the job "
        "otherwise. Waited for. Children of a deleted job of the same name are waited for, too."
    ),
    Reason.NODE_LOST: "A node has not answered for half a minute.",
    Reason.NODE_PRESSURE: (
        "The kubelet ended a pod for the sake of its node's memory or disk: free the node, "
        "or ask for what the pod takes in `requests`."
    ),
    Reason.NODE_SHUTDOWN: "The node was shut down.",
    Reason.NON_FINITE: (
        "A loss, a gradient or another number was NaN or infinite (exit code 70): change "
        "hyperparameters in a new job."
    ),
    Reason.NO_PERMISSION: (
        "The trainer may not read or write a path (exit code 77): open the path that is named."
    ),
    Reason.OUT_OF_MEMORY: (
        "A container went beyond its memory limit, or CUDA had none left: raise the limit, "
        "or lower batches or lengths."
    ),
    Reason.PEER_LOST: (
        "A process lost another one, which left no better cause (exit code 80): look at the "
        "other pods. Restarted, counted."
    ),
    Reason.PENDING_DEADLINE_EXCEEDED: (
        "The pods did not run within `runPolicy.pendingDeadlineSeconds`; the message has "
        "what they waited for: mend that, or raise it, and make the job anew."
    ),
    Reason.PODS_PENDING: (
        "The pods are on their way: made, scheduled, or pulling the image. Where it lasts, "
        "`kubectl -n NAMESPACE describe pod` has the kubelet's words."
    ),
    Reason.PODS_READY: "All processes of an attempt run.",
    Reason.POD_REJECTED: (
        "The node refused a pod that it was given: free the node, or correct resources, "
        "`nodeSelector` or affinity. Restarted after longer pauses, counted."
    ),
    Reason.POD_SECURITY_VIOLATED: "The namespace's Pod Security Standard refuses the pods.",
    Reason.POLICY_DENIED: "A ValidatingAdmissionPolicy refuses a child or its pods.",
    Reason.PREEMPTED: "A pod of higher priority took the room.",
    Reason.PRIORITY_CLASS_MISSING: "`priorityClassName` names a class that is not there.",
    Reason.PROGRESS_DEADLINE_EXCEEDED: (
        "No further step within `runPolicy.progressDeadlineSeconds`: the attempt hangs, or "
        "a step takes longer. Restarted, counted."
    ),
    Reason.QUEUED: (
        "The job waits until its queue lets it run, or does so again after the queue, or who "
        "else holds its batch Job back, has taken its pods away."
    ),
    Reason.QUOTA_EXCEEDED: "A ResourceQuota does not let a child or its pods be made.",
    Reason.RESOURCES_REQUIRED: (
        "A ResourceQuota asks for requests or limits that the pods do not name: give them "
        "in `template.resources` of a new job, or let a LimitRange set them. Waited for."
    ),
    Reason.RESUMED: "`spec.suspend` is false again.",
    Reason.ROWS_LEFT_OUT: "Of a dataset so many rows are not used, and why.",
    Reason.RUNTIME_CLASS_MISSING: (
        "`template.runtimeClassName` names a class that is not there: create it, or name "
        "another one in a new job. Waited for."
    ),
    Reason.SCHEDULER_ERROR: (
        "The scheduler has failed at a pod, and says how: it tries again; where it lasts, correct "
        "what it names, or read its log."
    ),
    Reason.SCHEDULING_GATED: (
        "Somebody, as a webhook or a queue of the cluster, has given a pod `schedulingGates` and "
        "not taken them away: have that done, or keep the job's pods out of it. Waited for."
    ),
    Reason.SELF_CHECK_FAILED: (
        "PPO's [self-check](ppo.md#self-checks) failed (exit code 70): follow the remedy in "
        "the message, or report it."
    ),
    Reason.SERVICE_ACCOUNT_MISSING: (
        "`template.serviceAccountName` names an account that is not there."
    ),
    Reason.SERVICE_UNAVAILABLE: (
        "A hub, a network or a reward's endpoint does not answer (exit code 69). Restarted "
        "with pauses, counted."
    ),
    Reason.STORAGE_EXCEEDED: (
        "The kubelet ended a pod that wrote more to its node's disk than its limit of "
        "`ephemeral-storage`, or the `sizeLimit` of an emptyDir, allows: raise that in a new job, "
        "or write less. Restarted, counted."
    ),
    Reason.STAGES_COMPLETE: "The job has succeeded.",
    Reason.START_ERROR: (
        "A container of the pod could not start, or one before the trainer failed: correct "
        "`image`, `template` or what is named. Restarted after longer pauses, counted."
    ),
    Reason.STOPPED: (
        "The stage was stopped, since another one failed or somebody asked its pods to end."
    ),
    Reason.STOPPING: "The pods were asked to end, and save a checkpoint.",
    Reason.UNREACHABLE: (
        "The operator cannot read port 9400 of rank 0: look for a "
        "[NetworkPolicy](install.md#networkpolicies). Training goes on."
    ),
    Reason.UNSCHEDULABLE: "No node takes a pod.",
    Reason.USAGE: (
        "The trainer was called wrongly (exit code 64), or its folder is another job's: "
        "correct the call."
    ),
    Reason.USER_REQUESTED: "`spec.suspend` is true: the job goes on when it is false.",
    Reason.VALID: "The spec is valid.",
    Reason.VOLUME_NOT_MOUNTED: (
        "A pod's node cannot mount a volume of it, or attach its disk: create what is named, or "
        "correct the volume, its claim or its driver. Waited for."
    ),
    Reason.WAITING_FOR_STAGE: (
        "A stage waits for another one that it needs, or for the other's room."
    ),
    Reason.WEBHOOK_DENIED: "An admission webhook refuses a child or its pods.",
    Reason.WEBHOOK_FAILED: (
        "An admission webhook answered with what cannot be used: correct it, or remove its "
        "configuration. Waited for."
    ),
    Reason.WEBHOOK_UNAVAILABLE: (
        "An admission webhook does not answer: bring it back, or remove its configuration."
    ),
    Reason.WITHIN_LIMITS: (
        "No rule of a [guardrail](guardrails.md) is broken; else the reason is the rule's name."
    ),
}
"""Each with what to do where a person has to; those of a cause link to its section."""


def every_reason(sections: Mapping[Reason, str]) -> str:
    """The table, in which the commonest reason without a section comes first.

    Args:
        sections: for the reason of a cause a link to what is said of it.
    """
    first = Reason.CRASHED
    rest = sorted(set(LINES) - {first}, key=str.lower)
    rows = [_row(reason, sections.get(reason)) for reason in (first, *rest)]
    return "\n".join(("## Every reason", "", "| reason | meaning |", "|---|---|", *rows, ""))


def _row(reason: Reason, section: str | None) -> str:
    return f"| {reason} | {LINES[reason]}{f' See {section}.' if section else ''} |"
