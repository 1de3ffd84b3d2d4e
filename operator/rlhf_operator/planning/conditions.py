"""Conditions of a job, set and read. Pure; called by `plan` and its parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from rlhf_api.names import ConditionType, Reason
from rlhf_api.v1alpha1 import Condition
from rlhf_api.v1alpha1.bounds import bounded_text
from rlhf_api.v1alpha1.status import MAX_MESSAGE_LENGTH

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True)
class Finding:
    """What is to be said by a condition; when it turned is worked out by `set_condition`."""

    type: ConditionType
    status: Truth
    reason: Reason | str
    message: str


def find_condition(conditions: Sequence[Condition], kind: ConditionType) -> Condition | None:
    """The condition of that type; None if it was never set."""
    return next((condition for condition in conditions if condition.type is kind), None)


def is_true(conditions: Sequence[Condition], kind: ConditionType) -> bool:
    """Whether the condition is there and holds."""
    found = find_condition(conditions, kind)
    return found is not None and found.status == "True"


def set_condition(
    conditions: Sequence[Condition], finding: Finding, now: datetime, generation: int
) -> tuple[Condition, ...]:
    """The conditions with this one in its place, or at the end.

    `last_transition_time` changes only with `status`, as metav1 wants it.
    """
    old = find_condition(conditions, finding.type)
    turned = old is None or old.status != finding.status
    new = Condition(
        type=finding.type,
        status=finding.status,
        reason=finding.reason,
        message=bounded_text(finding.message, MAX_MESSAGE_LENGTH),
        last_transition_time=now if old is None or turned else old.last_transition_time,
        observed_generation=generation,
        # What a newer operator has said besides.
        **((old and old.model_extra) or {}),
    )
    if old is None:
        return (*conditions, new)
    return tuple(new if condition.type is finding.type else condition for condition in conditions)


def of_generation(conditions: Sequence[Condition], generation: int) -> tuple[Condition, ...]:
    """The conditions, each of ours as of that generation of the spec: all were looked at."""
    return tuple(
        condition.model_copy(update={"observed_generation": generation})
        if isinstance(condition.type, ConditionType)
        else condition
        for condition in conditions
    )
