"""From what a run tells to the figures of `ppo_step.py` and `supervised.py`. Pure."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import dropwhile
from statistics import fmean
from typing import Any, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from rlhf_api.metrics import LabelledMetric, Metric, MetricLabel, Phase, metric_name

SMOOTHED = 10
"""Updates over which score and KL are averaged before they are compared."""

LENGTH_TOLERANCE = 0.05
"""By how much mean lengths may differ where speeds are compared."""

SHARES = {
    "share_rollout": Phase.ROLLOUT,
    "share_scoring": Phase.SCORING,
    "share_training": Phase.LEARNING,
}


class Update(NamedTuple):
    """One update of PPO: seconds since the first began, and means over its responses."""

    seconds: float
    score: float
    kl: float
    response_tokens: float


class Pace(NamedTuple):
    """One step of SFT or of a reward model: seconds and rows since the first began."""

    seconds: float
    rows: float


class PhaseSeconds(NamedTuple):
    """What a rank had spent on each phase when it was asked, after so many steps."""

    step: int
    seconds: Mapping[str, float]


class Events(NamedTuple):
    """What `events.jsonl` tells of a run from its start."""

    steps: Sequence[Mapping[str, Any]]
    kept_rows: int

    @classmethod
    def parse(cls, lines: Iterable[str]) -> "Events":
        """Raises ValueError where no step was told."""
        events = [json.loads(line) for line in lines]
        steps = [event for event in events if event["type"] == "step"]
        if not steps:
            raise ValueError("events.jsonl tells of no step: the run has not begun to learn")
        start = next(event for event in events if event["type"] == "start")
        return cls(steps, start["rows"]["dataset"]["kept"])

    def updates(self) -> list[Update]:
        """Those of PPO."""
        told = (Metric.REWARD, Metric.KL, Metric.RESPONSE_TOKENS)
        return [
            Update(event["time"] - self._began, *(event["metrics"][metric] for metric in told))
            for event in self.steps
        ]

    def paces(self) -> list[Pace]:
        """Those of SFT and reward model: a packed sequence holds several rows."""
        return [
            Pace(event["time"] - self._began, event["epoch"] * self.kept_rows)
            for event in self.steps
        ]

    @property
    def _began(self) -> float:
        """When the first step began: what comes before it is start-up."""
        first = self.steps[0]
        return float(first["time"] - first["metrics"][Metric.STEP_SECONDS])


def phase_seconds(exposition: str) -> PhaseSeconds | None:
    """What an endpoint of metrics tells; None before the first step."""
    step, seconds = None, {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == metric_name(Metric.STEP):
                step = int(sample.value)
            if sample.name == metric_name(LabelledMetric.PHASE_SECONDS):
                seconds[sample.labels[MetricLabel.PHASE]] = sample.value
    return PhaseSeconds(step, seconds) if step else None


def shares(told: Sequence[PhaseSeconds]) -> dict[str, float]:
    """Of the time of whole updates behind the first: share of rollout, scoring and learning.

    The three add up to 1; batches are taken and metrics written in no time beside them.
    """
    warm = list(dropwhile(lambda each: each.step < 1, told))
    if len(warm) < 2 or warm[0].step == warm[-1].step:
        raise ValueError("the endpoint was read at fewer than two updates; ask for more --updates")
    spent = {
        name: warm[-1].seconds[phase] - warm[0].seconds[phase] for name, phase in SHARES.items()
    }
    return {name: seconds / sum(spent.values()) for name, seconds in spent.items()}


def samples_per_second(updates: Sequence[Update], batch_size: int) -> float:
    """Speed of all updates but the first, which warms up."""
    spent = updates[-1].seconds - updates[0].seconds
    return (len(updates) - 1) * batch_size / spent


def rows_per_second(paces: Sequence[Pace], warm_up: int) -> float:
    """Speed of all steps but the first `warm_up`."""
    first, last = paces[warm_up - 1], paces[-1]
    return (last.rows - first.rows) / (last.seconds - first.seconds)


def mean_response_tokens(updates: Sequence[Update]) -> float:
    """Over the same updates as `samples_per_second`."""
    return fmean(update.response_tokens for update in updates[1:])


def seconds_to_score(ours: Sequence[Update], peer: Sequence[Update]) -> float | None:
    """Seconds after which our mean score is what the peer has at its end, at no more KL.

    None where that is never so. Means are over SMOOTHED updates.
    """
    goal = _mean_of_last(peer)
    for end in range(SMOOTHED, len(ours) + 1):
        reached = _mean_of_last(ours[:end])
        if reached.score >= goal.score and reached.kl <= goal.kl:
            return reached.seconds
    return None


def _mean_of_last(updates: Sequence[Update]) -> Update:
    """Means over the last updates, at the time of the last one."""
    last = updates[-SMOOTHED:]
    means = (fmean(column) for column in list(zip(*last, strict=True))[1:])
    return Update(updates[-1].seconds, *means)


def ppo_figures(
    ours: Sequence[Update],
    told: Sequence[PhaseSeconds],
    batch_size: int,
    peer: Sequence[Update] | None,
) -> dict[str, float | None]:
    """The figures of `ppo_step.py`."""
    speed = samples_per_second(ours, batch_size)
    found: dict[str, float | None] = {
        "samples_per_s": speed,
        **shares(told),
        "mean_response_tokens": mean_response_tokens(ours),
    }
    if peer is not None:
        speed_of_peer = samples_per_second(peer, batch_size)
        found |= {
            "speedup_vs_trl": speed / speed_of_peer,
            "samples_per_s_trl": speed_of_peer,
            "mean_response_tokens_trl": mean_response_tokens(peer),
            "seconds_to_trl_score": seconds_to_score(ours, peer),
            "seconds_trl": peer[-1].seconds,
            "score_trl": _mean_of_last(peer).score,
            "kl_trl": _mean_of_last(peer).kl,
            "score": _mean_of_last(ours).score,
            "kl": _mean_of_last(ours).kl,
        }
    return found


def unequal_lengths(found: Mapping[str, float | None]) -> str | None:
    """Why speeds cannot be compared; None if they can, or there is no peer."""
    ours, peer = found["mean_response_tokens"], found.get("mean_response_tokens_trl")
    if ours is None or peer is None or abs(ours / peer - 1) <= LENGTH_TOLERANCE:
        return None
    return (
        f"mean_response_tokens is {ours:.1f} here and {peer:.1f} in TRL, more than "
        f"{LENGTH_TOLERANCE:.0%} apart: speedup_vs_trl compares different work"
    )


def rounded(found: Mapping[str, float | None]) -> dict[str, float | None]:
    """The figures as they are written down."""
    return {name: None if value is None else round(value, 4) for name, value in found.items()}


def table(found: Mapping[str, float | None]) -> str:
    """The figures as text, a line each."""
    width = max(map(len, found))
    return "".join(
        f"{name:<{width}}  {'never' if value is None else f'{value:.4g}'}\n"
        for name, value in found.items()
    )
