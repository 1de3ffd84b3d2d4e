"""Histories for the alerts that carry the name of a guardrail's rule, and when they are to fire."""

from alert_histories import A, B, Case, merged, mirror, train
from alert_rules import Alerted, Series


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
            "NaN: a value that is none, and the verdict stands",
            of_trainer("0x2 1x17", "1x2 NaN " + "NaN " * 17),
            {A: set(range(4, 21))},
        ),
        Case(
            "neither value nor threshold is told: the verdict stands",
            mirror("health_verdict", "0x2 1x17", rule=rule, attempt="1"),
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
        "gap at a stage change: the second stage begins at 0",
        merged(
            train("nonfinite_total", "3x5 stale", Alerted(stage="sft")),
            train("nonfinite_total", "_x7 0x13"),
        ),
        {Alerted(stage="sft"): set(range(1, 6))},
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
