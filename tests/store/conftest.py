"""A store over a small plant, on the embedded server and, where one is given, on TimescaleDB."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from core.clock import parse_rfc3339
from core.plant.model import Edge, Kind, Label, MqttSource, Node, NodeKind, Plant, Point, PointMeter, Role
from core.results import SITE, Flow, IntervalEnergy, WindowResult
from core.samples import NS_PER_S, Floats
from core.store.postgres import PostgresStore

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


@pytest.fixture(params=["plain", "timescale"])
def store_dsn(request: pytest.FixtureRequest) -> str:
    """An empty ecmc database on the embedded server, and on the TimescaleDB server one may name."""
    databases = request.getfixturevalue("databases")
    if request.param == "timescale":
        dsn = os.environ.get("ECMC_TEST_TIMESCALE_DSN")
        if not dsn:
            pytest.skip("ECMC_TEST_TIMESCALE_DSN names no TimescaleDB server")
        databases = timescale_databases(type(databases), dsn)
    return str(databases.new())


@cache
def timescale_databases(kind: type[Any], dsn: str) -> Any:
    return kind(dsn)


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
