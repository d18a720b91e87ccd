"""The few builders our boards are made of; an API break of the SDK is mended here and nowhere else.

Grafana's own rules that surprise: the legend is hidden unless asked for, panels
have no ids unless given, and a macro's argument must not contain a bracket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import barchart, common, dashboard, piechart, stat, table, timeseries
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import piechart as piechart_model
from grafana_foundation_sdk.models import units

SQL_UID = "ecmc-postgres"
API_UID = "ecmc-api"
UNKNOWN = "未知 unknown"
KGCO2E = "suffix: kgCO2e"
TCO2E = "suffix: tCO2e"
TCE = "suffix: tce"
KGCO2E_PER_H = "suffix: kgCO2e/h"
KGCO2E_PER_KWH = "suffix: kgCO2e/kWh"

_SQL = common_model.DataSourceRef(type_val="grafana-postgresql-datasource", uid=SQL_UID)
_API = common_model.DataSourceRef(type_val="prometheus", uid=API_UID)


class Query(Builder[variants.Dataquery], variants.Dataquery):  # type: ignore[misc]
    """A query of a board: `source` is asked `text`. The SDK has no type for SQL."""

    def __init__(self, source: common_model.DataSourceRef, **body: object) -> None:
        self.source = source
        self._body = {
            "refId": "A",
            "datasource": {"type": source.type_val, "uid": source.uid},
            "editorMode": "code",
            **body,
        }

    def build(self) -> variants.Dataquery:
        return self

    def to_json(self) -> dict[str, object]:
        return self._body


def sql(text: str, form: str = "table") -> Query:
    """SQL over the board views; `form` is `table` or `time_series`."""
    return Query(_SQL, rawSql=" ".join(text.split()), rawQuery=True, format=form)


def now(expression: str) -> Query:
    """The value of a metric of the API at the end of the board's range."""
    return Query(_API, expr=expression, instant=True, range=False, format="time_series")


def steps(*limits: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Colours from each limit up; the first limit is None."""
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=limit, color=color) for limit, color in limits])
    )


def number(
    panel_id: int, title: str, query: Query, unit: str, decimals: int = 1, limits: Any = None, note: str = ""
) -> stat.Panel:
    """One figure, the last of its query; `note` says what it is made of."""
    made = (
        stat.Panel()
        .id(panel_id)
        .title(title)
        .datasource(query.source)
        .unit(unit)
        .decimals(decimals)
        .no_value(UNKNOWN)
        .span(4)
        .height(4)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("/.*/"))
        .with_target(query)
    )
    if note:
        made.description(note)
    return made.thresholds(limits or steps((None, "blue")))


def change(panel_id: int, title: str, query: Query, note: str = "") -> stat.Panel:
    """A share more or less than a period before; more is red."""
    return number(
        panel_id,
        title,
        query,
        units.PercentUnit,
        limits=steps((None, "green"), (0.0, "orange"), (0.1, "red")),
        note=note,
    )


def trend(
    panel_id: int, title: str, text: str, unit: str, width: int = 12, stacked: bool = False
) -> timeseries.Panel:
    """Lines over quarters of an hour or longer; the query gives `time`, `metric` and one number."""
    made = (
        timeseries.Panel()
        .id(panel_id)
        .title(title)
        .datasource(_SQL)
        .unit(unit)
        .span(width)
        .height(9)
        .interval("15m")
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_model.LegendDisplayMode.LIST)
            .placement(common_model.LegendPlacement.BOTTOM)
        )
        .with_target(sql(text, "time_series"))
    )
    if stacked:
        made.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    return made


def bars(panel_id: int, title: str, text: str, unit: str, width: int = 12) -> barchart.Panel:
    """One bar a row: a text column, then a number."""
    return (
        barchart.Panel()
        .id(panel_id)
        .title(title)
        .datasource(_SQL)
        .unit(unit)
        .span(width)
        .height(9)
        .orientation(common_model.VizOrientation.HORIZONTAL)
        .legend(common.VizLegendOptions().show_legend(False))
        .with_target(sql(text))
    )


def shares(panel_id: int, title: str, text: str, unit: str, width: int = 8) -> piechart.Panel:
    """A ring with one part a row: a text column, then a number."""
    return (
        piechart.Panel()
        .id(panel_id)
        .title(title)
        .datasource(_SQL)
        .unit(unit)
        .no_value(UNKNOWN)
        .span(width)
        .height(9)
        .pie_type(piechart_model.PieChartType.DONUT)
        .display_labels([piechart_model.PieChartLabels.PERCENT])
        .reduce_options(common.ReduceDataOptions().values(True).calcs(["lastNotNull"]).fields(""))
        .legend(
            piechart.PieChartLegendOptions()
            .show_legend(True)
            .display_mode(common_model.LegendDisplayMode.TABLE)
            .placement(common_model.LegendPlacement.BOTTOM)
            .values([piechart_model.PieChartLegendValues.VALUE])
        )
        .with_target(sql(text))
    )


def rows(
    panel_id: int, title: str, text: str, width: int = 12, units_of: Sequence[tuple[str, str]] = ()
) -> table.Panel:
    """A table as the query gives it; `units_of` by column name."""
    made = table.Panel().id(panel_id).title(title).datasource(_SQL).span(width).height(9)
    made.with_target(sql(text))
    for column, unit in units_of:
        made.override_by_name(column, [model.DynamicConfigValue(id_val="unit", value=unit)])
    return made


def choice(name: str, label: str, text: str) -> dashboard.QueryVariable:
    """A drop-down filled by a query."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_SQL)
        .query(" ".join(text.split()))
        .refresh(model.VariableRefresh.ON_DASHBOARD_LOAD)
        .sort(model.VariableSort.DISABLED)
    )


def alarm_annotations() -> dashboard.AnnotationQuery:
    """Alarms that came, as marks on every time axis."""
    query = sql("""
        SELECT time, rule || ' ' || coalesce(value::text, '') AS text, 'alarm' AS tags
        FROM board.alert_event WHERE $__timeFilter(time) AND state = 'active-unack' ORDER BY time DESC LIMIT 1000
    """)
    return (
        dashboard.AnnotationQuery()
        .name("报警 Alarms")
        .datasource(_SQL)
        .enable(True)
        .icon_color("red")
        .placement(None)  # else the toggle hides in a menu
        .target(query)
    )
