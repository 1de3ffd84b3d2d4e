"""Histories for the alerts on jobs and their stages, and when they are to fire."""

from alert_histories import JOB_A, JOB_B, A, B, Case, merged, mirror, no_numbers, train
from alert_rules import Alerted, Series

SFT = Alerted(stage="sft")


def failed(values: str, reason: str, of: Alerted = A, **more: str) -> Series:
    return mirror("condition", values, of, type="Failed", reason=reason, **more)


FAILED = [
    Case("a running job", failed("0x20", "Running", JOB_A)),
    Case("fails", failed("_x3 1x15 stale", "Guardrail"), {A: set(range(3, 19))}),
    Case("ended by NaN", failed("_x3 1x15 stale", "NonFinite"), {A: set(range(3, 19))}),
    Case("NaN is no failure", failed(no_numbers(21), "Running", JOB_A)),
    Case(
        "stage change, and a restart with a new attempt: no failure",
        merged(
            failed("0x20", "Running", JOB_A),
            mirror("restarts_total", "0x20", SFT),
            mirror("restarts_total", "_x5 0x5 1x9"),
        ),
    ),
    Case(
        "two jobs at once",
        merged(failed("1x20", "MaxRestarts"), failed("0x20", "Running", JOB_B)),
        {A: set(range(21))},
    ),
    Case("another condition", mirror("condition", "1x20", type="Suspended", reason="Guardrail")),
    Case(
        "another leader tells it: the alert goes on",
        merged(
            failed("0x2 1x6 stale", "Crashed"), failed("_x9 1x11", "Crashed", container="other")
        ),
        {A: set(range(3, 21))},
    ),
    Case(
        "its series are gone for minutes, and back",
        failed("1x5 stale _x4 1x9", "DataError"),
        {A: {*range(6), *range(11, 21)}},
    ),
    Case(
        "deleted, and applied anew",
        merged(failed("1x5 stale", "DataError"), failed("_x8 0x12", "Running", JOB_A)),
        {A: set(range(6))},
    ),
]

# A threshold of 1200 s, and a minute more.
STALLED = [
    Case("a step a minute", mirror("progress_timestamp_seconds", "0+60x40"), until=40),
    Case("NaN", mirror("progress_timestamp_seconds", no_numbers(41)), until=40),
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
            mirror("progress_timestamp_seconds", "0+60x40", SFT),
        ),
        {A: set(range(22, 41))},
        until=40,
    ),
    Case(
        "stage change: the time of the first is not the second's",
        merged(
            mirror("progress_timestamp_seconds", "0x15 stale", SFT),
            mirror("progress_timestamp_seconds", "_x17 1020x23"),
        ),
        {A: set(range(39, 41))},
        until=40,
    ),
    Case(
        "two jobs at once",
        merged(
            mirror("progress_timestamp_seconds", "0x40"),
            mirror("progress_timestamp_seconds", "0+60x20 1200x19", B),
        ),
        {A: set(range(22, 41))},
        until=40,
    ),
]

STORM = [
    Case("none", mirror("restarts_total", "0x90"), until=90),
    Case("two", mirror("restarts_total", "0x10 1x10 2x70"), until=90),
    Case("two, and NaN", mirror("restarts_total", f"0x10 {no_numbers(9)} 2x70"), until=90),
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
        "stage change: the second begins at 0, and the first's are told on",
        merged(mirror("restarts_total", "4x90", SFT), mirror("restarts_total", "_x10 0x9 2x70")),
        until=90,
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
    Case("NaN", mirror("pending_timestamp_seconds", no_numbers(41)), until=40),
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
        "stage change: each stage waits by itself",
        merged(
            mirror("pending_timestamp_seconds", "0x10 stale", SFT),
            mirror("pending_timestamp_seconds", "_x12 720x20 stale"),
        ),
        {A: set(range(29, 33))},
        until=40,
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
    Case("NaN", checkpoints(no_numbers(200)), until=199),
    Case("one, and no other", checkpoints("0x300"), {A: set(range(126, 200))}, until=199),
    # Minute 120 is the first of which one knows that it ran a threshold ago.
    Case("none yet, and not for long", train("step", "0+1x300"), until=124),
    Case("none yet", train("step", "0+1x300"), {A: set(range(125, 200))}, until=199),
    Case(
        "none yet, by the mirror alone",
        mirror("progress_timestamp_seconds", "0+60x300"),
        {A: set(range(125, 200))},
        until=199,
    ),
    Case(
        "none until minute 140",
        merged(
            train("step", "0+1x300"), train("last_checkpoint_timestamp_seconds", "_x140 8400x60")
        ),
        {A: set(range(125, 140))},
        until=199,
    ),
    Case(
        "stage change: the first is done, and told for as long as the second runs",
        merged(
            mirror("last_checkpoint_timestamp_seconds", "0x300", SFT),
            mirror("progress_timestamp_seconds", "0+60x60 stale", SFT),
            train("step", "0+1x60 stale", SFT),
            checkpoints("_x62 7200x118 14400x120", step="_x62 0+1x238"),
        ),
        until=299,
    ),
    Case(
        "stage change: that of the first is none of the second",
        merged(
            mirror("last_checkpoint_timestamp_seconds", "0+60x300", SFT),
            train("step", "_x20 0+1x280"),
        ),
        {A: set(range(145, 200))},
        until=199,
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
