"""What a process tells at its end is kept within what a status can hold."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_api.names import CONTRACT_VERSION, MAX_RESULT_METRICS
from rlhf_api.v1alpha1 import RowCounts, StageResult
from rlhf_api.v1alpha1.bounds import bounded_count, bounded_text, finite_number
from rlhf_api.v1alpha1.status import MAX_COUNT, MAX_TEXT_LENGTH

DIGEST = "sha256:" + "0" * 64
VERDICT = {"rule": "NegativeKL", "action": "Suspend", "step": 3, "value": -1.0, "threshold": 0.0}
HUGE = 10**400


def read(**told: Any) -> StageResult:
    """The result in a termination message that says so, whatever else it should be."""
    document = {
        "contractVersion": CONTRACT_VERSION,
        "stage": "sft",
        "attempt": 1,
        "configDigest": DIGEST,
        "exitCode": 1,
        "reason": "Crashed",
    }
    found = StageResult.from_message(json.dumps(document | told))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (26, "abcdefghijklmnopqrstuvwxyz"),
        (25, "abcdefghij ... qrstuvwxyz"),
        (6, "a ... "),
        (7, "a ... z"),
        (5, "abcde"),
        (0, ""),
    ],
)
def test_of_a_long_text_both_ends_are_kept(length: int, kept: str) -> None:
    assert bounded_text("abcdefghijklmnopqrstuvwxyz", length) == kept


@pytest.mark.parametrize(
    ("value", "count", "number"),
    [
        (7, 7, 7.0),
        (7.9, 7, 7.9),
        (-1, 0, -1.0),
        (3_000_000_000, MAX_COUNT, 3e9),
        (1e300, MAX_COUNT, 1e300),
        (HUGE, MAX_COUNT, None),
        (-HUGE, 0, None),
        (float("nan"), None, None),
        (float("inf"), None, None),
        (float("-inf"), None, None),
        (True, None, None),
        ("7", None, None),
        (None, None, None),
        ([7], None, None),
        ({}, None, None),
    ],
)
def test_every_number_that_may_be_told(
    value: object, count: int | None, number: float | None
) -> None:
    assert bounded_count(value) == count
    assert finite_number(value) == number
    found = read(step=value, totalSteps=value, lastCheckpointStep=value, metrics={"loss": value})
    assert (found.step, found.total_steps) == (count or 0, count or 0)
    assert found.last_checkpoint_step == count
    assert found.metrics == ({} if number is None else {"loss": number})
    rows = read(rows={"dataset": {"kept": value, "overLong": value}}).rows
    want = None if count is None else {"dataset": RowCounts(kept=count, over_long=count)}
    assert rows == want
    told = VERDICT | {"step": value, "value": value}
    verdicts = read(verdicts=[told]).verdicts
    assert [(each.step, each.value) for each in verdicts] == (
        [] if count is None else [(count, number)]
    )


@pytest.mark.parametrize(
    ("told", "field", "kept"),
    [
        ({"message": 5}, "message", ""),
        ({"message": None}, "message", ""),
        ({"metrics": [1]}, "metrics", {}),
        ({"metrics": {"x" * (MAX_TEXT_LENGTH + 1): 1}}, "metrics", {}),
        ({"metrics": {"\udce9": 1.0}}, "metrics", {"?": 1.0}),
        ({"rows": "many"}, "rows", None),
        ({"rows": {"dataset": {"overLong": 1}}}, "rows", None),
        (
            {"rows": {"dataset": {"kept": 1, "ofTomorrow": 2}}},
            "rows",
            {"dataset": RowCounts(kept=1)},
        ),
        ({"verdicts": "bad"}, "verdicts", ()),
        ({"verdicts": [5]}, "verdicts", ()),
        ({"verdicts": [VERDICT | {"rule": "OfTomorrow"}, VERDICT]}, "verdicts", ()),
        ({"verdicts": [VERDICT | {"threshold": float("inf")}]}, "verdicts", ()),
    ],
)
def test_what_cannot_be_read_is_left_out_and_the_rest_kept(
    told: dict[str, Any], field: str, kept: object
) -> None:
    found = read(**told)
    assert getattr(found, field) == kept
    assert (found.attempt, found.exit_code) == (1, 1)


def test_a_verdict_of_a_later_release_keeps_what_is_known_of_it() -> None:
    (found,) = read(verdicts=[VERDICT | {"ofTomorrow": 1}]).verdicts
    assert (found.rule, found.value) == ("NegativeKL", -1.0)


def test_there_is_no_room_for_more_metrics_than_a_result_holds() -> None:
    found = read(metrics={f"metric_{number}": number for number in range(100)})
    assert list(found.metrics) == [f"metric_{number}" for number in range(MAX_RESULT_METRICS)]


@pytest.mark.parametrize(
    "told", [{"attempt": HUGE, "stage": 5}, {"attempt": "1"}, {"exitCode": -1}]
)
def test_what_says_whose_result_it_is_is_not_mended(told: dict[str, Any]) -> None:
    document = json.loads(read().to_message())
    assert StageResult.from_message(json.dumps(document | told)) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
        max_leaves=8,
    ),
    st.sampled_from(["step", "metrics", "rows", "verdicts", "message", "lastCheckpointStep"]),
)
def test_nothing_that_stands_in_a_field_makes_a_result_unreadable(told: Any, field: str) -> None:
    assert read(**{field: told}).attempt == 1
