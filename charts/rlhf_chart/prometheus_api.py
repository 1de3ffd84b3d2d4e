"""Asks a Prometheus over its HTTP API; for the picture of the dashboard and for tests."""

from typing import Any, NamedTuple

import requests

_ANSWER_SECONDS = 30


class PrometheusError(RuntimeError):
    """A Prometheus does not answer, or refuses a query."""


class Course(NamedTuple):
    """One series: its labels, and its values by Unix time in seconds."""

    labels: dict[str, str]
    values: list[tuple[float, float]]


def at_once(url: str, expr: str, when: float | None = None) -> list[Course]:
    """What `expr` gives at a Unix time, now unless told: a value each.

    Raises:
        PrometheusError: no answer, or the query is refused; names the query.
    """
    moment = {} if when is None else {"time": when}
    found = _get(url, "query", expr, query=expr, **moment)["result"]
    return [_course(each["metric"], [each["value"]]) for each in found]


def over_time(url: str, expr: str, start: float, end: float, step: float) -> list[Course]:
    """What `expr` gives from `start` to `end`, Unix times, every `step` seconds.

    Raises:
        PrometheusError: no answer, or the query is refused; names the query.
    """
    found = _get(url, "query_range", expr, query=expr, start=start, end=end, step=step)["result"]
    return [_course(each["metric"], each["values"]) for each in found]


def names_of(url: str) -> set[str]:
    """The names of all series that it has.

    Raises:
        PrometheusError: no answer.
    """
    return set(_get(url, "label/__name__/values", "names of series"))


def _get(url: str, path: str, about: str, **parameters: str | float) -> Any:
    if not url.startswith(("http://", "https://")):
        raise PrometheusError(f"{url}: is no URL; write it with http:// or https:// before it")
    address = f"{url.rstrip('/')}/api/v1/{path}"
    try:
        answer = requests.get(address, params=parameters, timeout=_ANSWER_SECONDS)
        document = answer.json()
    except requests.RequestException as error:
        raise PrometheusError(
            f"{address} does not answer as a Prometheus ({_reason(error)}): check the URL"
        ) from error
    if not isinstance(document, dict) or "status" not in document:
        raise PrometheusError(f"{address} does not answer as a Prometheus: check the URL")
    if document["status"] != "success":
        raise PrometheusError(f"{address} refuses {about}: {document.get('error')}")
    return document["data"]


def _reason(error: requests.RequestException) -> str:
    """Why there is no answer; the error itself quotes the query as the URL has it."""
    if isinstance(error, requests.Timeout):
        return f"nothing within {_ANSWER_SECONDS} seconds"
    if isinstance(error, requests.JSONDecodeError):
        return "no JSON"
    if isinstance(error, requests.exceptions.SSLError):
        return "no connection by TLS"
    return "no connection" if isinstance(error, requests.ConnectionError) else "no valid answer"


def _course(labels: dict[str, str], values: list[list[Any]]) -> Course:
    return Course(labels, [(float(when), float(text)) for when, text in values])
