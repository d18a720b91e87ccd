"""A store over a small plant, on the embedded server and, where one is given, on TimescaleDB."""

from __future__ import annotations

import atexit
import os
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from core.clock import parse_rfc3339
from core.plant.model import Edge, Kind, Label, MqttSource, Node, NodeKind, Plant, Point, PointMeter, Role
from core.quality import BAD, GOOD
from core.results import HOUR_NS, SITE, Flow, IntervalEnergy, WindowResult
from core.samples import NS_PER_S, Floats, PointTable, SampleBatch, batch_of_rows, sample_batch
from core.store.postgres import PostgresStore
from core.store.seam import Correction, Run

START_NS = parse_rfc3339("2026-10-01T00:00:00Z")

FLOWS = (Flow(1, "location", "zero-carbon-factory"), Flow(2, "location", "zero-carbon-factory"))


def small_plant(**changes: Any) -> Plant:
    source = MqttSource("meters/all", "$.kwh")  # a collected point: one without source is kept for years
    points = tuple(
        Point(f"p{i}", "active_energy_import_total", "kWh", Kind.COUNTER, source=source) for i in range(6)
    )
    given: dict[str, Any] = {
        "id": "p",
        "name": Label("厂", "Plant"),
        "zone": ZoneInfo("Asia/Shanghai"),
        "region": "CN-CQ",
        "base_interval_s": 60,
        "method_sets": ("zero-carbon-factory",),
        "areas": (),
        "connections": (),
        "devices": (),
        "points": points,
        "nodes": (
            Node("grid", NodeKind.SOURCE, "electricity"),
            Node("main", NodeKind.BUS, "electricity"),
            Node("bat", NodeKind.STORAGE, "electricity"),
            Node("press", NodeKind.LOAD, "electricity"),
        ),
        "edges": (
            Edge("e-grid", "grid", "main", PointMeter("p0", Role.REGISTER), "electricity"),
            Edge("e-press", "main", "press", PointMeter("p1", Role.REGISTER), "electricity"),
        ),
        "alerts": (),
        "folder": "",
        "fingerprint": "f1",
    }
    return Plant(**{**given, **changes})


def window(start_ns: int, hours: int, seed: int = 0, **columns: Floats) -> WindowResult:
    """Results of `hours` hours with random columns where none are given."""
    random = np.random.default_rng(seed)
    edges, nodes, storages = ("e-grid", "e-press"), ("grid", "main", "bat", "press", SITE), ("bat",)
    t = hours * 60
    given: dict[str, Any] = {
        "in_kwh": random.uniform(0.1, 2, (5, t)),
        "out_kwh": random.uniform(0.1, 2, (5, t)),
        "residual_kwh": random.normal(0, 0.1, (5, t)),
        "coverage": random.uniform(0, 1, (5, t)),
        "emissions_kg": random.uniform(0, 1, (5, 2, t)),
        "through_kg": random.uniform(0, 1, (5, 2, t)),
        "through_kwh": random.uniform(0.1, 2, (5, t)),
        "stock_kwh": random.uniform(0, 100, (1, hours + 1)),
        "stock_kg": random.uniform(0, 100, (1, 2, hours + 1)),
    }
    energy_kwh = columns.pop("energy_kwh", random.uniform(0, 2, (2, t)))
    energy = IntervalEnergy(
        energy_kwh, random.uniform(0, 1, (2, t)), energy_kwh * 0.25, np.zeros((2, t), dtype=np.int16)
    )
    base_ns = 60 * NS_PER_S
    return WindowResult(start_ns, base_ns, edges, nodes, FLOWS, storages, energy, **{**given, **columns})


TIMESCALE = {"community": "ECMC_TEST_TIMESCALE_DSN", "apache": "ECMC_TEST_TIMESCALE_APACHE_DSN"}


