"""Whether PPO training goes well: verdicts on the history of its metrics, update by update.

Called by the PPO stage, which tells the readings and obeys what fired. Pure: numbers in, verdicts
out; the same numbers give the same verdicts on every rank. The rules stand in `health_rules`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from statistics import fmean, median
from typing import Any

from rlhf_api.metrics import Metric
from rlhf_api.names import GuardrailAction, GuardrailRule
from rlhf_api.v1alpha1 import Guardrail, HealthVerdict
from rlhf_trainer.ppo.health_rules import (
    HEALTH_RULES,
    START_METRICS,
    START_UPDATES,
    HealthRule,
    Numbers,
    Past,
)
from rlhf_trainer.run.readings import Reading


@dataclass(frozen=True)
class Judgement:
    """What one update says.

    Attributes:
        readings: of all rules, in the order of `GuardrailRule`.
        verdicts: of the broken rules; those whose action ends the attempt first, Fail before
            Suspend.
        metrics: what the update is to tell beside its own metrics: the starts of `START_METRICS`
            that are known.
    """

    readings: tuple[Reading, ...]
    verdicts: tuple[HealthVerdict, ...]
    metrics: dict[Metric, float]

    @property
    def fired(self) -> Reading | None:
        """The reading whose action ends the attempt; None if training goes on."""
        if not self.verdicts or self.verdicts[0].action == GuardrailAction.OBSERVE:
            return None
        first = self.verdicts[0].rule
        return next(reading for reading in self.readings if reading.rule == first)

    @property
    def spoilt(self) -> bool:
        """Whether what was learned must not be kept: some of it is no number, and that matters."""
        return any(
            reading.rule == GuardrailRule.NON_FINITE
            and bool(reading.value)
            and reading.action != GuardrailAction.OBSERVE
            for reading in self.readings
        )


@dataclass(frozen=True)
class Fired:
    """A rule that ended the attempt.

    Attributes:
        verdict: as it was told.
        evidence: the numbers behind it in a sentence.
    """

    verdict: HealthVerdict
    evidence: str


_SETTINGS = ("action", "threshold", "warmup", "consecutive")
"""What a guardrail may set, as `HealthRule` names it."""


@dataclass
class _Window:
    """What one rule remembers.

    Attributes:
        updates: updates that had its metrics.
        starts: the last `START_UPDATES` values of each metric of `start_of` during the warm-up.
        recent: the last `START_UPDATES` values of `best_of`.
        best: highest mean of a full `recent`.
        against: updates in a row that speak against the verdict.
        verdict: the verdict's document while the rule is broken.
        settings: action, threshold, warm-up and updates in a row that this was found with.
        fired: the verdict's document with its evidence, where the last update ended the attempt.
    """

    updates: int = 0
    starts: dict[str, list[float]] = field(default_factory=dict)
    recent: list[float] = field(default_factory=list)
    best: float | None = None
    against: int = 0
    verdict: dict[str, Any] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    fired: dict[str, Any] | None = None

    @classmethod
    def of(cls, rule: HealthRule) -> "_Window":
        """Of a rule that has seen nothing yet."""
        return cls(settings={name: getattr(rule, name) for name in _SETTINGS})

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "_Window":
        """Of a checkpoint; of one whose form another release has made nothing is known."""
        known = {each.name for each in fields(cls)}
        return cls(**document) if document.keys() <= known else cls()

    def under(self, rule: HealthRule) -> "_Window":
        """What of it holds under the rule's settings.

        The baseline was found with the warm-up alone; count and verdict with all settings.
        """
        new = _Window.of(rule)
        if self.settings == new.settings:
            return self
        if self.settings.get("warmup") != rule.warmup:
            return new
        return replace(self, against=0, verdict=None, fired=None, settings=new.settings)

    @property
    def past(self) -> Past:
        return Past(
            starts={Metric(name): median(values) for name, values in self.starts.items()},
            best=math.nan if self.best is None else self.best,
        )

    def see_start(self, rule: HealthRule, numbers: Numbers, warmup: int) -> None:
        self.updates += 1
        if self.updates > max(warmup, START_UPDATES):
            return
        for metric in rule.start_of:
            before = self.starts.get(metric, [])
            self.starts[metric.value] = [*before, numbers[metric]][-START_UPDATES:]

    def see_level(self, rule: HealthRule, numbers: Numbers) -> None:
        if rule.best_of is None:
            return
        self.recent = [*self.recent, numbers[rule.best_of]][-START_UPDATES:]
        if len(self.recent) == START_UPDATES:
            level = fmean(self.recent)
            self.best = level if self.best is None else max(self.best, level)


_ORDER = (GuardrailAction.FAIL, GuardrailAction.SUSPEND, GuardrailAction.OBSERVE)


class Health:
    """The rules with the guardrails' settings, and what they remember."""

    def __init__(self, guardrails: Sequence[Guardrail] = ()) -> None:
        given = {guardrail.rule: guardrail for guardrail in guardrails}
        self._rules = [_in_force(HEALTH_RULES[name], given.get(name)) for name in GuardrailRule]
        self._windows = {rule.rule: _Window.of(rule) for rule in self._rules}

    def judge(self, step: int, metrics: Numbers) -> Judgement:
        """Take in the metrics of update number `step`, from 1.

        A rule whose action ends the attempt starts anew: the state after this is what the next
        attempt goes on with. That it fired is remembered until it was heeded.
        """
        self.heed()
        readings = tuple(self._reading(rule, step, metrics) for rule in self._rules)
        judgement = Judgement(readings, self.verdicts, self._starts)
        for rule, reading in zip(self._rules, readings, strict=True):
            verdict = self._windows[rule.rule].verdict
            if verdict is not None and reading.action != GuardrailAction.OBSERVE:
                fired = {"verdict": verdict, "evidence": reading.evidence}
                self._windows[rule.rule] = replace(_Window.of(rule), fired=fired)
        return judgement

    def heed(self) -> None:
        """Forget what fired in the last update: it has ended an attempt, or is judged again."""
        for window in self._windows.values():
            window.fired = None

    @property
    def fired(self) -> tuple[Fired, ...]:
        """What ended the attempt in the last update, the strongest action first."""
        fired_rules = [
            Fired(_verdict(rule, fired["verdict"]), fired["evidence"])
            for rule in self._rules
            if (fired := self._windows[rule.rule].fired) is not None
        ]
        return tuple(sorted(fired_rules, key=lambda each: _ORDER.index(each.verdict.action)))

    @property
    def verdicts(self) -> tuple[HealthVerdict, ...]:
        """The rules that are broken, the one with the strongest action first."""
        verdicts = [
            _verdict(rule, verdict)
            for rule in self._rules
            if (verdict := self._windows[rule.rule].verdict) is not None
        ]
        return tuple(sorted(verdicts, key=lambda verdict: _ORDER.index(verdict.action)))

    @property
    def standing(self) -> tuple[Reading, ...]:
        """What the updates so far say of each rule, before the next one is judged."""
        windows = [(rule, self._windows[rule.rule]) for rule in self._rules]
        return tuple(
            _reading_of(rule, window, window.verdict["value"] if window.verdict else None)
            for rule, window in windows
        )

    def to_document(self) -> dict[str, Any]:
        """JSON values."""
        return {rule.value: asdict(window) for rule, window in self._windows.items()}

    def load(self, document: Mapping[str, Any]) -> None:
        """Take over what `to_document` gave, as far as it holds under the settings in force.

        A rule that is not in it, or in the form of another release, starts anew.
        """
        self._windows = {
            rule.rule: _Window.from_document(document.get(rule.rule, {})).under(rule)
            for rule in self._rules
        }

    @property
    def _starts(self) -> dict[Metric, float]:
        pasts = {rule: self._windows[rule].past.starts for rule, _ in START_METRICS.values()}
        return {
            start: pasts[rule][metric]
            for start, (rule, metric) in START_METRICS.items()
            if metric in pasts[rule]
        }

    def _reading(self, rule: HealthRule, step: int, metrics: Numbers) -> Reading:
        window = self._windows[rule.rule]
        value, evidence = math.nan, ""
        broken = window.verdict is not None
        has_numbers = all(math.isfinite(metrics.get(metric, math.nan)) for metric in rule.reads)
        if has_numbers:
            window.see_start(rule, metrics, rule.warmup)
            value = float(rule.quantity(metrics, window.past))
            if math.isfinite(value):
                evidence = _evidence(rule, metrics, window.past, value)
                _weigh(rule, window, step, metrics, value)
        changed = broken != (window.verdict is not None)
        reading = _reading_of(rule, window, _finite(value), changed=changed, evidence=evidence)
        if has_numbers:
            # Afterwards: the reading tells what the quantity was made of.
            window.see_level(rule, metrics)
        return reading


