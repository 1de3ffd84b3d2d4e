"""The Events that tell of the step from one status to the next. Pure.

Called by `plan`, and by `reconcile` with the status up to which they were told last: whatever an
Event tells of stands in status, so that a new leader tells nothing again.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlhf_api.names import ConditionType, Reason, StageName, StageState
from rlhf_api.v1alpha1 import RLHFJobStatus, StageStatus
from rlhf_operator.planning.conditions import find_condition, is_true
from rlhf_operator.planning.guardrails import awaits_resume, remedy
from rlhf_operator.planning.hindrances import UNHINDERED
from rlhf_operator.planning.rows import rows_left_out
from rlhf_operator.planning.statuses import stages_of


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event, or a line of the local runner: told once, after the status is written."""

    type: Literal["Normal", "Warning"]
    reason: Reason | str
    message: str


def derive_events(old: RLHFJobStatus, new: RLHFJobStatus) -> Iterator[Event]:
    """One Event for each transition from `old` to `new`."""
    known, stages = stages_of(old), stages_of(new)
    for name, after in stages.items():
        before = known.get(name, StageStatus(state=StageState.WAITING))
        yield from _stage_events(name, before, after, remedy(after, stages))
    yield from _children_events(old, new)
    yield from _intact_events(old, new)
    for kind in (ConditionType.SUSPENDED, ConditionType.SUCCEEDED, ConditionType.FAILED):
        after_turn = find_condition(new.conditions, kind)
        if after_turn is None or is_true(old.conditions, kind) == (after_turn.status == "True"):
            continue
        by_stage = kind is ConditionType.FAILED and _has_failed_stage(new)
        if by_stage or after_turn.reason is Reason.GUARDRAIL:
            # It turns when nothing runs any more, in the words that the stages were told in.
            continue
        severe = kind is ConditionType.FAILED
        yield Event("Warning" if severe else "Normal", after_turn.reason, after_turn.message)
    yield from _health_events(old, new)


def _has_failed_stage(status: RLHFJobStatus) -> bool:
    stages = (getattr(status.stages, name) for name in StageName)
    return any(stage is not None and stage.state is StageState.FAILED for stage in stages)


def _children_events(old: RLHFJobStatus, new: RLHFJobStatus) -> Iterator[Event]:
    """What keeps a child from being deleted; a stage tells itself what keeps it from starting."""
    before = find_condition(old.conditions, ConditionType.CHILDREN_READY)
    after = find_condition(new.conditions, ConditionType.CHILDREN_READY)
    if after is None or after.status != "False":
        return
    stages = (getattr(new.stages, name) for name in StageName)
    by_stage = any(
        stage.state is StageState.STARTING and stage.reason == after.reason
        for stage in stages
        if stage is not None
    )
    turned = before is None or (before.status, before.reason) != ("False", after.reason)
    if turned and not by_stage:
        yield Event("Warning", after.reason, after.message)


def _intact_events(old: RLHFJobStatus, new: RLHFJobStatus) -> Iterator[Event]:
    """What is odd among the children, told by its kind: the condition has the rest of the text."""
    before = find_condition(old.conditions, ConditionType.CHILDREN_INTACT)
    after = find_condition(new.conditions, ConditionType.CHILDREN_INTACT)
    known = None if before is None else (before.status, before.reason)
    if after is None or known == (after.status, after.reason):
        return
    if after.status == "False":
        yield Event("Warning", after.reason, after.message)
    elif before is not None:
        yield Event("Normal", after.reason, after.message)


def _health_events(old: RLHFJobStatus, new: RLHFJobStatus) -> Iterator[Event]:
    before = find_condition(old.conditions, ConditionType.HEALTHY)
    after = find_condition(new.conditions, ConditionType.HEALTHY)
    told = before.message if before is not None and before.status == "False" else None
    if after is None:
        return
    if after.status != "False":
        if told is not None:
            yield Event("Normal", after.reason, after.message)
    elif told != after.message and not _is_told_by_stages(old, new):
        # The message changes with the set of broken rules alone: numbers stay as they first were.
        yield Event("Warning", after.reason, after.message)


def _is_told_by_stages(old: RLHFJobStatus, new: RLHFJobStatus) -> bool:
    """Whether each rule that is broken now and was not has ended its stage, or is about to.

    A stage tells of that by an Event of its own, with the numbers of the one rule that did it.
    """
    turned = []
    for name in StageName:
        before, after = getattr(old.stages, name), getattr(new.stages, name)
        rules = set() if after is None else set(after.verdicts or ())
        turning = rules - set(() if before is None else before.verdicts or ())
        if turning:
            turned.append(len(turning) == 1 and after.reason in (Reason.GUARDRAIL, *turning))
    return bool(turned) and all(turned)


def _stage_events(
    name: StageName, before: StageStatus, after: StageStatus, how_on: str
) -> Iterator[Event]:
    if _is_created(before, after):
        said = f"stage {name}: attempt {after.created_attempt} starts"
        yield Event("Normal", Reason.CREATED, said)
    for is_loss, why, text in rows_left_out(name, before, after):
        yield Event("Warning" if is_loss else "Normal", why, text)
    if after.state is StageState.STARTING:
        yield from _hindrance(name, before, after)
    if after.state is before.state or after.state in (StageState.WAITING, StageState.STARTING):
        return
    if after.reason is Reason.USER_REQUESTED:
        # Condition Suspended tells of it once, for all stages.
        return
    severe = after.state in (StageState.FAILED, StageState.RESTARTING) or awaits_resume(after)
    reason = Reason.STOPPING if after.state is StageState.STOPPING else after.reason
    yield Event(
        "Warning" if severe else "Normal",
        reason or Reason.STOPPED,
        f"stage {name}: {after.message or after.state}{how_on}",
    )


def _is_created(before: StageStatus, after: StageStatus) -> bool:
    """Whether the attempt is seen to be there for the first time."""
    if after.created_attempt in (None, before.created_attempt):
        return False
    # Of one that was past its start nobody has kept whether it was told.
    starting = before.state in (StageState.WAITING, StageState.STARTING)
    return starting or after.attempt != before.attempt


def _hindrance(name: StageName, before: StageStatus, after: StageStatus) -> Iterator[Event]:
    """What keeps an attempt from running, when that begins or another cause takes its place."""
    known = (before.state, before.attempt, before.reason)
    if after.reason in UNHINDERED or known == (after.state, after.attempt, after.reason):
        return
    # A queue is no fault of anybody, and gates are how some hold a pod.
    queued = after.reason in (Reason.QUEUED, Reason.SCHEDULING_GATED)
    kind: Literal["Normal", "Warning"] = "Normal" if queued else "Warning"
    yield Event(kind, after.reason or Reason.PODS_PENDING, f"stage {name}: {after.message}")
