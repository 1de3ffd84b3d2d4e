"""How far an attempt is, from its `events.jsonl`. Called by `launchers`; reads, never writes."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rlhf_api.names import GuardrailRule
from rlhf_api.v1alpha1 import RowCounts
from rlhf_api.v1alpha1.bounds import bounded_count, finite_number
from rlhf_api.v1alpha1.status import Rows
from rlhf_operator.planning.observed import ObservedProgress, ObservedVerdict

_RULES = {rule.value: rule for rule in GuardrailRule}
_ROWS: TypeAdapter[dict[str, RowCounts]] = TypeAdapter(Rows)


class EventLog:
    """One attempt's file, read on from where the last look ended."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._metrics: dict[str, float] = {}
        self._checkpoint_step: int | None = None
        self._verdicts: dict[GuardrailRule, ObservedVerdict] = {}
        self._rows: dict[str, RowCounts] = {}
        self._last: dict[str, Any] | None = None
        self._notes: list[str] = []
        self.evaluated_step: int | None = None
        """Steps after which the held-out metrics were taken; None before the first evaluation."""

    @property
    def evaluating(self) -> bool:
        """Whether the held-out rows were being evaluated when the attempt told something last."""
        return self._last is not None and self._last.get("type") == "evaluating"

    def take_notes(self) -> list[str]:
        """What was found before training began, and was not taken yet."""
        notes, self._notes = self._notes, []
        return notes

    def read(self) -> ObservedProgress | None:
        """What the file tells by now; None before its first whole line."""
        for line in self._new_lines():
            self._take(line)
        if self._last is None:
            return None
        return ObservedProgress(
            step=_count(self._last.get("step")),
            total_steps=_count(self._last.get("totalSteps")),
            eta_seconds=finite_number(self._last.get("etaSeconds")),
            metrics=dict(self._metrics),
            last_checkpoint_step=self._checkpoint_step,
            verdicts=dict(self._verdicts),
            rows=dict(self._rows),
        )

    def _new_lines(self) -> list[bytes]:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        # What follows the last line break is still being written.
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return whole.splitlines()

    def _take(self, line: bytes) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        self._last = event
        if event.get("type") == "start":
            notes = event.get("notes")
            self._notes += [str(note) for note in notes] if isinstance(notes, list) else []
        self._take_step(event)
        if "rows" in event:
            self._take_rows(event["rows"])
        if event.get("type") == "verdict":
            self._take_verdict(event, broken=event.get("broken") is True)
        if event.get("type") == "verdicts":
            self._take_verdicts(event.get("verdicts"))
        metrics = event.get("metrics")
        for name, value in metrics.items() if isinstance(metrics, dict) else ():
            number = finite_number(value)
            if number is None:
                self._metrics.pop(name, None)
            else:
                self._metrics[name] = number

    def _take_step(self, event: dict[str, Any]) -> None:
        """After which step something was done that does not follow each."""
        if event.get("type") == "checkpoint":
            self._checkpoint_step = _count(event.get("step"))
        if event.get("type") == "evaluation":
            self.evaluated_step = _count(event.get("step"))

    def _take_rows(self, told: object) -> None:
        with suppress(ValidationError):
            self._rows = _ROWS.validate_python(told)

    def _take_verdicts(self, told: object) -> None:
        """All rules that are broken after a resume, whatever an earlier attempt told."""
        whole = ObservedVerdict(broken=False, value=None, threshold=None)
        self._verdicts = dict.fromkeys(_RULES.values(), whole)
        for verdict in told if isinstance(told, list) else ():
            if isinstance(verdict, dict):
                self._take_verdict(verdict, broken=True)

    def _take_verdict(self, event: dict[str, Any], *, broken: bool) -> None:
        """What is told of a rule when that turns, or after a resume; unknown ones are left out."""
        rule = _RULES.get(str(event.get("rule")))
        if rule is not None:
            self._verdicts[rule] = ObservedVerdict(
                broken=broken,
                value=finite_number(event.get("value")),
                threshold=finite_number(event.get("threshold")),
                step=_count(event.get("step")),
            )


def _count(value: object) -> int:
    return bounded_count(value) or 0
