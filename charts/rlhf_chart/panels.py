"""Panels of the dashboard by what they show; the library's builders do the rest."""

from collections.abc import Mapping, Sequence
from string import ascii_uppercase

from grafana_foundation_sdk.builders import common, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from rlhf_chart.panel_queries import Query

DATASOURCE_PICKER = "datasource"
DATASOURCE = model.DataSourceRef(type_val="prometheus", uid=f"${{{DATASOURCE_PICKER}}}")
HEIGHT = 8
_GOOD, _BAD = "green", "red"

AnyPanel = stat.Panel | statetimeline.Panel | table.Panel | timeseries.Panel


def lines(
    title: str,
    *queries: Query,
    unit: str = "short",
    span: int = 8,
    log: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> AnyPanel:
    """Courses over time; `low` and `high` bound the axis."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(_description(queries))
        .datasource(DATASOURCE)
        .height(HEIGHT)
        .span(span)
        .unit(unit)
        .line_width(1)
        .fill_opacity(0)
        .show_points(VisibilityMode.NEVER)
        .legend(_legend_below())
        .tooltip(
            common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING)
        )
        .targets([_target(number, query, queries) for number, query in enumerate(queries)])
    )
    if log:
        panel.scale_distribution(
            common.ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10)
        )
    if low is not None:
        panel.min(low)
    if high is not None:
        panel.max(high)
    return panel


def numbers(title: str, *queries: Query, unit: str = "short", span: int = 4) -> AnyPanel:
    """The newest value of each series, in large digits."""
    return (
        stat.Panel()
        .title(title)
        .description(_description(queries))
        .datasource(DATASOURCE)
        .height(HEIGHT)
        .span(span)
        .unit(unit)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .targets(
            [_target(number, query, queries).instant() for number, query in enumerate(queries)]
        )
    )


def rows(
    title: str,
    *queries: Query,
    span: int = 12,
    units: Mapping[str, str] | None = None,
) -> AnyPanel:
    """A table: a row for each set of labels, a column for each query, with units by its name."""
    letters = ascii_uppercase[: len(queries)]
    values = ["Value"] if len(queries) == 1 else [f"Value #{letter}" for letter in letters]
    names = dict(zip(values, (query.name for query in queries), strict=True))
    panel = (
        table.Panel()
        .show_header(True)
        .title(title)
        .description(_description(queries))
        .datasource(DATASOURCE)
        .height(HEIGHT)
        .span(span)
        .targets(
            [
                _target(number, query, queries).instant().format(PromQueryFormat.TABLE)
                for number, query in enumerate(queries)
            ]
        )
        .with_transformation(model.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(
            model.DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": {"Time": True}, "renameByName": names},
            )
        )
    )
    for name, unit in (units or {}).items():
        panel.override_by_name(name, [model.DynamicConfigValue(id_val="unit", value=unit)])
    return panel


def states(title: str, *queries: Query, good: str, bad: str, span: int = 12) -> AnyPanel:
    """Series of 0 and 1 as coloured bars over time, named `good` and `bad`."""
    words = {
        "0": model.ValueMappingResult(text=good, color=_GOOD, index=0),
        "1": model.ValueMappingResult(text=bad, color=_BAD, index=1),
    }
    return (
        statetimeline.Panel()
        .title(title)
        .description(_description(queries))
        .datasource(DATASOURCE)
        .height(HEIGHT)
        .span(span)
        .mappings([model.ValueMap(options=words)])
        .show_value(VisibilityMode.NEVER)
        .legend(_legend_below())
        .targets([_target(number, query, queries) for number, query in enumerate(queries)])
    )


def _target(number: int, query: Query, queries: Sequence[Query]) -> Dataquery:
    several = len({each.name for each in queries}) > 1
    legend = " ".join(filter(None, [query.who, query.name if several or not query.who else ""]))
    return (
        Dataquery()
        .expr(query.expr)
        .legend_format(legend)
        .ref_id(ascii_uppercase[number])
        .range()
        .datasource(DATASOURCE)
    )


def _description(queries: Sequence[Query]) -> str:
    if len(queries) == 1:
        return queries[0].help
    return "\n".join(f"- {query.name}: {query.help}" for query in queries)


def _legend_below() -> common.VizLegendOptions:
    return (
        common.VizLegendOptions()
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
        .show_legend(True)
    )
