"""How far a stage is, and its metrics, as status tells them. Pure; called by `stages`."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_api.metrics import STATUS_METRICS
from rlhf_api.v1alpha1 import Progress
from rlhf_api.v1alpha1.status import MAX_COUNT


def progress_of(
    old: Progress | None, step: int, total_steps: int, eta_seconds: float | None
) -> Progress:
    """What status says of how far a stage is.

    Args:
        old: what it says now.
        step: steps done.
        total_steps: steps in all; 0 while not known.
        eta_seconds: estimated seconds to the end; None while not known.
    """
    known = eta_seconds is not None and math.isfinite(eta_seconds) and eta_seconds >= 0
    new = Progress(
        step=step,
        total_steps=total_steps,
        percent=min(100, 100 * step // total_steps) if total_steps else 0,
        eta_seconds=min(MAX_COUNT, round(eta_seconds or 0)) if known else None,
    )
    return new if old is None else old.model_copy(update=dict(_own_fields(new)))


def _own_fields(progress: Progress) -> Iterator[tuple[str, Any]]:
    """The fields that this release knows; others stay as a newer one left them."""
    for name in Progress.model_fields:
        yield name, getattr(progress, name)


def status_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of the metrics that status shows."""
    found = {metric.value: metrics.get(metric) for metric in STATUS_METRICS}
    return {name: value for name, value in found.items() if value is not None}
