"""Histories for the alerts on the operator, and when they are to fire."""

from alert_histories import Case, merged, no_numbers
from alert_rules import Alerted, Series, selector

OPS = Alerted("ops", "", "")


def operator(name: str, values: str, **more: str) -> Series:
    """A series of the operator about itself."""
    return {
        f"rlhf_operator_{name}{selector({'namespace': 'ops', 'pod': 'operator-0'} | more)}": values
    }


def leader(values: str, **more: str) -> Series:
    return operator("leader", values, **more)


DOWN = [
    Case("leads", leader("1x20")),
    Case("one of two leads", merged(leader("1x20"), leader("0x20", pod="operator-1"))),
    Case(
        "another takes over in time",
        merged(leader("1x5 stale"), leader("0x9 1x11", pod="operator-1")),
    ),
    Case("none leads", leader("1x5 0x15"), {OPS: set(range(11, 21))}),
    Case("NaN leads nobody", leader(f"1x5 {no_numbers(15)}"), {OPS: set(range(11, 21))}),
    Case("gone", leader("1x5 stale"), {OPS: set(range(11, 21))}),
    Case("never there", {}, {OPS: set(range(5, 21))}),
    Case("one elsewhere leads", leader("1x20", namespace="other"), {OPS: set(range(5, 21))}),
]


def passes(rate: int) -> Series:
    return operator("reconcile_duration_seconds_count", f"0+{rate}x30")


def rare(before: str, last: int) -> str:
    """A counter that after `before`, which ends at `last`, grows by one every five minutes."""
    return " ".join([before, *(f"{last + more}x4" for more in range(1, 12))])


LAGGING = [
    Case("keeps up", merged(operator("queue_age_seconds", "0x30"), passes(60))),
    Case("NaN", merged(operator("queue_age_seconds", no_numbers(31)), passes(60))),
    Case("a short jam", operator("queue_age_seconds", "0x5 90x3 0x20")),
    Case("late", operator("queue_age_seconds", "0x4 90x15"), {OPS: set(range(10, 21))}),
    Case(
        "most passes fail",
        merged(operator("reconcile_errors_total", "0+40x30", reason="bug"), passes(60)),
        # A rate needs two samples.
        {OPS: set(range(6, 21))},
    ),
    Case(
        "conflicts are no failures",
        merged(operator("reconcile_errors_total", "0+40x30", reason="conflict"), passes(60)),
    ),
    Case(
        "failures within a minute, then a quiet operator",
        merged(
            operator("reconcile_errors_total", "0x3 7x60", reason="http-500"),
            operator("reconcile_duration_seconds_count", rare("0x3 7x4", 7)),
        ),
        until=50,
    ),
    Case(
        "a quiet operator, one job of which is tried again every five minutes",
        merged(
            operator("reconcile_errors_total", rare("0x4", 0), reason="http-403"),
            operator("reconcile_duration_seconds_count", rare("0x4", 0)),
        ),
        until=50,
    ),
    Case(
        "few jobs, but every pass fails",
        merged(operator("reconcile_errors_total", "0+3x30", reason="bug"), passes(3)),
        # A rate over five minutes is of what there is of them.
        {OPS: set(range(8, 21))},
    ),
    Case("no pass at all", merged(operator("reconcile_errors_total", "0x30"), passes(0))),
]
