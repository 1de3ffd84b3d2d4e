"""Draws the dashboard without Grafana: the same queries, the same grid, by matplotlib.

`python -m rlhf_chart.picture --prometheus URL --job NAME --output FILE` draws what a Prometheus
has of a job; `charts/rlhf-operator/files/dashboard.json` says what is drawn.
"""

import argparse
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_chart.panel_queries import ANY_OF_A_JOB, filled
from rlhf_chart.picture_panels import Drawn, Found, draw
from rlhf_chart.prometheus_api import Course, PrometheusError, at_once, over_time

DASHBOARD = Path(__file__).parents[1] / "rlhf-operator" / "files" / "dashboard.json"
POINTS = 240
EVERY = ".+"
FORMATS = (".png", ".svg")

Raw = dict[str, Any]


class Row(NamedTuple):
    """A row of the dashboard with its panels."""

    title: str
    panels: list[Raw]


def read_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--prometheus", required=True, help="URL of a Prometheus with the data")
    parser.add_argument("--namespace", default=EVERY, help="regular expression (all)")
    parser.add_argument("--job", default=EVERY, help="names of jobs, a regular expression (all)")
    parser.add_argument("--minutes", type=float, default=60, help="up to the end (%(default)s)")
    parser.add_argument("--end", type=float, help="Unix time of the end (now)")
    parser.add_argument("--rate-interval", default="1m", help="window of rates (%(default)s)")
    parser.add_argument("--rows", nargs="+", help="titles of the rows to draw (all)")
    parser.add_argument("--output", type=Path, required=True, help="the picture: .png or .svg")
    given = parser.parse_args(arguments)
    if given.output.suffix not in FORMATS:
        parser.error(f"--output {given.output}: ends in none of {', '.join(FORMATS)}; write one")
    given.end = time.time() if given.end is None else given.end
    return given


def rows_of(dashboard: Raw, wanted: Sequence[str] | None) -> list[Row]:
    """The rows with these titles in the dashboard's order; all without titles.

    Raises:
        ValueError: there is no row of that title.
    """
    rows: list[Row] = []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            rows.append(Row(panel["title"], []))
        else:
            rows[-1].panels.append(panel)
    titles = [row.title for row in rows]
    if unknown := sorted(set(wanted or ()) - set(titles)):
        raise ValueError(f"--rows {unknown[0]!r} is none of the dashboard; take of {titles}")
    return [row for row in rows if not wanted or row.title in wanted]


def ask(panel: Raw, given: argparse.Namespace, marks: Sequence[float]) -> Drawn:
    """What a panel shows.

    Raises:
        PrometheusError: no answer, or a query is refused.
    """
    found = []
    for target in panel["targets"]:
        courses = _now(target["expr"], given) if target["instant"] else _all(target["expr"], given)
        legend = target["legendFormat"]
        found += [Found(target["refId"], name_of(legend, each.labels), each) for each in courses]
    return Drawn(panel, found, 60 * given.minutes, marks)


def firing_since(dashboard: Raw, given: argparse.Namespace) -> list[float]:
    """When the alerts of the dashboard's annotations began to fire, in seconds since the start."""
    exprs = [each["expr"] for each in dashboard["annotations"]["list"]]
    return [course.values[0][0] for expr in exprs for course in _all(expr, given)]


def name_of(legend: str, labels: Mapping[str, str]) -> str:
    """A legend with the labels of a series filled in, as Grafana writes it."""
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend).strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture; 1 with a sentence if it cannot be."""
    given = read_arguments(arguments)
    try:
        dashboard = json.loads(DASHBOARD.read_text())
        rows = rows_of(dashboard, given.rows)
        marks = firing_since(dashboard, given)
        _check_the_job_is_there(given)
        drawn = {row.title: [ask(panel, given, marks) for panel in row.panels] for row in rows}
    except (PrometheusError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    try:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        draw(drawn, given.output)
    except OSError as error:
        sys.stderr.write(f"--output {given.output}: cannot be written ({error.strerror})\n")
        return 1
    return 0


def _check_the_job_is_there(given: argparse.Namespace) -> None:
    """Refuse to draw a job that has no series.

    Raises:
        PrometheusError: it has none, or there is no answer.
    """
    asked_for_one = (given.job, given.namespace) != (EVERY, EVERY)
    if asked_for_one and not _all(ANY_OF_A_JOB, given):
        raise PrometheusError(
            f"{given.prometheus}: has nothing of --job {given.job!r} in --namespace "
            f"{given.namespace!r} in the {given.minutes:g} minutes up to {_when(given.end)}; "
            "check these, --minutes and --end"
        )


def _when(end: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(end))


def _now(expr: str, given: argparse.Namespace) -> list[Course]:
    return at_once(given.prometheus, _filled(expr, given), given.end)


def _all(expr: str, given: argparse.Namespace) -> list[Course]:
    """The series of the whole picture, with times in seconds since its start."""
    seconds = 60 * given.minutes
    start = given.end - seconds
    found = over_time(given.prometheus, _filled(expr, given), start, given.end, seconds / POINTS)
    return [
        Course(each.labels, [(when - start, value) for when, value in each.values])
        for each in found
    ]


def _filled(expr: str, given: argparse.Namespace) -> str:
    return filled(
        expr, namespace=given.namespace, rlhfjob=given.job, rate_interval=given.rate_interval
    )


if __name__ == "__main__":
    sys.exit(main())
