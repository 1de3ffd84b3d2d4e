"""What a rule of health said at an update, as a stage tells it.

Made by `ppo.health`, told by the reporter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhf_api.metrics import LabelledMetric
from rlhf_api.names import GuardrailAction, GuardrailRule
from rlhf_api.v1alpha1 import HealthVerdict


@dataclass(frozen=True)
class Reading:
    """One rule at one update.

    Attributes:
        rule: the rule.
        action: what follows when it is broken.
        value: its quantity, also during the warm-up; None where the update has none.
        threshold: the threshold in force.
        broken: the verdict, which stays until as many updates in a row speak against it as the
            rule asks for.
        changed: whether this update changed the verdict.
        judged: whether there is a verdict: the rule's warm-up is over.
        evidence: the numbers behind it in a sentence; empty where there is no value.
        start: of the first metric whose start the quantity needs; None where there is none.
        best: best level of the metric whose level it needs; None where there is none.
    """

    rule: GuardrailRule
    action: GuardrailAction
    value: float | None
    threshold: float
    broken: bool
    changed: bool
    judged: bool
    evidence: str
    start: float | None = None
    best: float | None = None


def fired_verdicts(readings: Sequence[Reading], step: int) -> list[HealthVerdict]:
    """Of the rules that the update `step` broke and whose window has started anew since."""
    return [
        HealthVerdict(
            rule=each.rule,
            action=each.action,
            step=step,
            value=each.value,
            threshold=each.threshold,
        )
        for each in readings
        if each.broken and each.action != GuardrailAction.OBSERVE and each.value is not None
    ]


def series_of(readings: Sequence[Reading]) -> dict[LabelledMetric, dict[str, float]]:
    """What Prometheus is served of them: each family by rule, where a reading has its number."""

    def where_any(values: Callable[[Reading], float | None]) -> dict[str, float]:
        numbers = {each.rule.value: values(each) for each in readings}
        return {rule: value for rule, value in numbers.items() if value is not None}

    return {
        LabelledMetric.HEALTH_VALUE: where_any(lambda each: each.value),
        LabelledMetric.HEALTH_START: where_any(lambda each: each.start),
        LabelledMetric.HEALTH_BEST: where_any(lambda each: each.best),
        LabelledMetric.HEALTH_THRESHOLD: {each.rule.value: each.threshold for each in readings},
        # None during the warm-up, so that an alert knows which values count.
        LabelledMetric.HEALTH_VERDICT: where_any(
            lambda each: float(each.broken) if each.judged else None
        ),
    }
