"""What is told, within what a status or an Event can hold. Pure; called wherever that is cut.

A process may be broken, or of another release: what is too large or too small is clamped, and what
says nothing is left out, since the API server refuses a status as a whole.
"""

import math
from collections.abc import Callable, Mapping
from itertools import islice, takewhile
from typing import Any

from pydantic import ValidationError

from rlhf_api.names import MAX_RESULT_METRICS
from rlhf_api.v1alpha1.guardrails import HealthVerdict
from rlhf_api.v1alpha1.status import MAX_COUNT, MAX_ROW_COUNTS, MAX_TEXT_LENGTH, RowCounts

Raw = dict[str, Any]

_COUNTS = ("step", "totalSteps", "lastCheckpointStep")
_GAP = " ... "


def bounded_text(text: str, length: int) -> str:
    """The text; of one that is longer than `length` its beginning and its end.

    What is quoted stands in the middle, and what to do about it at the end.
    """
    if len(text) <= length:
        return text
    kept = length - len(_GAP)
    if kept <= 0:
        return text[:length]
    end = kept // 2
    return text[: kept - end] + _GAP + text[len(text) - end :]


def finite_number(value: object) -> float | None:
    """The value as a finite number; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def bounded_count(value: object) -> int | None:
    """The value as a number of things that status can hold; None for what is no number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return min(max(value, 0), MAX_COUNT)
    number = finite_number(value)
    return None if number is None else int(min(max(number, 0), MAX_COUNT))


def bounded_result(document: Mapping[str, Any]) -> Raw:
    """The document of a StageResult with what a status could not hold clamped or left out.

    What says whose result it is stays as it is: another one's is none.
    """
    parts: dict[str, Callable[[object], Any]] = {
        "metrics": _bounded_metrics,
        "verdicts": _readable_verdicts,
        "rows": _bounded_rows,
        **dict.fromkeys(_COUNTS, bounded_count),
        "message": lambda said: said if isinstance(said, str) else None,
    }
    found = {
        name: parts[name](value) if name in parts else value for name, value in document.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _bounded_metrics(told: object) -> dict[str, float]:
    numbers = ((name, finite_number(value)) for name, value in _items(told))
    kept = ((name, number) for name, number in numbers if number is not None)
    return dict(islice(kept, MAX_RESULT_METRICS))


def _bounded_rows(told: object) -> dict[str, dict[str, int]] | None:
    """By dataset; one whose used rows are not told is left out."""
    fields = {info.alias for info in RowCounts.model_fields.values()}
    found: dict[str, dict[str, int]] = {}
    for dataset, numbers in _items(told):
        counts = {name: bounded_count(value) for name, value in _items(numbers) if name in fields}
        kept = {name: count for name, count in counts.items() if count is not None}
        if "kept" in kept:
            found[dataset] = kept
    return dict(islice(found.items(), MAX_ROW_COUNTS)) or None


def _readable_verdicts(told: object) -> list[Raw]:
    """Those before the first that cannot be read: only the first one can have ended the attempt."""
    verdicts = (_bounded_verdict(each) for each in (told if isinstance(told, list) else ()))
    return [each for each in takewhile(lambda each: each is not None, verdicts) if each]


def _bounded_verdict(told: object) -> Raw | None:
    """The verdict with numbers that status can hold; None for one that is not understood."""
    numbers = {"step": bounded_count, "value": finite_number, "threshold": finite_number}
    found = {
        name: numbers[name](value) if name in numbers else value
        for name, value in _items(told)
        if name in {info.alias for info in HealthVerdict.model_fields.values()}
    }
    try:
        return HealthVerdict.model_validate(found).to_document()
    except ValidationError:
        return None


def _items(told: object) -> list[tuple[str, Any]]:
    """The entries of an object of JSON whose names status can hold; none for anything else."""
    entries = told.items() if isinstance(told, dict) else ()
    return [(name, value) for name, value in entries if len(name) <= MAX_TEXT_LENGTH]
