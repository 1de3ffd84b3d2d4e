"""From the metrics of each run to the figures of `critic_stability.py`. Pure."""

import operator
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

Course = Mapping[str, Sequence[float]]
"""One run: by name of a metric, its value after each update."""

Runs = Mapping[str, Mapping[int, Course]]
"""All runs, by variant and seed."""

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


def figures(runs: Runs) -> dict[str, float]:
    """All figures by flat names, such as `default.explained_variance_min`.

    `_min` and `_max` are over seeds, the others are means over seeds.
    """
    seeds = {seed for courses in runs.values() for seed in courses}
    best = {seed: max(last(courses[seed]["reward"]) for courses in runs.values()) for seed in seeds}
    found: dict[str, float] = {}
    for variant, courses in runs.items():
        shares = [last(course["reward"]) / best[seed] for seed, course in courses.items()]
        every = list(courses.values())
        found |= {
            f"{variant}.explained_variance_min": min(last(c["explained_variance"]) for c in every),
            f"{variant}.best_score_share_min": min(shares),
            f"{variant}.critic_loss_growth_max": max(map(critic_loss_growth, every)),
            f"{variant}.return_scale_growth": fmean(map(return_scale_growth, every)),
            f"{variant}.kl_end": fmean(last(course["kl"]) for course in every),
        }
    return found


def rounded(found: Mapping[str, float]) -> dict[str, float]:
    """The figures as they are written down, to four decimals; goals are judged before that."""
    return {name: round(value, 4) for name, value in found.items()}


def table(found: Mapping[str, float], variants: Sequence[str]) -> str:
    """The figures as text, a line a variant."""
    columns = (
        "explained_variance_min",
        "best_score_share_min",
        "critic_loss_growth_max",
        "return_scale_growth",
        "kl_end",
    )
    lines = [f"{'variant':<16}" + "".join(f"{name:>24}" for name in columns)]
    lines += [
        f"{variant:<16}" + "".join(f"{found[f'{variant}.{name}']:>24.4g}" for name in columns)
        for variant in variants
    ]
    return "\n".join(lines) + "\n"


def missed(found: Mapping[str, float]) -> list[str]:
    """The goals that are not reached, each in a sentence."""
    return [
        f"{goal.figure} is {found[goal.figure]}, the goal {goal.comparison} {goal.limit}"
        for goal in GOALS
        if goal.figure in found and not goal.holds(found[goal.figure])
    ]


def _tenth(values: Sequence[float]) -> int:
    return max(1, round(SHARE * len(values)))
