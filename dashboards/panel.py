"""The few builders our boards are made of; an API break of the SDK is mended here and nowhere else.

Grafana's own rules that surprise: the legend is hidden unless asked for, panels
have no ids unless given, and a macro's argument must not contain a bracket.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from grafana_foundation_sdk.builders import barchart, common, dashboard, stat, table, timeseries
from grafana_foundation_sdk.cog import variants
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

SQL_UID = "ecmc-postgres"
KGCO2E = "suffix: kgCO2e"
KGCO2E_PER_H = "suffix: kgCO2e/h"
KGCO2E_PER_KWH = "suffix: kgCO2e/kWh"

_SQL = common_model.DataSourceRef(type_val="grafana-postgresql-datasource", uid=SQL_UID)


class _Query(variants.Dataquery):
    """A query of Grafana's PostgreSQL source, which the SDK has no type for."""

    def __init__(self, sql: str, form: str, ref_id: str) -> None:
        self._body = {
            "refId": ref_id,
            "datasource": {"type": _SQL.type_val, "uid": _SQL.uid},
            "editorMode": "code",
            "format": form,
            "rawQuery": True,
            "rawSql": sql,
        }

    def to_json(self) -> dict[str, object]:
        return self._body


class sql_query(Builder[variants.Dataquery]):  # noqa: N801 - reads as a word in a board
    """`sql_query("SELECT …", "time_series" | "table")`."""

    def __init__(self, sql: str, form: str = "table", ref_id: str = "A") -> None:
        self._query = _Query(" ".join(sql.split()), form, ref_id)

    def build(self) -> variants.Dataquery:
        return self._query


def steps(*limits: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Colours from each limit up; the first limit is None."""
    return (
        dashboard.ThresholdsConfig()
        .mode(model.ThresholdsMode.ABSOLUTE)
        .steps([model.Threshold(value=limit, color=color) for limit, color in limits])
    )


def number(panel_id: int, title: str, sql: str, unit: str, decimals: int = 1, limits: Any = None) -> stat.Panel:
    """One figure, the last of its query."""
    made = (
        stat.Panel()
        .id(panel_id)
        .title(title)
        .datasource(_SQL)
        .unit(unit)
        .decimals(decimals)
        .span(4)
        .height(4)
        .graph_mode(common_model.BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("/.*/"))
        .with_target(sql_query(sql))
    )
    return made.thresholds(limits or steps((None, "blue")))


def trend(panel_id: int, title: str, sql: str, unit: str, width: int = 12, stacked: bool = False) -> timeseries.Panel:
    """Lines over time; the query gives `time`, `metric` and one number."""
    made = (
        timeseries.Panel()
        .id(panel_id)
        .title(title)
        .datasource(_SQL)
        .unit(unit)
        .span(width)
        .height(9)
        .line_width(1)
        .fill_opacity(30 if stacked else 8)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(common_model.LegendDisplayMode.LIST)
            .placement(common_model.LegendPlacement.BOTTOM)
        )
        .with_target(sql_query(sql, "time_series"))
    )
    if stacked:
        made.stacking(common.StackingConfig().mode(common_model.StackingMode.NORMAL))
    return made


def bars(panel_id: int, title: str, sql: str, unit: str, width: int = 12) -> barchart.Panel:
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
        .with_target(sql_query(sql))
    )


def rows(panel_id: int, title: str, sql: str, width: int = 12, units: Sequence[tuple[str, str]] = ()) -> table.Panel:
    """A table as the query gives it; `units` by column name."""
    made = table.Panel().id(panel_id).title(title).datasource(_SQL).span(width).height(9).with_target(sql_query(sql))
    for column, unit in units:
        made.override_by_name(column, [model.DynamicConfigValue(id_val="unit", value=unit)])
    return made


def choice(name: str, label: str, sql: str) -> dashboard.QueryVariable:
    """A drop-down filled by a query."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(_SQL)
        .query(" ".join(sql.split()))
        .refresh(model.VariableRefresh.ON_DASHBOARD_LOAD)
        .sort(model.VariableSort.DISABLED)
    )


def alarm_annotations() -> dashboard.AnnotationQuery:
    """Alarms as marks on every time axis."""
    sql = """
    SELECT time, rule || ' ' || state AS text, state AS tags
    FROM board.alert_event WHERE $__timeFilter(time) ORDER BY time
    """
    return (
        dashboard.AnnotationQuery()
        .name("报警 Alarms")
        .datasource(_SQL)
        .enable(True)
        .icon_color("red")
        .placement(None)  # type: ignore[arg-type]  # else the toggle hides in a menu
        .target(sql_query(sql))  # type: ignore[arg-type]
    )
