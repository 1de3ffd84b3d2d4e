"""How the histories of alerts are written: series of trainers and of the operator, and cases.

`1x4` is promtool's for a 1 and four more, `_x4` for four samples that lack, `stale` for the end of
a series. Where an alert waits, it fires that much later than its condition holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from alert_rules import Alerted, Series, selector

A, B = Alerted(), Alerted(job="b")
JOB_A, JOB_B = Alerted(stage=""), Alerted(job="b", stage="")


def no_numbers(samples: int) -> str:
    """So many samples of NaN, for which promtool has no short form."""
    return " ".join(["NaN"] * samples)


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