def _reading_of(
    rule: HealthRule,
    window: _Window,
    value: float | None,
    *,
    changed: bool = False,
    evidence: str = "",
) -> Reading:
    return Reading(
        rule=rule.rule,
        action=rule.action,
        value=value,
        threshold=rule.threshold,
        broken=window.verdict is not None,
        changed=changed,
        judged=window.updates > _unjudged(rule),
        evidence=evidence,
        start=_finite(window.past.start),
        best=_finite(window.past.best),
    )


def _verdict(rule: HealthRule, fields: Mapping[str, Any]) -> HealthVerdict:
    return HealthVerdict(rule=rule.rule, action=rule.action, **fields)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _unjudged(rule: HealthRule) -> int:
    """Updates with its metrics at the start that a rule does not judge."""
    return max(rule.warmup, START_UPDATES) if rule.start_of else rule.warmup


def _weigh(rule: HealthRule, window: _Window, step: int, metrics: Numbers, value: float) -> None:
    """Count what speaks against the verdict, and change it when that is enough."""
    if window.updates <= _unjudged(rule):
        return
    disagrees = rule.breaks(value, metrics, window.past) == (window.verdict is None)
    window.against = window.against + 1 if disagrees else 0
    if window.against < rule.consecutive:
        return
    window.against = 0
    if window.verdict is not None:
        window.verdict = None
    else:
        window.verdict = {"step": step, "value": value, "threshold": rule.threshold}


def _in_force(rule: HealthRule, guardrail: Guardrail | None) -> HealthRule:
    if guardrail is None:
        return rule
    threshold, warmup = guardrail.threshold, guardrail.warmup_updates
    return replace(
        rule,
        action=guardrail.action or rule.action,
        threshold=rule.threshold if threshold is None else threshold,
        warmup=rule.warmup if warmup is None else warmup,
        consecutive=guardrail.consecutive_updates or rule.consecutive,
    )


def _evidence(rule: HealthRule, metrics: Numbers, past: Past, value: float) -> str:
    bad = ", ".join(metric.value for metric, each in metrics.items() if not math.isfinite(each))
    numbers = {metric.value: each for metric, each in metrics.items()}
    starts = {f"start_{metric}": each for metric, each in past.starts.items()}
    said = rule.evidence.format(
        **numbers,
        **starts,
        value=value,
        start=past.start,
        best=past.best,
        nonfinite=bad or "none",
    )
    return f"{said}; threshold {rule.threshold:g}"
