"""From raw Jobs and Pods to `Observed`. Pure; called by `reconcile` with what the store holds."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from rlhf_api.names import Annotation, Label, Reason, StageName
from rlhf_api.v1alpha1 import RLHFJob
from rlhf_api.v1alpha1.status import MAX_COUNT
from rlhf_operator.disruptions import disruption_reason, reason_of_event
from rlhf_operator.evictions import FREE_THE_NODE, is_not_let_run, remedy_of_event
from rlhf_operator.fields import INDEX_ANNOTATION, attempt_of, is_let_run, number, pods_of_gang
from rlhf_operator.injected import as_trainers_ended, without_others
from rlhf_operator.planning.observed import ObservedAttempt, ObservedProcess, ProcessPhase
from rlhf_operator.pod_state import CHANGE_WHAT_SETS, told_of, trainer_of
from rlhf_operator.refusals import refusal_of_pods, steady
from rlhf_operator.store import Gang

Raw = dict[str, Any]

NODE_SILENCE = timedelta(seconds=30)
"""How long a pod may be not ready though its containers run, or exceed its grace period."""

_POD_FAILED = "BackoffLimitExceeded"
"""Why a Job fails that tries each pod once."""
_BY_GATE = "ReadinessGatesNotReady"
"""Why a kubelet says that a pod is not ready whose containers are: somebody else is to say so."""
_EARLIEST, _LATEST = datetime(1970, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class SeenAttempt:
    """An attempt with the objects that it was read from.

    Attributes:
        attempt: what they say.
        gang: its Job and its Pods.
        look_at: when they say something else by the mere passing of time; None if never.
    """

    attempt: ObservedAttempt
    gang: Gang
    look_at: datetime | None

    @property
    def ident(self) -> tuple[StageName, int]:
        """Stage and number."""
        return self.attempt.stage, self.attempt.attempt


def seen_attempts(job: str, gangs: Iterable[Gang], now: datetime) -> list[SeenAttempt]:
    """The attempts of an RLHFJob that Jobs and Pods show.

    The name of a Job says which attempt it is, since nobody can change it; one whose name says none
    is left out.

    Args:
        job: name of the RLHFJob.
        gangs: the Jobs that it owns.
        now: the time.
    """
    named = [(attempt_of(job, gang.job["metadata"]["name"]), gang) for gang in gangs]
    return [_attempt(*ident, gang, now) for ident, gang in named if ident is not None]


def lacks_pods(gang: Gang) -> bool:
    """Whether the Job controller has not made all pods of a Job that is to run."""
    job = gang.job
    over = _is_over(job) or job["metadata"].get("deletionTimestamp")
    held = over or not is_let_run(job["spec"])
    return not held and len(pods_by_index(gang)) < pods_of_gang(job["spec"])


def has_unseen_pods(gang: Gang) -> bool:
    """Whether the Job controller counts more pods of a Job that run, or will, than are seen."""
    active = (gang.job.get("status") or {}).get("active") or 0
    return lacks_pods(gang) and active > sum(_is_active(pod) for pod in gang.pods)


def _is_active(pod: Raw) -> bool:
    phase = (pod.get("status") or {}).get("phase")
    over = phase in (ProcessPhase.SUCCEEDED, ProcessPhase.FAILED)
    return not (over or pod["metadata"].get("deletionTimestamp"))


def refused_pod(job: Raw, events: Sequence[Raw]) -> ObservedProcess:
    """The pod that the Job controller could not make, as its Events tell.

    Args:
        job: a batch/v1 Job that lacks pods.
        events: its Events with reason FailedCreate.
    """
    name = job["metadata"]["name"]
    if not events:
        return ObservedProcess(f"{name}-?", -1)
    last = max(events, key=lambda event: event.get("lastTimestamp") or "")
    refused = refusal_of_pods(name, str(last.get("message", "")))
    return ObservedProcess(f"{name}-?", -1, reason=refused.reason, message=refused.message)


def vanished_pod(job_name: str, events: Sequence[Raw]) -> ObservedProcess | None:
    """A pod that is gone, as the Events of a namespace tell what became of it.

    Args:
        job_name: of the batch/v1 Job whose pod it was.
        events: Events about Pods, of any Job.

    Returns:
        A process that exceeded a limit of its own or was disrupted, if any Event says so, else one
        with the last warning, as that its node did not let it run; None if there is none of them.
    """
    own = [each for each in events if _is_about_pod_of(job_name, each)]
    own.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    exceeding = [each for each in own if remedy_of_event(each) is not None]
    disruptions = [each for each in own if reason_of_event(each) is not None]
    warnings = [each for each in own if each.get("type") == "Warning"]
    if not (exceeding or disruptions or warnings):
        return None
    told = (exceeding or disruptions or warnings)[-1]
    reason, remedy = reason_of_event(told), remedy_of_event(told)
    if exceeding:
        reason = Reason.STORAGE_EXCEEDED
    elif is_not_let_run(told):
        reason, remedy = Reason.POD_REJECTED, FREE_THE_NODE
    pod = told["involvedObject"]["name"]
    said = f"{told.get('reason', '')}: {str(told.get('message', '')).strip()}"
    return ObservedProcess(
        name=pod,
        phase=ProcessPhase.FAILED,
        finished_at=_time(told.get("lastTimestamp") or told.get("eventTime")),
        reason=reason,
        message=f"pod {pod} is gone; its last Event: {said}" + (f"; {remedy}" if remedy else ""),
        disrupted=bool(disruptions) and not exceeding,
        patient=reason is Reason.POD_REJECTED,
    )


def _is_about_pod_of(job_name: str, event: Raw) -> bool:
    # The pods of an Indexed Job are called <job>-<index>-<random>.
    name = str((event.get("involvedObject") or {}).get("name", ""))
    return re.fullmatch(rf"{re.escape(job_name)}-\d+-[a-z0-9]+", name) is not None


def pods_by_index(gang: Gang) -> dict[int, Raw]:
    """The newest pod of each index of a gang, but for those that a suspension takes away."""
    own = [pod for pod in gang.pods if not _is_taken_away(gang.job, pod)]
    own.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
    return {pod_index(pod): pod for pod in own}


def true_conditions(raw: Raw) -> dict[str, Raw]:
    """The conditions that hold, by type."""
    conditions = (raw.get("status") or {}).get("conditions") or ()
    return {each["type"]: each for each in conditions if each.get("status") == "True"}


def _is_over(job: Raw) -> bool:
    """Whether the Job controller has judged the Job."""
    verdicts = {"Complete", "Failed", "FailureTarget", "SuccessCriteriaMet"}
    return bool(verdicts & true_conditions(job).keys())


def _attempt(stage: StageName, attempt: int, gang: Gang, now: datetime) -> SeenAttempt:
    job = gang.job
    metadata, spec = job["metadata"], job["spec"]
    true = true_conditions(job)
    deleted_at = _time(metadata.get("deletionTimestamp"))
    failing = true.get("FailureTarget") or true.get("Failed")
    failed = failing is not None or deleted_at is not None
    failed_at = _past(failing.get("lastTransitionTime"), now) if failing else None
    deleting = deleted_at is not None
    pods = _in_order(gang)
    seen = [without_others(pod, now, *_process(pod, now, deleting=deleting)) for pod in pods]
    processes, done = as_trainers_ended(
        spec, pods, [process for process, _ in seen], given_up=failing is not None
    )
    if _is_held(job) and not (failed or done or "Complete" in true):
        # What ends because its Job is suspended is no failure; if it is one, the Job says so next.
        processes = [process for process in processes if not process.failed]
    if not is_let_run(spec):
        process = _suspended(metadata, spec, failed=failing is not None, deleting=deleting)
        processes.insert(0, process)
    held_since, released_at = _held(job, now)
    found = ObservedAttempt(
        stage=stage,
        attempt=attempt,
        processes=tuple(processes),
        complete="Complete" in true or (done and not deleting),
        failed=failed,
        killed_at=min((t for t in (deleted_at, failed_at) if t is not None), default=None),
        checkpoint_step=_checkpoint_step(metadata),
        guardrails=(metadata.get("annotations") or {}).get(Annotation.GUARDRAILS),
        held_since=held_since,
        released_at=released_at,
        confirmed=False,
        over="Failed" in true,
        deleting=deleting,
        ended_by=_ended_by(metadata["name"], failing or {}),
    )
    return SeenAttempt(found, gang, min((at for _, at in seen if at is not None), default=None))


def _ended_by(name: str, failing: Raw) -> str:
    """What the Job controller says of a Job that has failed, unless that is only that a pod has."""
    why = failing.get("reason")
    if why in (None, _POD_FAILED):
        return ""
    said = ": ".join(each for each in (why, steady(str(failing.get("message") or ""))) if each)
    return f"Job {name} was ended from outside: {said}; {CHANGE_WHAT_SETS}"


def _in_order(gang: Gang) -> list[Raw]:
    return [pod for _, pod in sorted(pods_by_index(gang).items())]


def _checkpoint_step(metadata: Raw) -> int | None:
    step = (metadata.get("annotations") or {}).get(Annotation.CHECKPOINT_STEP)
    if step is None:
        return None
    found = number(step)
    # No later one is known where nobody knows which it was: what ends there counts.
    return MAX_COUNT if found is None else found


def _held(job: Raw, now: datetime) -> tuple[datetime | None, datetime | None]:
    """Since when the Job is held back from outside, and when it was let run."""
    suspended = _suspended_condition(job)
    turned = _past(suspended.get("lastTransitionTime"), now)
    if not _is_held(job):
        return None, turned
    unsaid = suspended or not job["spec"].get("suspend")
    if unsaid and suspended.get("status") != "True":
        # The controller says a moment after `spec.suspend` is set since when, and of
        # `spec.parallelism` nobody does.
        return now, None
    return turned or _time(job["metadata"].get("creationTimestamp")), None


def _is_held(job: Raw) -> bool:
    # The controller says a moment after `spec.suspend` is gone when that was.
    return not is_let_run(job["spec"]) or _suspended_condition(job).get("status") == "True"


def _suspended_condition(job: Raw) -> Raw:
    conditions = (job.get("status") or {}).get("conditions") or ()
    return next((each for each in conditions if each["type"] == "Suspended"), {})


def _is_taken_away(job: Raw, pod: Raw) -> bool:
    """Whether the pod was deleted because its Job was suspended, from which the Job may go on.

    The Job controller does not count how it ends. Of a Job that has failed, is complete or is
    deleted all pods count.
    """
    asked = _time(pod["metadata"].get("deletionTimestamp")) is not None
    if _is_over(job) or job["metadata"].get("deletionTimestamp") or _has_succeeded(pod):
        return False
    released_at = _time(_suspended_condition(job).get("lastTransitionTime"))
    return asked and (_is_held(job) or (released_at is not None and _is_asked_by(pod, released_at)))


def _is_asked_by(pod: Raw, moment: datetime) -> bool:
    """Whether the pod was asked to end at that moment or before."""
    gone_at = _time(pod["metadata"].get("deletionTimestamp"))
    grace = timedelta(seconds=pod["metadata"].get("deletionGracePeriodSeconds") or 0)
    return gone_at is not None and gone_at - grace <= moment


def without_taken_away(job: RLHFJob, gang: Gang, now: datetime) -> Gang:
    """The gang without pods that a hold took away whose end only the job's status tells.

    Of `spec.parallelism` that was 0 no condition of the batch/v1 Job tells.
    """
    ident = attempt_of(job.metadata.name, gang.job["metadata"]["name"])
    stage = None if ident is None else getattr(job.status.stages, ident[0])
    if stage is None or ident is None or stage.attempt != ident[1]:
        return gang
    if _is_over(gang.job) or gang.job["metadata"].get("deletionTimestamp"):
        return gang
    waited = stage.idle_since is not None and stage.reason is Reason.QUEUED
    released_at = now if waited and is_let_run(gang.job["spec"]) else stage.pending_since
    if released_at is None:
        return gang
    left = (pod for pod in gang.pods if _has_succeeded(pod) or not _is_asked_by(pod, released_at))
    return replace(gang, pods=tuple(left))


def _has_succeeded(pod: Raw) -> bool:
    return (pod.get("status") or {}).get("phase") == ProcessPhase.SUCCEEDED


def _suspended(metadata: Raw, spec: Raw, *, failed: bool, deleting: bool) -> ObservedProcess:
    """Kueue's part: it holds the Job back, or it has preempted one that ran."""
    name = metadata["name"]
    if failed:
        phase, message = ProcessPhase.FAILED, f"Job {name} was suspended from outside"
        return ObservedProcess(
            name, -1, phase, reason=Reason.JOB_SUSPENDED, disrupted=True, message=message
        )
    queue = (metadata.get("labels") or {}).get(Label.QUEUE)
    message = f"Job {name} waits in queue {queue}"
    if not spec.get("suspend"):
        nodes = pods_of_gang(spec)
        message = f"Job {name} is held back by its spec.parallelism of 0; set it to {nodes} again"
    elif queue is None:
        message = f"Job {name} was suspended from outside; set its spec.suspend to false"
    return ObservedProcess(name, -1, reason=Reason.QUEUED, message=message, terminating=deleting)


