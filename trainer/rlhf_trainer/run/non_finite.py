"""What ends a stage for good: a NaN or an infinity among its metrics and weights.

Called by `loop`, which asks all ranks, tells and raises.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailAction, GuardrailRule, StageName
from rlhf_api.v1alpha1 import HealthVerdict
from rlhf_trainer.errors import FINITE_REMEDY, NonFiniteError
from rlhf_trainer.run.readings import Reading, fired_verdicts

_NAMED = 8


def spoilt_metrics(metrics: Mapping[Metric, float]) -> list[str]:
    """Names of the metrics that are NaN or infinite."""
    return [metric.value for metric, value in metrics.items() if not math.isfinite(value)]


def non_finite_reading(spoilt: Sequence[str]) -> Reading:
    """What the end of the stage is told as; no guardrail's action or count changes it."""
    return Reading(
        rule=GuardrailRule.NON_FINITE,
        action=GuardrailAction.FAIL,
        value=float(len(spoilt)),
        threshold=0.0,
        broken=True,
        changed=True,
        judged=True,
        evidence=f"NaN or infinite: {_listed(spoilt)}; it ends the stage before every guardrail",
    )


def non_finite_error(
    stage: StageName,
    spoilt: Sequence[str],
    step: int,
    last_checkpoint_step: int | None,
    verdicts: Iterable[HealthVerdict],
) -> NonFiniteError:
    """The error that says what is NaN or infinite at a step.

    Args:
        stage: where it happened.
        spoilt: names of metrics and weights, at least one.
        step: the step.
        last_checkpoint_step: step of the newest complete checkpoint; None if there is none.
        verdicts: rules of health that are broken now.
    """
    kept = (
        "there is no checkpoint"
        if last_checkpoint_step is None
        else f"the last checkpoint is of step {last_checkpoint_step}"
    )
    (verdict,) = fired_verdicts([non_finite_reading(spoilt)], step)
    others = (each for each in verdicts if each.rule != verdict.rule)
    return NonFiniteError(
        f"spec.stages.{stage}: NaN or infinite at step {step}: "
        f"{_listed(spoilt)}; {kept}, and nothing after it is kept; {FINITE_REMEDY}",
        verdicts=(verdict, *others),
        step=step,
        last_checkpoint_step=last_checkpoint_step,
    )


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
