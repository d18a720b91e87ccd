"""Every query of every board runs on PostgreSQL as Grafana would send it, and gives the figures worked by hand."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from dashboards.build import FOLDER
from dashboards.check import SQL, Asked, BoardQuery, FaultyQuery, queries, rendered

Ask = Callable[..., str]

ALL_QUERIES = [
    pytest.param(query, id=f"{path.stem} {query.where}")
    for path in sorted(FOLDER.glob("*.json"))
    for query in queries(json.loads(path.read_text("utf-8")))
    if query.source_type == SQL
]


@pytest.mark.parametrize("timescale", [False, True], ids=["plain", "timescale"])
@pytest.mark.parametrize("query", ALL_QUERIES)
async def test_a_query_runs_with_and_without_timescale(
    query: BoardQuery, timescale: bool, connection: Any, ask: Ask
) -> None:
    if timescale:  # the schema's own time_bucket stands where TimescaleDB's would
        await connection.execute("SET search_path = public, ecmc")

    statement = await connection.prepare(ask(query.text, timescale))
    rows = await statement.fetch()

    names = [attribute.name for attribute in statement.get_attributes()]
    assert rows, "the database holds data for every query"
    assert len(set(names)) == len(names)
    if query.form == "time_series":
        assert names == ["time", "metric", "value"]
        assert all(isinstance(row["time"], datetime if timescale else Decimal | float) for row in rows)
        assert all(isinstance(row["value"], float) for row in rows)
        assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


@pytest.mark.parametrize("query", ALL_QUERIES)
async def test_a_query_needs_no_right_beyond_the_boards_role(
    query: BoardQuery, grafana_dsn: str, ask: Ask
) -> None:
    connection = await asyncpg.connect(grafana_dsn)
    try:
        await (await connection.prepare(ask(query.text))).fetch()
    finally:
        await connection.close()


# October: 1 kWh a minute until 12:07 on the 5th; September: 2 kWh a minute from the 1st to 13:00 on the 5th.
# Per kWh 0.1 kg of scope 1 and 0.4 kg of scope 2.
FIGURES = {
    "今日用能 Energy today": 12 * 60 + 7,
    "本月用能 Energy this month": 4 * 1440 + 727,
    "本年用能 Energy this year": 4 * 1440 + 727 + 2 * (4 * 1440 + 13 * 60),
    "今日排放 Emissions today": 727 * 0.5,
    "本月排放 Emissions this month": (4 * 1440 + 727) * 0.5 / 1000,
    "本年排放 Emissions this year": (4 * 1440 + 727 + 2 * (4 * 1440 + 13 * 60)) * 0.5 / 1000,
    "今日碳强度 Intensity today": 0.5,
    "今日数据完整率 Completeness today": 0.9,
    "今日估算占比 Estimated today": 0.25,
    "用能较昨日同期 Energy vs yesterday": 0.0,
    "用能较上月同期 Energy vs last month": -0.5,
    "排放较昨日同期 Emissions vs yesterday": 0.0,
    "排放较上月同期 Emissions vs last month": -0.5,
    "未恢复报警 Open alarms": 1,
}


@pytest.mark.parametrize("title", FIGURES)
async def test_a_figure_is_what_a_hand_calculation_gives(
    title: str, connection: Any, ask: Ask, boards: dict[str, Any]
) -> None:
    panel = next(panel for panel in boards["overview"]["panels"] if panel["title"] == title)

    figure = await connection.fetchval(ask(panel["targets"][0]["rawSql"]))

    assert float(figure) == pytest.approx(FIGURES[title])


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("各来源功率 Power by source", {"电网 Grid": 60.0}),
        ("分范围排放速率 Emissions by scope", {"范围 scope 1": 6.0, "范围 scope 2": 24.0}),
        ("母线碳强度 Intensity of the buses", {"母线 Main": 0.5}),
    ],
)
async def test_a_trend_shows_the_rate_of_a_whole_quarter(
    title: str, expected: dict[str, float], connection: Any, ask: Ask, boards: dict[str, Any]
) -> None:
    panel = next(panel for panel in boards["overview"]["panels"] if panel["title"] == title)

    rows = await connection.fetch(ask(panel["targets"][0]["rawSql"]))

    noon = {row["metric"]: row["value"] for row in rows if float(row["time"]) == 1791169200 + 3600 - 900}
    assert noon == pytest.approx(expected)


async def test_an_unknown_minute_makes_the_day_unknown_and_never_smaller(
    connection: Any, ask: Ask, boards: dict[str, Any]
) -> None:
    panel = next(
        panel for panel in boards["overview"]["panels"] if panel["title"] == "今日排放 Emissions today"
    )
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "UPDATE ecmc.emission_15m SET emissions_kg = 'NaN' WHERE start = '2026-10-05T01:00Z'"
    )

    figure = await connection.fetchval(ask(panel["targets"][0]["rawSql"]))

    await transaction.rollback()
    assert figure is None


async def test_a_comparison_is_unknown_where_the_day_before_is_not_there_whole(
    connection: Any, ask: Ask, boards: dict[str, Any]
) -> None:
    panel = next(
        p for p in boards["overview"]["panels"] if p["title"] == "用能较昨日同期 Energy vs yesterday"
    )
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute(
        "DELETE FROM ecmc.node_15m WHERE start BETWEEN '2026-10-03T22:00Z' AND '2026-10-04T01:00Z'"
    )

    figure = await connection.fetchval(ask(panel["targets"][0]["rawSql"]))

    await transaction.rollback()
    assert figure is None


async def test_the_table_of_alarms_shows_the_condition_behind_a_shelf(
    connection: Any, ask: Ask, boards: dict[str, Any]
) -> None:
    panel = next(panel for panel in boards["overview"]["panels"] if panel["title"] == "报警 Alarms")

    rows = await connection.fetch(ask(panel["targets"][0]["rawSql"]))

    assert [(row["rule"], row["condition"], row["shelved"]) for row in rows] == [
        ("hot", "active-unack", True)
    ]


async def test_the_default_method_comes_first_in_its_list(
    connection: Any, ask: Ask, boards: dict[str, Any]
) -> None:
    variable = next(v for v in boards["overview"]["templating"]["list"] if v["name"] == "method_set")

    rows = await connection.fetch(ask(variable["query"]))

    assert [row[0] for row in rows] == ["zero-carbon-factory"]


# the role ---------------------------------------------------------------------
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM ecmc.latest",
        "DELETE FROM board.point",
        "CREATE TABLE board.mine (x int)",
        "CREATE TABLE public.mine (x int)",
        "SELECT ecmc.grant_boards('grafana')",
        "SET ROLE pg_read_all_data",
    ],
)
async def test_the_boards_role_may_do_nothing_but_read_views(statement: str, grafana_dsn: str) -> None:
    connection = await asyncpg.connect(grafana_dsn)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_the_boards_role_reads_views_that_are_added_later(grafana_dsn: str, connection: Any) -> None:
    await connection.execute("CREATE VIEW board.later AS SELECT 1 AS one")

    reader = await asyncpg.connect(grafana_dsn)
    try:
        assert await reader.fetchval("SELECT one FROM board.later") == 1
    finally:
        await reader.close()
        await connection.execute("DROP VIEW board.later")


async def test_making_the_role_again_changes_its_password(
    database: str, make_board_role: Callable[[str, str | None], None]
) -> None:
    make_board_role(database, "first password")
    make_board_role(database, "second password")

    reader = await asyncpg.connect(f"postgresql://grafana:second%20password@{database.split('@', 1)[1]}")
    assert await reader.fetch("SELECT * FROM board.point") == []
    await reader.close()


# Grafana's macros -------------------------------------------------------------
RANGE = Asked(
    datetime.fromisoformat("2026-10-05T00:00:00+08:00"),
    datetime.fromisoformat("2026-10-05T12:00:00+08:00"),
    "5m",
    {"node": "site"},
)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("$__timeFilter(time)", "time BETWEEN '2026-10-04T16:00:00Z' AND '2026-10-05T04:00:00Z'"),
        ("$__timeFrom() $__timeTo()", "'2026-10-04T16:00:00Z' '2026-10-05T04:00:00Z'"),
        ("$__timeGroup(t,'15m') AS t", "floor(extract(epoch from t)/900)*900 AS t"),
        ("$__timeGroup(t,'15m'), x", 'floor(extract(epoch from t)/900)*900 AS "time", x'),
        ("$__timeGroupAlias(t,$__interval)", 'floor(extract(epoch from t)/300)*300 AS "time"'),
        ("$__unixEpochFilter(s)", "s >= 1791129600 AND s <= 1791172800"),
        ("'$node' ${node} $__interval_ms", "'site' site 300000"),
        ("'a$1'", "'a$1'"),
    ],
)
def test_a_macro_becomes_what_grafana_sends(text: str, sent: str) -> None:
    assert rendered(text, RANGE) == sent


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("SELECT $__timeGroup(date_trunc('hour', time),'1h')", "is no interval"),
        ("SELECT * WHERE $__timeFiler(time)", "unknown macro"),
        ("SELECT '$nothing'", "variable $nothing is not defined"),
        ("SELECT $__timeGroup(time,'often')", "is no interval"),
        ("SELECT $__timeGroup(time)", "needs 2 arguments"),
        ("SELECT $__timeFilter()", "needs 1 arguments"),
        ("SELECT * WHERE $__timeFilter", "has no arguments"),
    ],
)
def test_a_query_grafana_would_refuse_is_refused_here(text: str, told: str) -> None:
    with pytest.raises(FaultyQuery, match=told.replace("$", r"\$")):
        rendered(text, RANGE)


async def test_the_server_refuses_a_column_the_views_do_not_have(connection: Any, ask: Ask) -> None:
    with pytest.raises(asyncpg.UndefinedColumnError):
        await connection.prepare(ask("SELECT kilowatts FROM board.energy_15m"))


def test_the_role_is_not_made_without_a_password(
    database: str, make_board_role: Callable[[str, str | None], None]
) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        make_board_role(database, None)
