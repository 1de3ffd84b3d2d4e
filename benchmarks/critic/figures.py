"""From the metrics of each run to the figures of `critic_stability.py`. Pure."""

import operator
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

Course = Mapping[str, Sequence[float]]
"""One run: by name of a metric, or of BROKEN, its value after each update."""

Runs = Mapping[str, Mapping[int, Course]]
"""All runs, by variant and seed."""

Figures = Mapping[str, float | None]
"""By flat names, such as `default.explained_variance_min`."""

BROKEN = "critic_loss_diverging"
"""1 after updates at which the guardrail CriticLossDiverging is broken, else 0."""

SHARE = 0.1
FIRST_UPDATES = 10

GOAL_SEEDS = 5
"""Goals are judged over so many seeds or more."""

COMPARISONS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<": operator.lt}


class Goal(NamedTuple):
    """What a figure has to be, such as `default.explained_variance_min >= 0.5`."""

    figure: str
    comparison: str
    limit: float

    def holds(self, value: float) -> bool:
        """Whether `value` reaches the goal; NaN never does."""
        return COMPARISONS[self.comparison](value, self.limit)


GOALS = (
    Goal("default.explained_variance_min", ">=", 0.5),
    Goal("default.best_score_share_min", ">=", 0.98),
    Goal("none.explained_variance_min", "<", 0.5),
    Goal("none.critic_loss_growth_max", ">=", 3.0),
)
"""What the defaults must reach on every seed, and that without remedies the critic diverges.

A task on which `none` fares well would say nothing about the defaults.
"""


def first(values: Sequence[float]) -> float:
    """Mean over the first tenth."""
    return fmean(values[: _tenth(values)])


def last(values: Sequence[float]) -> float:
    """Mean over the last tenth."""
    return fmean(values[-_tenth(values) :])


def critic_loss_growth(course: Course) -> float:
    """The peak of the critic loss over its mean in the first updates."""
    losses = course["critic_loss"]
    return max(losses) / fmean(losses[:FIRST_UPDATES])


def return_scale_growth(course: Course) -> float:
    """Mean |return| of the last tenth over that of the first."""
    scale = course["returns_abs_mean"]
    return last(scale) / first(scale)


def diverging_from(course: Course) -> int | None:
    """The first update, from 1, at which CriticLossDiverging is broken; None where it never is."""
    return next((update for update, broken in enumerate(course[BROKEN], 1) if broken), None)


def figures(runs: Runs) -> dict[str, float | None]:
    """All figures by flat names, such as `default.explained_variance_min`.

    `_min` and `_max` are over seeds, the others are means over seeds;
    `critic_loss_diverging_from_min` is over the seeds with a broken rule, None where it is none.
    """
    seeds = {seed for courses in runs.values() for seed in courses}
    best = {seed: max(last(courses[seed]["reward"]) for courses in runs.values()) for seed in seeds}
    found: dict[str, float | None] = {}
    for variant, courses in runs.items():
        shares = [last(course["reward"]) / best[seed] for seed, course in courses.items()]
        every = list(courses.values())
        found |= {
            f"{variant}.explained_variance_min": min(last(c["explained_variance"]) for c in every),
            f"{variant}.best_score_share_min": min(shares),
            f"{variant}.critic_loss_growth_max": max(map(critic_loss_growth, every)),
            f"{variant}.return_scale_growth": fmean(map(return_scale_growth, every)),
            f"{variant}.kl_end": fmean(last(course["kl"]) for course in every),
            f"{variant}.{BROKEN}_from_min": min(
                filter(None, map(diverging_from, every)), default=None
            ),
        }
    return found


def rounded(found: Figures) -> dict[str, float | None]:
    """The figures as they are written down, to four decimals; goals are judged before that."""
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def table(found: Figures, variants: Sequence[str]) -> str:
    """The figures as text, a line a variant."""
    columns = (
        "explained_variance_min",
        "best_score_share_min",
        "critic_loss_growth_max",
        "return_scale_growth",
        "kl_end",
        f"{BROKEN}_from_min",
    )
    lines = [f"{'variant':<16}" + "".join(f"{name:>{len(name) + 2}}" for name in columns)]
    lines += [
        f"{variant:<16}"
        + "".join(f"{_cell(found[f'{variant}.{name}']):>{len(name) + 2}}" for name in columns)
        for variant in variants
    ]
    return "\n".join(lines) + "\n"


def missed(found: Figures) -> list[str]:
    """The goals that are not reached, each in a sentence."""
    judged = ((goal, found.get(goal.figure)) for goal in GOALS)
    return [
        f"{goal.figure} is {value}, the goal {goal.comparison} {goal.limit}"
        for goal, value in judged
        if value is not None and not goal.holds(value)
    ]


def _cell(value: float | None) -> str:
    return "never" if value is None else f"{value:.4g}"


def _tenth(values: Sequence[float]) -> int:
    return max(1, round(SHARE * len(values)))
