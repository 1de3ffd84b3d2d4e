"""Runs what the chart's dashboard asks against a real Prometheus: every query returns series."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from rlhf_chart.dashboard import Asked, queries
from rlhf_chart.panel_queries import filled, names_in
from rlhf_chart.prometheus_api import at_once, names_of

DASHBOARD = Path(__file__).parents[1] / "charts" / "rlhf-operator" / "files" / "dashboard.json"

_WORD = re.compile(r"\w+")


def asked() -> list[Asked]:
    """What the dashboard in the chart asks."""
    return list(queries(json.loads(DASHBOARD.read_text())))


def run(
    url: str,
    *,
    namespace: str = ".+",
    rlhfjob: str = ".+",
    rate_interval: str = "1m",
    absent: Mapping[str, str],
) -> None:
    """Assert that each query returns series, and that each name in a query is known.

    Args:
        url: of the Prometheus.
        namespace: regular expression of the namespaces that are picked.
        rlhfjob: regular expression of the jobs that are picked.
        rate_interval: window of rates; four scrapes are enough.
        absent: words of queries for which nothing is there, each with the reason.

    Raises:
        AssertionError: names all queries and series that are not there.
        PrometheusError: a query is refused.
    """
    wanted = [each for each in asked() if not _words(each) & absent.keys()]
    picked = {"namespace": namespace, "rlhfjob": rlhfjob, "rate_interval": rate_interval}
    missing = [
        f"{where}: {expr}" for where, expr in wanted if not at_once(url, filled(expr, **picked))
    ]
    known = names_of(url)
    unknown = sorted(names_in(each.expr for each in wanted) - known)
    assert not missing, "queries without series:\n" + "\n".join(missing)
    assert not unknown, f"series that nobody exports: {', '.join(unknown)}"


def _words(each: Asked) -> set[str]:
    return set(_WORD.findall(each.expr))