def _process(pod: Raw, now: datetime, *, deleting: bool) -> tuple[ObservedProcess, datetime | None]:
    """A pod as a process, and when it will have been silent for too long."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    conditions = {c["type"]: c for c in status.get("conditions") or ()}
    trainer = trainer_of(pod)
    state = trainer.get("state") or {}
    ended = state.get("terminated") or {}
    deleted_at = _time(metadata.get("deletionTimestamp"))
    phase = ProcessPhase(status["phase"]) if status.get("phase") in set(ProcessPhase) else None
    over = phase in (ProcessPhase.SUCCEEDED, ProcessPhase.FAILED)
    quiet_since = None if over else _quiet_since(pod, state, conditions)
    silent = quiet_since is not None and now - quiet_since >= NODE_SILENCE
    silent_since = quiet_since if silent else None
    target = conditions.get("DisruptionTarget") or {}
    unready = _is_unready(state, conditions)
    disruption = disruption_reason(status, target, unready=unready, silent=silent)
    told = told_of(pod, phase)
    message = told.message
    if disruption is not None:
        node = (pod.get("spec") or {}).get("nodeName", "its node")
        why = target.get("message") or f"{node} does not answer"
        message = f"pod {metadata['name']} was disrupted: {why}"
    process = ObservedProcess(
        name=metadata["name"],
        index=pod_index(pod),
        phase=phase or ProcessPhase.PENDING,
        # Not the pod's condition: containers and readiness gates of others are no part of it.
        ready="running" in state and trainer.get("ready") is not False and not (unready or silent),
        exit_code=ended.get("exitCode"),
        finished_at=_past(ended.get("finishedAt"), now) or silent_since,
        result=told.result,
        reason=disruption or told.reason,
        message=message,
        patient=told.patient,
        disrupted=disruption is not None,
        lost=silent,
        terminating=deleting or deleted_at is not None,
    )
    look_at = quiet_since + NODE_SILENCE if quiet_since is not None and not silent else None
    return process, look_at


def _quiet_since(pod: Raw, state: Raw, conditions: Raw) -> datetime | None:
    """Since when the pod's node has not said what it should; None if it has.

    A pod is not ready though its containers are, or is there beyond its grace period. Who finds a
    node silent turns Ready alone, and leaves its reason; a kubelet whose container is not ready
    turns both, and gives a readiness gate that keeps a pod from being ready as the reason.
    """
    since = _time((conditions.get("Ready") or {}).get("lastTransitionTime"))
    unready = _is_unready(state, conditions)
    times = [_time(pod["metadata"].get("deletionTimestamp")), since if unready else None]
    return min((time for time in times if time is not None), default=None)


def _is_unready(state: Raw, conditions: Raw) -> bool:
    ready, containers = conditions.get("Ready") or {}, conditions.get("ContainersReady") or {}
    unready = ready.get("status") == "False" and ready.get("reason") != _BY_GATE
    return unready and "running" in state and containers.get("status") != "False"


def pod_index(pod: Raw) -> int:
    """Node rank of a pod of an Indexed Job; -1 if somebody has written no number there."""
    found = number((pod["metadata"].get("annotations") or {}).get(INDEX_ANNOTATION, "0"))
    return -1 if found is None else found


def _past(text: str | None, now: datetime) -> datetime | None:
    """A time that is over; None where a clock is far ahead, which would be waited for."""
    found = _time(text)
    return None if found is None or found - now > NODE_SILENCE else found


def _time(text: str | None) -> datetime | None:
    """A time of the API's, with room to add to; None where nobody has told one.

    Whoever may write a status may write any time, and the API server knows a year 0.
    """
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return min(found, _LATEST) if found >= _EARLIEST else None
