"""From measurements to figures, and the figures beside their goals. Pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Figures = dict[str, float | int | str]

SLOW_RATE = 20.0
"""Up to this many jobs a second the goals are those of an operator that keeps up with ease."""


@dataclass(frozen=True)
class Goal:
    """What a figure should not exceed.

    Attributes:
        unit: of the figure, as people read it.
        limit: the highest good value; None where the figure only explains others.
    """

    unit: str
    limit: float | None = None


def goals(rate: float) -> dict[str, Goal]:
    """The figures that people look at, in their order, for jobs created at `rate` a second."""
    slow = rate <= SLOW_RATE
    return {
        "applied_per_s": Goal("jobs/s"),
        "floor_create_s": Goal("s"),
        "apply_cpu_operator": Goal("cores"),
        "apply_cpu_kube_apiserver": Goal("cores"),
        "apply_to_child_p50_s": Goal("s", 0.020 if slow else None),
        "apply_to_child_p99_s": Goal("s", 0.060 if slow else 0.5),
        "writes_per_job": Goal("writes", 18),
        "progress_writes_per_job": Goal("writes"),
        "writes_at_rest": Goal("writes", 0),
        "reads_at_rest_per_s": Goal("reads/s", 1),
        "cpu_at_rest": Goal("cores", 0.003),
        "rss_mb": Goal("MB", 130),
        "steady_after_restart_s": Goal("s", 3),
        "restart_last_child_s": Goal("s"),
        "running_reads_per_s": Goal("reads/s", 1),
        "running_writes_per_s": Goal("writes/s"),
        "running_scrapes_per_s": Goal("scrapes/s"),
        "running_cpu": Goal("cores"),
        "running_rss_mb": Goal("MB"),
        "progress_age_p50_s": Goal("s"),
        "progress_age_p99_s": Goal("s", 60),
        "progress_age_max_s": Goal("s", 60),
        "new_job_among_running_s": Goal("s", 0.5),
    }


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed.

    Raises:
        ValueError: there are no values, or `share` is not above 0 and at most 1.
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("percentile of no values; nothing was measured")
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; give one above 0 and at most 1")
    return ordered[math.ceil(share * len(ordered)) - 1]


def rate_of(times: Iterable[float]) -> float:
    """How many things happened in a second, by the times at which they did; 0 for one alone."""
    ordered = sorted(times)
    span = ordered[-1] - ordered[0] if ordered else 0.0
    return (len(ordered) - 1) / span if span > 0 else 0.0


def spread(name: str, values: Sequence[float]) -> Figures:
    """Median and 99th percentile of times in seconds."""
    return {
        f"{name}_p50_s": round(percentile(values, 0.5), 6),
        f"{name}_p99_s": round(percentile(values, 0.99), 6),
    }


def table(figures: Mapping[str, float | int | str], rate: float) -> str:
    """The figures that were measured, with their goals, a line each."""
    lines = [f"{'figure':<26}{'value':>12}  {'unit':<11}{'goal':>10}"]
    for key, goal in goals(rate).items():
        value = figures.get(key)
        if not isinstance(value, int | float):
            continue
        limit = "" if goal.limit is None else f"<= {goal.limit:g}"
        missed = goal.limit is not None and value > goal.limit
        verdict = "  missed" if missed else ""
        lines.append(f"{key:<26}{value:>12.4g}  {goal.unit:<11}{limit:>10}{verdict}")
    return "\n".join(lines) + "\n"
