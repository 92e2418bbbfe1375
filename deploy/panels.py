"""The kinds of panel that the dashboards are made of, with the looks that all of one kind share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common as looks
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    FieldColorModeId,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from deploy.queries import quantile

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
TASK = 'task=~"$task"'
# The service measures readout errors by jobs of its own, as slow as any other.
CALLERS = f'{TASK}, task!="readout"'
TAG = "qd-students"
# The page is 24 columns wide.
NARROW, THIRD, HALF = 4, 8, 12
BACKENDS = ("qd-backends", "Quantum students: simulator and Baihua")
SERVICE = ("qd-service", "Quantum students: the service")
ANSWERED = f'outcome="ok", {TASK}'
UP_OR_DOWN = {0: ("down", "red"), 1: ("up", "green")}
_PERCENTILES = (0.5, 0.95, 0.99)
_GOOD, _POOR, _BAD, _PLAIN = "green", "orange", "red", "blue"


@dataclass(frozen=True)
class Query:
    """An expression and the name of each of its series.

    Attributes:
        exemplars: Whether the traces behind a histogram are shown as points.
    """

    expression: str
    legend: str
    exemplars: bool = False


@dataclass(frozen=True)
class Levels:
    """From where a value is poor, and from where bad; falling values if `poor` is above `bad`."""

    poor: float
    bad: float


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = THIRD,
    levels: Levels | None = None,
    logarithmic: bool = False,
    most: float | None = None,
) -> Any:
    """Lines over time."""
    panel = (
        _common(timeseries.Panel(), title, description, span, 8)
        .unit(unit)
        .line_width(1.5)
        .fill_opacity(8)
        .show_points(looks.VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(looks.LegendDisplayMode.LIST)
            .placement(looks.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(looks.TooltipDisplayMode.MULTI).sort(looks.SortOrder.DESCENDING))
        .color_scheme(builders.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC))
    )
    if logarithmic:
        panel.scale_distribution(common.ScaleDistributionConfig().type(looks.ScaleDistribution.LOG).log(10))
    else:
        panel.axis_soft_min(0)
    if most is not None:
        panel.max(most)
    if levels is not None:
        panel.thresholds(_thresholds(levels)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(looks.GraphThresholdsStyleMode.DASHED)
        )
    return _with(panel, queries)


def figure(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    span: int = NARROW,
    levels: Levels | None = None,
    names: Mapping[int, tuple[str, str]] | None = None,
) -> Any:
    """The value now in large digits; `names` are the text and the colour of values that stand for something."""
    panel = (
        _common(stat.Panel(), title, description, span, 5)
        .unit(unit)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .color_mode(looks.BigValueColorMode.VALUE)
        .graph_mode(looks.BigValueGraphMode.NONE)
        .text_mode(looks.BigValueTextMode.AUTO)
        .thresholds(_thresholds(levels))
    )
    if names:
        panel.mappings([_names(names)])
    return _with(panel, queries, now=True)


def bars(
    title: str, description: str, unit: str, *queries: Query, levels: Levels, most: float, span: int = HALF
) -> Any:
    """The value of each series now as a bar."""
    panel = (
        _common(bargauge.Panel(), title, description, span, 8)
        .unit(unit)
        .decimals(3)
        .min(0)
        .max(most)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
        .display_mode(looks.BarGaugeDisplayMode.GRADIENT)
        .orientation(looks.VizOrientation.VERTICAL)
        .thresholds(_thresholds(levels))
    )
    return _with(panel, queries, now=True)


def states(
    title: str, description: str, names: Mapping[int, tuple[str, str]], *queries: Query, span: int = HALF
) -> Any:
    """What each series was in turn; `names` are the text and the colour of each value."""
    panel = (
        _common(statetimeline.Panel(), title, description, span, 8)
        .mappings([_names(names)])
        .merge_values(True)
        .show_value(looks.VisibilityMode.AUTO)
        .color_scheme(builders.FieldColor().mode(FieldColorModeId.THRESHOLDS))
        .thresholds(_thresholds(None))
    )
    return _with(panel, queries)


def listing(title: str, description: str, query: Query, columns: Mapping[str, str], span: int = HALF) -> Any:
    """A table of the labels of each series; `columns` are the labels and their headings, in order."""
    panel = _common(table.Panel(), title, description, span, 8)
    keep = DataTransformerConfig(
        id_val="organize",
        options={
            "includeByName": dict.fromkeys(columns, True),
            "indexByName": {label: number for number, label in enumerate(columns)},
            "renameByName": dict(columns),
        },
    )
    panel.with_transformation(keep)
    return panel.with_target(_target(query, "A").instant().format(PromQueryFormat.TABLE))


def dashboard(uid: str, title: str, description: str, other: tuple[str, str]) -> Any:
    """An empty one, with its variables and its link to the other one (uid and title)."""
    source = builders.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
    task = (
        builders.QueryVariable("task")
        .label("Task")
        .description("Tasks that are served now; all of them, and requests for none, with `All`.")
        .query("label_values(qd_bundle_info, task)")
        .datasource(DATASOURCE)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )
    to_other = (
        builders.DashboardLink(other[1])
        .type(DashboardLinkType.LINK)
        .url(f"/d/{other[0]}")
        .icon("dashboard")
        .include_vars(True)
        .keep_time(True)
    )
    return (
        builders.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .time("now-1h", "now")
        .refresh("30s")
        .with_variable(source)
        .with_variable(task)
        .link(to_other)
    )


def laid_out(page: Any, rows: Mapping[str, Sequence[Any]]) -> Any:
    """The page with a row of panels under each title."""
    number = 0
    for title, panels in rows.items():
        page.with_row(builders.Row(title))
        for panel in panels:
            number += 1
            page.with_panel(panel.id(number))
    return page


def percentiles(histogram: str, where: str = "", window: str = "$__rate_interval") -> list[Query]:
    """Half, 19 of 20 and 99 of 100 of what was observed stay below."""
    return [
        Query(quantile(share, histogram, where=where, window=window), f"p{100 * share:g}", exemplars=True)
        for share in _PERCENTILES
    ]


def _common(panel: Any, title: str, description: str, span: int, height: int) -> Any:
    return panel.title(title).description(description).datasource(DATASOURCE).span(span).height(height)


def _with(panel: Any, queries: Sequence[Query], *, now: bool = False) -> Any:
    # `now`: the last value of a range would stay on the page after its series has ended.
    for letter, query in zip(ascii_uppercase, queries, strict=False):
        target = _target(query, letter)
        panel.with_target(target.instant() if now else target.range())
    return panel


def _target(query: Query, ref_id: str) -> Any:
    target = prometheus.Dataquery().expr(query.expression).legend_format(query.legend).ref_id(ref_id)
    return target.exemplar(True) if query.exemplars else target


def _thresholds(levels: Levels | None) -> Any:
    steps: list[tuple[float | None, str]]
    if levels is None:
        steps = [(None, _PLAIN)]
    elif levels.poor <= levels.bad:
        steps = [(None, _GOOD), (levels.poor, _POOR), (levels.bad, _BAD)]
    else:
        steps = [(None, _BAD), (levels.bad, _POOR), (levels.poor, _GOOD)]
    return (
        builders.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=color) for value, color in steps])
    )


def _names(names: Mapping[int, tuple[str, str]]) -> Any:
    options = {
        str(value): ValueMappingResult(text=text, color=color, index=index)
        for index, (value, (text, color)) in enumerate(names.items())
    }
    return ValueMap(options)
