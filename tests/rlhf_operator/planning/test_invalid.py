"""A spec that is not understood is told in condition and row; what others have said stays."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from rlhf_operator.planning.invalid import invalid_status, says_invalid

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
WHY = "spec.stages.sft.new: unknown; correct it"


def condition(status: Any, kind: str) -> Any:
    return next(each for each in status["conditions"] if each["type"] == kind)


def holding(kind: str) -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": "Other", "message": "so it is"}


@pytest.mark.parametrize(
    ("before", "phase", "reason"),
    [
        ({}, "Pending", "InvalidSpec"),
        ({"phase": "Running", "summary": {"reason": "PodsReady"}}, "Running", "InvalidSpec"),
        ({"phase": "Suspended", "conditions": [holding("Suspended")]}, "Suspended", "InvalidSpec"),
        (
            {
                "phase": "Succeeded",
                "summary": {"reason": "StagesComplete"},
                "conditions": [holding("Succeeded")],
            },
            "Succeeded",
            "StagesComplete",
        ),
        (
            {
                "phase": "Failed",
                "summary": {"reason": "DataError"},
                "conditions": [holding("Failed")],
            },
            "Failed",
            "DataError",
        ),
    ],
)
def test_the_row_says_that_the_spec_is_invalid_unless_the_job_has_ended(
    before: dict[str, Any], phase: str, reason: str
) -> None:
    after = invalid_status(before, WHY, 1, NOW)
    assert (after["phase"], after["summary"]["reason"]) == (phase, reason)
    accepted = condition(after, "Accepted")
    told = (accepted["status"], accepted["reason"], accepted["message"])
    assert told == ("False", "InvalidSpec", WHY)
    assert says_invalid(after, WHY)
    assert not says_invalid(before, WHY)
    assert not says_invalid(after, f"{WHY} soon")


def test_what_is_said_already_is_left_as_it_is() -> None:
    first = invalid_status({"summary": {"progress": "7%"}, "newer": 1}, WHY, 1, NOW)
    assert first["summary"] == {"progress": "7%", "reason": "InvalidSpec"}
    assert first["newer"] == 1
    assert invalid_status(first, WHY, 1, LATER) == first
    again = invalid_status(first, WHY, 2, LATER)
    assert (again["observedGeneration"], condition(again, "Accepted")["observedGeneration"]) == (
        2,
        2,
    )


def test_the_time_is_that_of_the_turn_and_other_words_are_none() -> None:
    before = {"conditions": [holding("Accepted") | {"lastTransitionTime": "2025-01-01T00:00:00Z"}]}
    turned = invalid_status(before, WHY, 1, NOW)
    assert condition(turned, "Accepted")["lastTransitionTime"] == "2026-01-01T12:00:00Z"
    other = invalid_status(turned, "another field", 1, LATER)
    accepted = condition(other, "Accepted")
    assert accepted["message"] == "another field"
    assert accepted["lastTransitionTime"] == "2026-01-01T12:00:00Z"


def test_a_long_text_is_cut_to_what_the_schema_takes() -> None:
    text = "x" * 10_000 + "; correct it"
    long = invalid_status({}, text, 1, NOW)
    message = condition(long, "Accepted")["message"]
    assert len(message) == 8192
    assert message.endswith("x; correct it")
    assert says_invalid(long, text)
