"""What a rank logs, in words. Called by `report`."""

from collections.abc import Mapping

from rlhf_api.metrics import Metric

_SHOWN_CHARACTERS = 200


def metrics_text(metrics: Mapping[Metric, float]) -> str:
    """Each with its name, to four digits."""
    return ", ".join(f"{metric.value} {value:.4g}" for metric, value in metrics.items())


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def shown(text: str) -> str:
    """The beginning of `text` in one line."""
    line = text.replace("\r", "").replace("\n", "⏎")
    return line if len(line) <= _SHOWN_CHARACTERS else line[: _SHOWN_CHARACTERS - 1] + "…"
