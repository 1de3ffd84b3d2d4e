"""What is to be done when training goes wrong: rules, actions, thresholds, and verdicts on them."""

from pydantic import Field

from rlhf_api.contract import Contract
from rlhf_api.names import GuardrailAction, GuardrailRule

EXPLAINED_BY_A_SOUND_CRITIC = 0.5
"""Explained variance from which on no critic diverges, whatever its loss: for the trainer's rule
and the chart's alert alike."""


class Guardrail(Contract):
    """A rule over the training metrics, and what follows when it is broken."""

    rule: GuardrailRule
    """What is watched."""
    action: GuardrailAction | None = None
    """Observe tells, Suspend saves (finite numbers only) and stops until resumed, Fail does so and
    fails the job; Fail for NonFinite and Observe for all others when left out."""
    threshold: float | None = Field(None, ge=-1e9, le=1e9)
    """Limit of the rule's quantity; the rule's own default when left out."""
    warmup_updates: int | None = Field(None, ge=0, le=1_000_000)
    """Updates at the start that are not judged; the rule's own default when left out."""
    consecutive_updates: int | None = Field(None, ge=1, le=1_000_000)
    """Updates in a row that must break the threshold; the rule's own default when left out."""


class HealthVerdict(Contract):
    """A rule that is broken."""

    rule: GuardrailRule
    """The rule."""
    action: GuardrailAction
    """What follows."""
    step: int = Field(ge=0)
    """Update at which it was found."""
    value: float | None = None
    """The rule's quantity then; left out where it is not finite."""
    threshold: float
    """The threshold that was in force."""