@pytest.fixture(params=["plain", *TIMESCALE])
def store_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty ecmc database on the embedded server, and on the TimescaleDB servers one may name, by licence."""
    databases = request.getfixturevalue("databases")
    if request.param != "plain":
        dsn = os.environ.get(TIMESCALE[request.param])
        if not dsn:
            pytest.skip(f"{TIMESCALE[request.param]} names no TimescaleDB server")
        databases = timescale_databases(type(databases), dsn)
    made = str(databases.new())
    yield made
    if request.param != "plain":
        databases.drop(made)


@cache
def timescale_databases(kind: type[Any], dsn: str) -> Any:
    made = kind(dsn)
    atexit.register(made.drop_template)  # its server outlives the tests
    return made


@pytest.fixture
async def store(store_dsn: str) -> AsyncIterator[PostgresStore]:
    opened = await PostgresStore.open(store_dsn, small_plant())
    yield opened
    await opened.close()


@pytest.fixture(scope="session", name="window")
def window_maker() -> Callable[..., WindowResult]:
    return window


@pytest.fixture
async def with_gauge(store: PostgresStore) -> Point:
    """A gauge the store's plant has besides its registers."""
    gauge = Point("g0", "active_power_total", "kW", Kind.GAUGE)
    plant = small_plant()
    await store.adopt(small_plant(points=(*plant.points, gauge), fingerprint="f2"))
    return gauge


@pytest.fixture(scope="session")
def plant() -> Plant:
    return small_plant()


@pytest.fixture
def fill() -> Callable[..., Any]:
    return filled


async def filled(dsn: str, weeks: int = 6, rows_a_week: int = 500) -> None:
    """Put something into nearly every table: samples with corrections, results, alarms, what people keep."""
    plant = small_plant()
    store = await PostgresStore.open(dsn, plant)
    try:
        for week in range(weeks):
            await store.write(_week_of_samples(week, rows_a_week))
        wrong = batch_of_rows([("p0", START_NS, 99.5, 0), ("p2", START_NS, 98.5, 0)])
        await store.write(wrong, Correction("eve", "read again", START_NS))
        for month in range(2):
            await store.write_window(
                window(START_NS + month * 31 * 24 * HOUR_NS, 3, seed=month), Run(START_NS, "f1", "samples")
            )
        await store.refresh_gauges()
        await store.pool.execute(_KEPT_BY_PEOPLE)
    finally:
        await store.close()


def _week_of_samples(week: int, rows: int) -> SampleBatch:
    random = np.random.default_rng(week)
    step_ns = 7 * 24 * HOUR_NS // rows // 1000 * 1000
    time_ns = START_NS + week * 7 * 24 * HOUR_NS + np.arange(rows) * step_ns
    value = np.where(random.random(rows) < 0.01, np.nan, random.normal(100, 20, rows))
    status = np.where(np.isnan(value), BAD, GOOD)
    return sample_batch(
        PointTable(tuple(f"p{i}" for i in range(6))), np.arange(rows) % 6, time_ns, value, status
    )


_KEPT_BY_PEOPLE = r"""
INSERT INTO ecmc.alert_event (rule, time, state, value, data) VALUES ('a', now(), 'unack', 3.5, '{"limit": 3}');
INSERT INTO ecmc.meter_event (device, time, kind, who, why) VALUES ('m', now(), 'replaced', 'eve', '坏了');
INSERT INTO ecmc.entry (register, subject, start_time, end_time, body, who, at)
VALUES ('activity', 'diesel', now(), now() + interval '1 day', '{"amount_t": 1.5}', 'eve', now());
INSERT INTO ecmc.certificate VALUES ('G1', '2026-03', 'wind', 'CN-CQ', 'held', true, '2026-03-01', NULL),
    ('g2', '2026-03', 'pv', 'CN-CQ', 'held', true, '2026-03-01', 'x');
INSERT INTO ecmc.evidence VALUES (repeat('ab', 32), 'bill.pdf', 'application/pdf', '\x00ff10', 'eve', now());
"""
