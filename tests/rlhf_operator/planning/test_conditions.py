"""Conditions keep the time at which they turned."""

from datetime import UTC, datetime, timedelta

from rlhf_api.names import ConditionType, Reason
from rlhf_operator.planning.conditions import Finding, find_condition, is_true, set_condition

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
PENDING = Finding(ConditionType.RUNNING, "False", Reason.PODS_PENDING, "waits")


def test_a_condition_is_added_once() -> None:
    conditions = set_condition((), PENDING, NOW, 1)
    conditions = set_condition(conditions, PENDING, LATER, 2)
    assert len(conditions) == 1
    assert conditions[0].last_transition_time == NOW
    assert conditions[0].observed_generation == 2


def test_another_reason_is_no_transition() -> None:
    conditions = set_condition((), PENDING, NOW, 1)
    restarting = Finding(ConditionType.RUNNING, "False", Reason.CRASHED, "crashed")
    conditions = set_condition(conditions, restarting, LATER, 1)
    assert conditions[0].last_transition_time == NOW
    assert (conditions[0].reason, conditions[0].message) == (Reason.CRASHED, "crashed")


def test_another_status_is_one_and_the_order_stays() -> None:
    accepted = Finding(ConditionType.ACCEPTED, "True", Reason.VALID, "")
    conditions = set_condition(set_condition((), PENDING, NOW, 1), accepted, NOW, 1)
    running = Finding(ConditionType.RUNNING, "True", Reason.PODS_READY, "runs")
    conditions = set_condition(conditions, running, LATER, 1)
    assert [each.type for each in conditions] == ["Running", "Accepted"]
    assert conditions[0].last_transition_time == LATER
    assert is_true(conditions, ConditionType.RUNNING)
    assert find_condition(conditions, ConditionType.FAILED) is None
    assert not is_true(conditions, ConditionType.FAILED)


def test_a_message_is_cut_to_what_the_schema_takes() -> None:
    long = Finding(ConditionType.FAILED, "True", Reason.CRASHED, "x" * 10_000 + "; correct it")
    message = set_condition((), long, NOW, 1)[0].message
    assert len(message) == 8192
    assert message.endswith("x; correct it")
