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

SECONDS = "seconds"
"""How long a full run took, on two cores."""

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
}


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
    Goal("none.explained_variance_max", "<", 0.5),
    Goal("none.critic_loss_growth_min", ">=", 3.0),
    Goal(SECONDS, "<=", 1800.0),
)
"""What the defaults must reach on every seed, that without remedies the critic diverges on every
seed, and the time.

A seed on which `none` fares well would say nothing about the defaults.
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


def loss_over_mean(course: Course) -> float:
    """Critic loss over that of the mean return as every value, both of the last tenth."""
    return last(course["critic_loss"]) / last(course["critic_loss_of_mean"])


def figures(runs: Runs, *, compared: bool = True) -> dict[str, float | None]:
    """All figures by flat names, such as `default.explained_variance_min`.

    `_min` and `_max` are over seeds, the others are means over seeds;
    `critic_loss_diverging_from_min` is over the seeds with a broken rule, None where it is none,
    and `critic_loss_diverging_seeds` is their number. Shares of the best score say nothing where
    not all variants ran: without `compared` they are left out.
    """
    seeds = {seed for courses in runs.values() for seed in courses}
    best = {seed: max(last(courses[seed]["reward"]) for courses in runs.values()) for seed in seeds}
    found: dict[str, float | None] = {}
    for variant, courses in runs.items():
        shares = [last(course["reward"]) / best[seed] for seed, course in courses.items()]
        every = list(courses.values())
        explained = [last(course["explained_variance"]) for course in every]
        growths = list(map(critic_loss_growth, every))
        broken = list(filter(None, map(diverging_from, every)))
        own: dict[str, float | None] = {
            "explained_variance_min": min(explained),
            "explained_variance_max": max(explained),
            "best_score_share_min": min(shares),
            "critic_loss_growth_min": min(growths),
            "critic_loss_growth_max": max(growths),
            "critic_loss_over_mean": fmean(map(loss_over_mean, every)),
            "return_scale_growth": fmean(map(return_scale_growth, every)),
            "kl_end": fmean(last(course["kl"]) for course in every),
            f"{BROKEN}_from_min": min(broken, default=None),
            f"{BROKEN}_seeds": float(len(broken)),
        }
        if not compared:
            del own["best_score_share_min"]
        found |= {f"{variant}.{name}": value for name, value in own.items()}
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
        + "".join(f"{cell(found, f'{variant}.{name}'):>{len(name) + 2}}" for name in columns)
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


def not_measured(found: Figures) -> list[str]:
    """The goals that nothing is known of, each in a sentence."""
    return [
        f"{goal.figure} is not measured, the goal {goal.comparison} {goal.limit}"
        for goal in GOALS
        if found.get(goal.figure) is None
    ]


def cell(found: Figures, name: str, form: str = ".4g") -> str:
    """A figure as text; None stands for a rule that is never broken."""
    if name not in found:
        return "not measured"
    value = found[name]
    return "never" if value is None else f"{value:{form}}"


def _tenth(values: Sequence[float]) -> int:
    return max(1, round(SHARE * len(values)))
