"""Histories for each alert, and when it is to fire.

`1x4` is promtool's for a 1 and four more, `_x4` for four samples that lack, `stale` for the end of
a series. Where an alert waits, it fires that much later than its condition holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from alert_rules import Alerted, Series, selector

A, B = Alerted(), Alerted(job="b")
JOB_A, JOB_B = Alerted(stage=""), Alerted(job="b", stage="")


def train(name: str, values: str, of: Alerted = A, attempt: int = 1, **more: str) -> Series:
    """A series of a trainer, as a PodMonitor labels it."""
    more |= {"attempt": str(attempt), "pod": f"{of.job}-{attempt}", "job": "team/pods"}
    return {f"rlhf_train_{name}{selector(of.labels | more)}": values}


def mirror(name: str, values: str, of: Alerted = A, **more: str) -> Series:
    """A series of the operator about a job, as a ServiceMonitor labels it."""
    more |= {"pod": "operator-0", "job": "operator"}
    return {f"rlhf_job_{name}{selector(of.labels | more)}": values}


def merged(*parts: Series) -> Series:
    return {name: values for part in parts for name, values in part.items()}


@dataclass(frozen=True)
class Case:
    """A history, and who is alerted in which minutes."""

    name: str
    series: Series
    firing: Mapping[Alerted, set[int]] = field(default_factory=dict)
    until: int = 20
    """The last minute that is looked at."""


def verdict_cases(rule: str) -> list[Case]:
    """Of the alerts that follow a verdict of the trainer; they wait for a minute."""

    def of_trainer(verdict: str, value: str, of: Alerted = A, attempt: int = 1) -> Series:
        return merged(
            train("health_verdict", verdict, of, attempt, rule=rule),
            train("health_value", value, of, attempt, rule=rule),
            train("health_threshold", "3x20", of, attempt, rule=rule),
        )

    def of_operator(verdict: str, value: str, of: Alerted = A, attempt: str = "1") -> Series:
        return merged(
            mirror("health_verdict", verdict, of, rule=rule, attempt=attempt),
            mirror("health_value", value, of, rule=rule, attempt=attempt),
        )

    other = "NegativeKL" if rule != "NegativeKL" else "KLAboveLimit"
    return [
        Case("fires, and ends", of_trainer("0x2 1x5 0x10", "1x2 9x17"), {A: set(range(4, 9))}),
        Case("holds", of_trainer("0x20", "1x20")),
        Case("beyond, but not in a row", of_trainer("0x20", "9x20")),
        Case("warm-up", train("health_value", "9x20", rule=rule)),
        Case("another rule", train("health_verdict", "1x20", rule=other)),
        Case(
            "NaN: an update has no value, and the verdict stands",
            of_trainer("0x2 1x17", "1x2 9x4 stale _x11"),
            {A: set(range(4, 21))},
        ),
        Case(
            "both are scraped: one alert",
            merged(of_trainer("0x2 1x17", "9x20"), of_operator("0x3 1x16", "9x20")),
            {A: set(range(4, 21))},
        ),
        Case(
            "gap at a stage change: that of the first stage stands as long as it is told",
            merged(
                of_trainer("1x4 stale", "9x4 stale"),
                of_operator("1x8 stale", "9x8 stale"),
                of_trainer("_x7 0x12", "_x7 1x12", Alerted(stage="sft")),
            ),
            {A: set(range(1, 9))},
        ),
        Case(
            "restart with a new attempt: the mirror bridges the gap",
            merged(
                of_trainer("1x4 stale", "9x4 stale"),
                of_operator("1x20", "9x20"),
                of_trainer("_x9 1x10", "_x9 9x10", attempt=2),
            ),
            {A: set(range(1, 21))},
        ),
        Case(
            "restart with a new attempt: it has mended",
            merged(
                of_trainer("1x4 stale", "9x4 stale"),
                of_operator("1x9 stale", "9x9 stale"),
                of_trainer("_x9 0x10", "_x9 1x10", attempt=2),
            ),
            {A: set(range(1, 9))},
        ),
        Case(
            "two jobs at once",
            merged(of_trainer("1x20", "9x20"), of_trainer("0x20", "1x20", B)),
            {A: set(range(1, 21))},
        ),
        Case(
            "ended by exit 42 before the next scrape: 15 minutes of the mirror alone",
            merged(
                of_trainer("0x1 stale", "1x1 stale"),
                of_operator("0x2 1x14 stale", "1x2 9x14 stale"),
            ),
            {A: set(range(4, 18))},
        ),
    ]


NONFINITE = [
    Case("counted", train("nonfinite_total", "0x3 2x16"), {A: set(range(5, 21))}),
    Case("none", merged(train("nonfinite_total", "0x20"), mirror("nonfinite_total", "0x20"))),
    Case(
        "a metric that is NaN is not what counts",
        merged(train("critic_loss", "NaN " * 20), train("nonfinite_total", "0x20")),
    ),
    Case("verdict", train("health_verdict", "0x3 1x16", rule="NonFinite"), {A: set(range(5, 21))}),
    Case(
        "ended by NaN before the next scrape: the count was still 0",
        merged(
            train("nonfinite_total", "0x1 stale"),
            train("health_verdict", "0x1 stale", rule="NonFinite"),
            mirror("nonfinite_total", "0x20"),
            mirror("health_verdict", "0x2 1x17", rule="NonFinite"),
        ),
        {A: set(range(4, 21))},
    ),
    Case(
        "a new attempt begins at 0",
        merged(
            train("nonfinite_total", "3x5 stale"), train("nonfinite_total", "_x6 0x13", attempt=2)
        ),
        {A: set(range(1, 6))},
    ),
    Case(
        "gap: counted by both, once",
        merged(train("nonfinite_total", "3x5 stale"), mirror("nonfinite_total", "3x20")),
        {A: set(range(1, 21))},
    ),
    Case(
        "two jobs at once",
        merged(train("nonfinite_total", "1x20"), train("nonfinite_total", "0x20", B)),
        {A: set(range(1, 21))},
    ),
]


def failed(values: str, reason: str, of: Alerted = JOB_A) -> Series:
    return mirror("condition", values, of, type="Failed", reason=reason)


FAILED = [
    Case("a running job", failed("0x20", "Running")),
    Case("fails", failed("_x3 1x15 stale", "Guardrail"), {JOB_A: set(range(3, 19))}),
    Case(
        "two jobs at once",
        merged(failed("1x20", "MaxRestarts"), failed("0x20", "Running", JOB_B)),
        {JOB_A: set(range(21))},
    ),
    Case("another condition", mirror("condition", "1x20", type="Suspended", reason="Guardrail")),
]

# A threshold of 1200 s, and a minute more.
STALLED = [
    Case("a step a minute", mirror("progress_timestamp_seconds", "0+60x40"), until=40),
    Case(
        "hangs at minute 5",
        mirror("progress_timestamp_seconds", "0+60x5 300x35"),
        {A: set(range(27, 41))},
        until=40,
    ),
    Case(
        "hangs, ends and leaves no series",
        mirror("progress_timestamp_seconds", "0x30 stale"),
        {A: set(range(22, 31))},
        until=40,
    ),
    Case(
        "restarted with a new attempt in time",
        mirror("progress_timestamp_seconds", "0x15 stale _x3 1200+60x20"),
        until=40,
    ),
    Case(
        "another leader tells it: the alert goes on",
        merged(
            mirror("progress_timestamp_seconds", "0x25 stale"),
            mirror("progress_timestamp_seconds", "_x25 0x15", container="operator-1"),
        ),
        {A: set(range(22, 41))},
        until=40,
    ),
    Case(
        "two stages at once",
        merged(
            mirror("progress_timestamp_seconds", "0x40"),
            mirror("progress_timestamp_seconds", "0+60x40", Alerted(stage="sft")),
        ),
        {A: set(range(22, 41))},
        until=40,
    ),
]

STORM = [
    Case("none", mirror("restarts_total", "0x90"), until=90),
    Case("two", mirror("restarts_total", "0x10 1x10 2x70"), until=90),
    Case(
        "three within an hour, and an hour later none",
        mirror("restarts_total", "0x9 1x9 2x9 3x60"),
        # The last sample with 0 is of minute 9, and an hour holds those after it.
        {A: set(range(30, 70))},
        until=90,
    ),
    Case("three, an hour between each", mirror("restarts_total", "0x60 1x60 2x60 3x60"), until=240),
    Case(
        "another replica leads in between",
        merged(
            mirror("restarts_total", "5x9 6x9 stale"),
            mirror("restarts_total", "_x25 8x60", container="operator-1"),
        ),
        {A: set(range(25, 70))},
        until=80,
    ),
    Case(
        "a job of the same name, made anew",
        mirror("restarts_total", "5x9 stale _x5 0x60"),
        until=75,
    ),
    Case(
        "two jobs at once",
        merged(mirror("restarts_total", "0x9 4x60"), mirror("restarts_total", "7x70", B)),
        {A: set(range(10, 70))},
        until=69,
    ),
]

PENDING = [
    Case("runs", mirror("progress_timestamp_seconds", "0+60x40"), until=40),
    Case(
        "waits from minute 2",
        mirror("pending_timestamp_seconds", "_x2 120x30 stale"),
        {A: set(range(19, 33))},
        until=40,
    ),
    Case(
        "each attempt waits, none for long",
        mirror("pending_timestamp_seconds", "0x10 stale 720x10 stale 1440x10"),
        until=33,
    ),
    Case(
        "two jobs at once",
        merged(
            mirror("pending_timestamp_seconds", "0x30"),
            mirror("pending_timestamp_seconds", "_x20 1260x10", B),
        ),
        {A: set(range(17, 31))},
        until=30,
    ),
]


def checkpoints(times: str, of: Alerted = A, attempt: int = 1, step: str = "0+1x300") -> Series:
    """A trainer's; the operator's would follow."""
    return merged(
        train("last_checkpoint_timestamp_seconds", times, of, attempt),
        train("step", step, of, attempt),
    )


# A threshold of 7200 s, and five minutes more; minute 126 is the first that fires.
CHECKPOINT = [
    Case(
        "every two hours",
        checkpoints("0x119 7200x119 14400x60"),
        until=290,
    ),
    Case("one, and no other", checkpoints("0x300"), {A: set(range(126, 200))}, until=199),
    Case(
        "none yet",
        train("step", "0+1x300"),
        until=200,
    ),
    Case(
        "by the mirror alone",
        merged(
            mirror("last_checkpoint_timestamp_seconds", "0x300"),
            mirror("progress_timestamp_seconds", "0+60x300"),
        ),
        {A: set(range(126, 200))},
        until=199,
    ),
    Case(
        "by the mirror, suspended at minute 131",
        merged(
            mirror("last_checkpoint_timestamp_seconds", "0x300"),
            mirror("progress_timestamp_seconds", "0+60x130 stale"),
        ),
        {A: set(range(126, 131))},
        until=199,
    ),
    Case(
        "resumed after a day: it has had no time yet",
        checkpoints("_x199 0x100", step="_x199 5+1x100"),
        until=299,
    ),
    Case(
        "restarted, and the mirror tells it meanwhile",
        merged(
            checkpoints("0x150 stale", step="0+1x150 stale"),
            mirror("last_checkpoint_timestamp_seconds", "0x300"),
            mirror("progress_timestamp_seconds", "0+60x300"),
            checkpoints("_x160 0x100", attempt=2, step="_x160 0+1x100"),
        ),
        {A: set(range(126, 200))},
        until=199,
    ),
    Case(
        "two jobs at once",
        merged(checkpoints("0x300"), checkpoints("0+60x300", B)),
        {A: set(range(126, 200))},
        until=199,
    ),
]

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
    Case("gone", leader("1x5 stale"), {OPS: set(range(11, 21))}),
    Case("never there", {}, {OPS: set(range(5, 21))}),
    Case("one elsewhere leads", leader("1x20", namespace="other"), {OPS: set(range(5, 21))}),
]


def passes(rate: int) -> Series:
    return operator("reconcile_duration_seconds_count", f"0+{rate}x30")


LAGGING = [
    Case("keeps up", merged(operator("queue_age_seconds", "0x30"), passes(60))),
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
        merged(operator("reconcile_errors_total", "0+40x30", reason="http-409"), passes(60)),
    ),
    Case("no pass at all", merged(operator("reconcile_errors_total", "0x30"), passes(0))),
]

CASES: dict[str, list[Case]] = {
    **{
        rule: verdict_cases(rule)
        for rule in ("CriticLossDiverging", "KLAboveLimit", "RewardCollapse")
    },
    "NonFinite": NONFINITE,
    "RLHFJobFailed": FAILED,
    "ProgressStalled": STALLED,
    "RestartStorm": STORM,
    "PendingTooLong": PENDING,
    "CheckpointStale": CHECKPOINT,
    "OperatorDown": DOWN,
    "OperatorLagging": LAGGING,
}
