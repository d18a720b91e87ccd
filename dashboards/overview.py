"""能碳总览: what the plant draws, what that emits, and how far the figures can be trusted."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import units

from dashboards.panel import (
    KGCO2E,
    KGCO2E_PER_H,
    KGCO2E_PER_KWH,
    alarm_annotations,
    bars,
    choice,
    number,
    rows,
    steps,
    trend,
)

_FLOW = "basis = '$basis' AND method_set = '$method_set'"
_TODAY = """
SELECT sum({column}) AS "{name}" FROM board.{view}
WHERE time >= (SELECT date_trunc('day', now() AT TIME ZONE zone) AT TIME ZONE zone FROM board.plant) AND {where}
"""


def overview() -> dashboard.Dashboard:
    """The first board of the set, uid `ecmc-overview`."""
    return (
        dashboard.Dashboard("能碳总览 Energy and carbon")
        .uid("ecmc-overview")
        .tags(["ecmc"])
        .timezone("browser")
        .refresh("10s")
        .time("now-24h", "now")
        .with_variable(
            choice("method_set", "核算方法 Method", "SELECT DISTINCT method_set FROM board.flow ORDER BY method_set")
        )
        .with_variable(choice("basis", "口径 Basis", "SELECT DISTINCT basis FROM board.flow ORDER BY basis"))
        .annotation(alarm_annotations())
        .link(dashboard.DashboardLink("控制台 Console").type("link").url("/console/").icon("external link"))  # type: ignore[arg-type]
        .with_panel(
            number(
                1,
                "购电功率 Grid power",
                """
                SELECT energy_kwh * 4 AS "kW" FROM board.energy_15m JOIN board.node ON node = source
                WHERE kind = 'source' AND energy_15m.carrier = 'electricity' AND source = 'grid'
                AND time < now() - interval '15 minutes' ORDER BY time DESC LIMIT 1
                """,
                units.KiloWatt,
            )
        )
        .with_panel(
            number(
                2,
                "碳排放速率 Carbon rate",
                f"""
                SELECT sum(emissions_kgco2e) * 4 AS "kgCO2e/h" FROM board.emission_15m
                WHERE node = 'site' AND {_FLOW} AND time = (SELECT max(time) FROM board.emission_15m
                WHERE node = 'site' AND time < now() - interval '15 minutes')
                """,
                KGCO2E_PER_H,
            )
        )
        .with_panel(
            number(
                3,
                "今日用能 Energy today",
                _TODAY.format(column="through_kwh", name="kWh", view="balance_15m", where="node = 'site'"),
                units.KiloWattHour,
            )
        )
        .with_panel(
            number(
                4,
                "今日排放 Emissions today",
                _TODAY.format(
                    column="emissions_kgco2e", name="kgCO2e", view="emission_15m", where=f"node = 'site' AND {_FLOW}"
                ),
                KGCO2E,
            )
        )
        .with_panel(
            number(
                5,
                "数据完整率 Completeness",
                _TODAY.format(column="coverage", name="share", view="balance_15m", where="node = 'site'").replace(
                    "sum(coverage)", "avg(coverage)"
                ),
                units.PercentUnit,
                limits=steps((None, "red"), (0.9, "orange"), (0.98, "green")),
            )
        )
        .with_panel(
            number(
                6,
                "未恢复报警 Open alarms",
                "SELECT count(*) AS \"alarms\" FROM board.alert WHERE state LIKE 'active%'",
                units.Short,
                decimals=0,
                limits=steps((None, "green"), (1, "red")),
            )
        )
        .with_panel(
            trend(
                7,
                "各来源电能 Electricity by source",
                """
                SELECT $__timeGroup(time,'15m') AS time, source AS metric, sum(energy_kwh) * 4 AS value
                FROM board.energy_15m JOIN board.node ON node = source
                WHERE $__timeFilter(time) AND kind IN ('source','storage') AND energy_15m.carrier = 'electricity'
                GROUP BY 1, 2 ORDER BY 1
                """,
                units.KiloWatt,
                stacked=True,
            )
        )
        .with_panel(
            trend(
                8,
                "排放速率 Emissions by scope",
                f"""
                SELECT $__timeGroup(time,'15m') AS time, 'scope ' || scope AS metric, sum(emissions_kgco2e) * 4 AS value
                FROM board.emission_15m WHERE $__timeFilter(time) AND node = 'site' AND {_FLOW}
                GROUP BY 1, 2 ORDER BY 1
                """,
                KGCO2E_PER_H,
                stacked=True,
            )
        )
        .with_panel(
            bars(
                9,
                "各用能单元排放 Emissions by load",
                f"""
                SELECT n.name_zh || ' ' || n.name_en AS load, sum(e.emissions_kgco2e) AS "kgCO2e"
                FROM board.emission_15m AS e JOIN board.node AS n ON n.node = e.node
                WHERE $__timeFilter(e.time) AND e.kind IN ('load','export') AND {_FLOW}
                GROUP BY 1 ORDER BY 2 DESC NULLS LAST LIMIT 12
                """,
                KGCO2E,
            )
        )
        .with_panel(
            trend(
                10,
                "母线碳强度 Intensity of the buses",
                f"""
                SELECT $__timeGroup(time,'15m') AS time, node AS metric,
                sum(through_kgco2e) / nullif(max(through_kwh),0) AS value
                FROM board.emission_15m WHERE $__timeFilter(time) AND kind = 'bus' AND {_FLOW}
                GROUP BY 1, 2 ORDER BY 1
                """,
                KGCO2E_PER_KWH,
            )
        )
        .with_panel(
            rows(
                11,
                "节点平衡 Balance of nodes",
                """
                SELECT node, sum(in_kwh) AS in_kwh, sum(out_kwh) AS out_kwh, sum(residual_kwh) AS residual_kwh,
                avg(coverage) AS coverage FROM board.balance_15m
                WHERE $__timeFilter(time) AND kind IN ('bus','converter','storage') GROUP BY node ORDER BY node
                """,
                units=(
                    ("in_kwh", units.KiloWattHour),
                    ("out_kwh", units.KiloWattHour),
                    ("residual_kwh", units.KiloWattHour),
                    ("coverage", units.PercentUnit),
                ),
            )
        )
        .with_panel(
            rows(
                12,
                "报警 Alarms",
                "SELECT time, rule, state, value, who, note FROM board.alert WHERE state <> 'normal' ORDER BY time DESC",
            )
        )
    )
