"""The Grafana dashboard of jobs and operator, and what it asks Prometheus for.

Written into the chart by `python -m rlhf_chart dashboard`; a ConfigMap hands it to Grafana's
sidecar.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

from rlhf_api.metrics import Metric, MetricLabel, metric_name
from rlhf_chart.dashboard_rows import all_rows
from rlhf_chart.panel_queries import FIRING
from rlhf_chart.panels import DATASOURCE, DATASOURCE_PICKER
from rlhf_operator.job_series import CONDITION, JOB_PREFIX, NAMESPACE

TITLE = "RLHF jobs"
UID = "rlhf-operator"

Raw = dict[str, Any]

# A job that waits for its pods has a condition, and no step yet.
_KNOWN = "|".join((CONDITION.name, JOB_PREFIX + Metric.STEP, metric_name(Metric.STEP)))
_EVERY = ".+"


class Asked(NamedTuple):
    """One query of the dashboard, and where it stands."""

    where: str
    expr: str


def dashboard_json() -> str:
    """The dashboard as Grafana reads it."""
    whole = _head()
    number = 0
    for title, panels in all_rows().items():
        number += 1
        whole.with_row(build.Row(title).id(number))
        for panel in panels:
            number += 1
            whole.with_panel(panel.id(number))
    return json.dumps(whole.build(), cls=JSONEncoder, indent=1, sort_keys=True) + "\n"


def queries(dashboard: Raw) -> Iterator[Asked]:
    """All PromQL of a dashboard's JSON: of its panels, its annotations and its pickers."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield Asked(f"{panel['title']} {target['refId']}", target["expr"])
    for annotation in dashboard["annotations"]["list"]:
        yield Asked(f"annotation {annotation['name']}", annotation["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == model.VariableType.QUERY:
            yield Asked(f"picker {variable['name']}", _selector(variable["query"]))


def _head() -> build.Dashboard:
    alerts = (
        build.AnnotationQuery()
        .name("Alerts")
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color("red")
        .expr(FIRING)
    )
    source = build.DatasourceVariable(DATASOURCE_PICKER).label("Data source").type("prometheus")
    return (
        build.Dashboard(TITLE)
        .uid(UID)
        .description("Progress, learning and health of RLHFJobs, and the operator that runs them.")
        .tags(["rlhf"])
        .time("now-6h", "now")
        .refresh("30s")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(source)
        .with_variable(_picker(NAMESPACE, "Namespace", ""))
        .with_variable(_picker(MetricLabel.JOB, "Job", f',{NAMESPACE}=~"${NAMESPACE}"'))
        .annotation(alerts)
    )


def _picker(label: str, title: str, matcher: str) -> build.QueryVariable:
    return (
        build.QueryVariable(label)
        .label(title)
        .datasource(DATASOURCE)
        .query(f'label_values({{__name__=~"{_KNOWN}"{matcher}}}, {label})')
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(_EVERY)
        .current(model.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _selector(query: str) -> str:
    """The series whose label a picker offers: what stands in `label_values`."""
    return query.removeprefix("label_values(").rpartition(",")[0]
