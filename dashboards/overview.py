"""能碳总览: what the plant draws, what that emits, and how far the figures can be trusted."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models import units

from dashboards.panel import (
    KGCO2E,
    KGCO2E_PER_H,
    KGCO2E_PER_KWH,
    TCE,
    TCO2E,
    Query,
    alarm_annotations,
    bars,
    change,
    choice,
    now,
    number,
    rows,
    shares,
    sql,
    steps,
    trend,
)

_SITE = "node = 'site'"
_FLOW = "basis = '$basis' AND method_set = '$method_set'"
_ENERGY, _EMISSIONS = f"sum(in_kwh)|balance|{_SITE}", f"sum(emissions_kgco2e)|emission|{_SITE} AND {_FLOW}"

# The last quarter of an hour that is over, by the plant's own clock.
_CLOCK = """
clock AS (SELECT zone, date_bin('15 minutes', now() AT TIME ZONE zone, timestamp '2000-01-01') AS here FROM board.plant)
"""


def _so_far(what: str, unit: str, name: str, per: float = 1) -> Query:
    """A sum since the plant's day, month or year began; unknown where a part of it is.

    A year adds up hours, so one that begins at half past an hour of UTC is cut at the hour.
    """
    figure, view, where = what.split("|")
    scale = f" / {per:g}" if per != 1 else ""
    return sql(f"""
        SELECT nullif({figure}, 'NaN'){scale} AS "{name}" FROM board.{view}_{"1h" if unit == "year" else "15m"}
        WHERE time >= (SELECT date_trunc('{unit}', now() AT TIME ZONE zone) AT TIME ZONE zone FROM board.plant)
        AND {where}
    """)


def _against(what: str, unit: str) -> Query:
    """The period so far against as much of the one before; unknown where that one is not there whole."""
    figure, view, where = what.split("|")
    return sql(f"""
        WITH {_CLOCK}, span AS (
          SELECT date_trunc('{unit}', here) AT TIME ZONE zone AS start, here AT TIME ZONE zone AS finish,
          (date_trunc('{unit}', here) - interval '1 {unit}') AT TIME ZONE zone AS start_before,
          (here - interval '1 {unit}') AT TIME ZONE zone AS finish_before FROM clock
        ), this AS (
          SELECT {figure} AS amount FROM board.{view}_15m, span WHERE time >= start AND time < finish AND {where}
        ), before AS (
          SELECT {figure} AS amount,
          count(DISTINCT time) * interval '15 minutes' >= 0.95 * (max(finish_before) - max(start_before)) AS whole
          FROM board.{view}_15m, span WHERE time >= start_before AND time < finish_before AND {where}
        )
        SELECT nullif(this.amount / nullif(before.amount, 0), 'NaN') - 1 AS "change" FROM this, before WHERE whole
    """)


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
            choice(
                "method_set",
                "核算方法 Method",
                """
                SELECT method_set FROM (
                  SELECT method_set, 0 AS place FROM board.plant
                  UNION ALL
                  SELECT DISTINCT method_set, 1 FROM board.emission_1h WHERE time > now() - interval '2 days'
                ) AS kept GROUP BY method_set ORDER BY min(place), method_set
                """,
            )
        )
        .with_variable(
            dashboard.CustomVariable("basis")
            .label("口径 Basis")
            .values("地点法 location : location, 市场法 market : market")
        )
        .with_variable(dashboard.ConstantVariable("console").value("http://127.0.0.1:8000/console/"))
        .annotation(alarm_annotations())
        .link(
            dashboard.DashboardLink("控制台 Console")
            .type(model.DashboardLinkType.LINK)
            .url("$console")
            .icon("external link")
        )
        # now
        .with_panel(
            number(
                1,
                "购电功率 Grid power",
                now('sum(ecmc_live_power_kw{kind="source",carrier="electricity",origin="purchased"})'),
                units.KiloWatt,
                note="实时估算 Live estimate",
            )
        )
        .with_panel(
            number(
                2,
                "自发电功率 Own generation",
                now('sum(ecmc_live_power_kw{kind="source",carrier="electricity",origin!="purchased"})'),
                units.KiloWatt,
                note="实时估算 Live estimate",
            )
        )
        .with_panel(
            number(
                3,
                "碳排放速率 Carbon rate",
                now('ecmc_live_emissions_kgco2e_per_h{node="site"}'),
                KGCO2E_PER_H,
                note="实时估算，地点法，默认核算方法 Live estimate, location-based, the plant's first method",
            )
        )
        .with_panel(
            number(
                4,
                "今日碳强度 Intensity today",
                sql(f"""
                    WITH today AS (
                      SELECT date_trunc('day', now() AT TIME ZONE zone) AT TIME ZONE zone AS start FROM board.plant
                    )
                    SELECT nullif(sum(kg) / nullif(sum(kwh), 0), 'NaN') AS "kgCO2e/kWh" FROM (
                      SELECT sum(through_kgco2e) AS kg, max(through_kwh) AS kwh FROM board.emission_15m, today
                      WHERE time >= start AND {_SITE} AND {_FLOW} GROUP BY time
                    ) AS quarter
                """),
                KGCO2E_PER_KWH,
                decimals=3,
            )
        )
        .with_panel(
            number(
                5,
                "今日数据完整率 Completeness today",
                sql(f"""
                    WITH {_CLOCK}
                    SELECT coalesce(sum(coverage), 0) * 900 / nullif(max(elapsed_s), 0) AS "share" FROM (
                      SELECT date_trunc('day', here) AT TIME ZONE zone AS start, here AT TIME ZONE zone AS finish,
                      extract(epoch FROM here - date_trunc('day', here)) AS elapsed_s FROM clock
                    ) AS today
                    LEFT JOIN board.balance_15m ON time >= start AND time < finish AND {_SITE}
                """),
                units.PercentUnit,
                limits=steps((None, "red"), (0.9, "orange"), (0.98, "green")),
                note="由良好读数支撑的时间占比 Share of the day's time backed by good readings",
            )
        )
        .with_panel(
            number(
                6,
                "未恢复报警 Open alarms",
                sql("""
                    SELECT count(*) AS "alarms" FROM (
                      SELECT DISTINCT ON (rule) state FROM board.alert_event
                      WHERE state NOT IN ('shelved', 'unshelved') ORDER BY rule, id DESC
                    ) AS newest WHERE state LIKE 'active%'
                """),
                units.Short,
                decimals=0,
                limits=steps((None, "green"), (1, "red")),
            )
        )
        # so far
        .with_panel(number(7, "今日用能 Energy today", _so_far(_ENERGY, "day", "kWh"), units.KiloWattHour))
        .with_panel(
            number(8, "本月用能 Energy this month", _so_far(_ENERGY, "month", "kWh"), units.KiloWattHour)
        )
        .with_panel(
            number(9, "本年用能 Energy this year", _so_far(_ENERGY, "year", "kWh"), units.KiloWattHour)
        )
        .with_panel(number(10, "今日排放 Emissions today", _so_far(_EMISSIONS, "day", "kgCO2e"), KGCO2E))
        .with_panel(
            number(
                11,
                "本月排放 Emissions this month",
                _so_far(_EMISSIONS, "month", "tCO2e", 1000),
                TCO2E,
                decimals=2,
            )
        )
        .with_panel(
            number(
                12,
                "本年排放 Emissions this year",
                _so_far(_EMISSIONS, "year", "tCO2e", 1000),
                TCO2E,
                decimals=2,
            )
        )
        # against before, and how far to trust it
        .with_panel(change(13, "用能较昨日同期 Energy vs yesterday", _against(_ENERGY, "day")))
        .with_panel(change(14, "用能较上月同期 Energy vs last month", _against(_ENERGY, "month")))
        .with_panel(change(15, "排放较昨日同期 Emissions vs yesterday", _against(_EMISSIONS, "day")))
        .with_panel(change(16, "排放较上月同期 Emissions vs last month", _against(_EMISSIONS, "month")))
        .with_panel(
            number(
                17,
                "今日估算占比 Estimated today",
                sql("""
                    SELECT sum(estimated_kwh) / nullif(sum(energy_kwh), 0) AS "share"
                    FROM board.energy_15m JOIN board.node ON node = source
                    WHERE kind = 'source' AND time >= (
                      SELECT date_trunc('day', now() AT TIME ZONE zone) AT TIME ZONE zone FROM board.plant
                    )
                """),
                units.PercentUnit,
                limits=steps((None, "green"), (0.02, "orange"), (0.1, "red")),
                note="由分摊或替代得到的电能占比 Share of the energy placed by spreading or substitution",
            )
        )
        .with_panel(
            number(
                18,
                "今日综合能耗 Standard coal today",
                now(
                    'sum(ecmc_indicator{indicator="energy_tce",period="day",basis="calorific",method_set="$method_set"})'
                ),
                TCE,
                decimals=3,
                note="当量值 By heat content",
            )
        )
        # over time
        .with_panel(
            trend(
                19,
                "各来源功率 Power by source",
                """
                SELECT $__timeGroup(time,'$__interval') AS time, metric, avg(kw) AS value FROM (
                  SELECT time, n.name_zh || ' ' || n.name_en AS metric, sum(energy_kwh) * 4 AS kw
                  FROM board.energy_15m AS e JOIN board.node AS n ON n.node = e.source
                  WHERE $__timeFilter(time) AND n.kind IN ('source','storage') AND e.carrier = 'electricity'
                  GROUP BY time, metric
                ) AS quarter GROUP BY 1, 2 ORDER BY 1
                """,
                units.KiloWatt,
                stacked=True,
            )
        )
        .with_panel(
            trend(
                20,
                "分范围排放速率 Emissions by scope",
                f"""
                SELECT $__timeGroup(time,'$__interval') AS time, '范围 scope ' || scope AS metric,
                nullif(avg(emissions_kgco2e) * 4, 'NaN') AS value
                FROM board.emission_15m WHERE $__timeFilter(time) AND {_SITE} AND {_FLOW}
                GROUP BY 1, 2 ORDER BY 1
                """,
                KGCO2E_PER_H,
                stacked=True,
            )
        )
        .with_panel(
            shares(
                21,
                "所选时段分范围排放 Emissions by scope",
                f"""
                SELECT '范围 scope ' || scope AS scope, nullif(sum(emissions_kgco2e), 'NaN') AS "kgCO2e"
                FROM board.emission_15m WHERE $__timeFilter(time) AND {_SITE} AND {_FLOW} GROUP BY 1 ORDER BY 1
                """,
                KGCO2E,
            )
        )
        .with_panel(
            bars(
                22,
                "各用能单元排放 Emissions by load",
                f"""
                SELECT n.name_zh || ' ' || n.name_en AS load, nullif(sum(e.emissions_kgco2e), 'NaN') AS "kgCO2e"
                FROM board.emission_15m AS e JOIN board.node AS n ON n.node = e.node
                WHERE $__timeFilter(e.time) AND e.kind IN ('load','export') AND {_FLOW}
                GROUP BY 1 ORDER BY 2 DESC NULLS LAST LIMIT 12
                """,
                KGCO2E,
                width=8,
            )
        )
        .with_panel(
            bars(
                23,
                "设备功率前十 Ten largest meters now",
                """
                SELECT device, power_kw AS "kW" FROM board.power_latest JOIN board.point USING (point, device)
                WHERE quantity = 'active_power_total' AND quality = 'good' AND time > now() - interval '5 minutes'
                ORDER BY power_kw DESC LIMIT 10
                """,
                units.KiloWatt,
                width=8,
            )
        )
        .with_panel(
            trend(
                24,
                "母线碳强度 Intensity of the buses",
                f"""
                SELECT $__timeGroup(time,'$__interval') AS time, metric,
                nullif(sum(kg) / nullif(sum(kwh), 0), 'NaN') AS value FROM (
                  SELECT e.time, n.name_zh || ' ' || n.name_en AS metric, sum(through_kgco2e) AS kg, max(through_kwh) AS kwh
                  FROM board.emission_15m AS e JOIN board.node AS n ON n.node = e.node
                  WHERE $__timeFilter(e.time) AND e.kind = 'bus' AND {_FLOW} GROUP BY 1, 2
                ) AS quarter GROUP BY 1, 2 ORDER BY 1
                """,
                KGCO2E_PER_KWH,
            )
        )
        .with_panel(
            rows(
                25,
                "节点平衡 Balance of nodes",
                """
                SELECT node, nullif(sum(in_kwh), 'NaN') AS in_kwh, nullif(sum(out_kwh), 'NaN') AS out_kwh,
                nullif(sum(residual_kwh), 'NaN') AS residual_kwh, avg(coverage) AS coverage FROM board.balance_15m
                WHERE $__timeFilter(time) AND kind IN ('bus','converter','storage') GROUP BY node ORDER BY node
                """,
                units_of=(
                    ("in_kwh", units.KiloWattHour),
                    ("out_kwh", units.KiloWattHour),
                    ("residual_kwh", units.KiloWattHour),
                    ("coverage", units.PercentUnit),
                ),
            )
        )
        .with_panel(
            rows(
                26,
                "报警 Alarms",
                """
                SELECT a.time, a.rule, c.state AS condition, a.state = 'shelved' AS shelved, a.value, a.who, a.note
                FROM board.alert AS a CROSS JOIN LATERAL (
                  SELECT state FROM board.alert_event AS e
                  WHERE e.rule = a.rule AND e.state NOT IN ('shelved','unshelved') ORDER BY id DESC LIMIT 1
                ) AS c
                WHERE c.state <> 'normal' OR a.state = 'shelved' ORDER BY a.time DESC
                """,
                width=24,
            )
        )
    )
