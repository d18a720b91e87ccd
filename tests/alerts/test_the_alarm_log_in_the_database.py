"""The alarm log on a real PostgreSQL."""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator

import asyncpg
import pytest

from core.alerts import Alarms, AlertEvent
from core.alerts.log import PostgresAlertLog
from core.bus import LocalBus
from core.clock import parse_rfc3339
from core.errors import StoreUnavailable
from core.plant.model import AlertKind, AlertRule

T0_NS = parse_rfc3339("2026-10-01T00:00:00Z")
HIGH = AlertRule("too-high", AlertKind.LIMIT, "p", high=100.0)


@pytest.fixture
async def pool(database: str) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(database, min_size=0, max_size=2) as pool:
        yield pool


def event(rule: str, state: str, value: float = 1.5, who: str = "", **data: float | None) -> AlertEvent:
    return AlertEvent(rule, T0_NS, state, value, who, "", T0_NS + 1_000_000, data)


async def test_the_last_transition_and_the_last_shelving_of_each_rule_come_back(pool) -> None:
    log = PostgresAlertLog(pool)
    kept = [
        event("a", "active-unack", math.nan, since_ns=T0_NS),
        event("a", "shelved", who="li", shelved_until_ns=2 * T0_NS),
        event("b", "active-unack"),
        event("a", "active-ack", 2.5, who="li", since_ns=T0_NS, newest_ns=None),
    ]
    await log.append(kept)

    assert await log.last() == [kept[1], kept[2], kept[3]]


async def test_alarms_go_on_after_a_restart_where_the_database_left_them(pool, bench) -> None:
    b = bench(HIGH)
    first = Alarms(bench.plant_with(HIGH), PostgresAlertLog(pool), LocalBus(), b.clock)
    first.observe(bench.readings("p", (0, 120.0)))
    await first.acknowledge("too-high", "li", "seen")

    again = Alarms(bench.plant_with(HIGH), PostgresAlertLog(pool), LocalBus(), b.clock)
    await again.restore()

    assert again.one("too-high") == first.one("too-high")
    assert again.one("too-high")["acknowledged_by"] == "li"
    rows = await pool.fetch("SELECT state, who, note, value FROM ecmc.alert_event ORDER BY id")
    assert [tuple(row) for row in rows] == [
        ("active-unack", None, None, 120.0),
        ("active-ack", "li", "seen", 120.0),
    ]


async def test_a_database_that_is_away_is_said_to_be_away() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    async with asyncpg.create_pool(f"postgresql://x:y@127.0.0.1:{port}/z", min_size=0) as pool:
        with pytest.raises(StoreUnavailable):
            await PostgresAlertLog(pool).append([event("a", "normal")])
        with pytest.raises(StoreUnavailable):
            await PostgresAlertLog(pool).last()
