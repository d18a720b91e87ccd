"""What accounting costs: a year's inventory, five method sets against one, factors by the million.

Run: pytest -s tests/benchmarks/test_accounting_speed.py. Figures are the best of a few runs.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from core.answers.inventory import Inventories
from core.answers.period import Periods
from core.bus import LocalBus
from core.carbon.factors import FactorLibrary
from core.carbon.method import METHOD_SET_IDS
from core.clock import SystemClock, parse_rfc3339
from core.compute.engine import Engine
from core.compute.pipeline import Pipeline
from core.health import Health
from core.plant.load import load_plant
from core.plant.model import Plant
from core.registers.shelf import Registers
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store.factor_use import factors_used
from core.store.postgres import PostgresStore

DEMO = Path(__file__).resolve().parents[2] / "simulators" / "plants" / "demo"
PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
YEAR = parse_rfc3339("2024-12-31T16:00:00Z"), parse_rfc3339("2025-12-31T16:00:00Z")


@pytest.fixture(scope="module")
def plant() -> Plant:
    """The demo plant in quarters of an hour."""
    return replace(load_plant(DEMO, [PROFILES]), base_interval_s=900)


def readings(plant: Plant, points: tuple[str, ...]) -> SampleBatch:
    """Every register and power of the network, each quarter of an hour of a year, counting at its own pace."""
    table = PointTable(points)
    every_ns = np.arange(YEAR[0], YEAR[1] + 1, 900 * NS_PER_S)
    hours = (every_ns - every_ns[0]) / (3600 * NS_PER_S)
    value = np.concatenate([hours * (5.0 + i) for i in range(len(points))])
    point = np.repeat(np.arange(len(points), dtype=np.int32), hours.size)
    return sample_batch(table, point, np.tile(every_ns, len(points)), value)


def best_s(times: int, work: object) -> float:
    assert callable(work)
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def test_five_method_sets_against_one(plant: Plant) -> None:
    library = FactorLibrary.shipped()

    def engine(*method_sets: str) -> Engine:
        return Engine(replace(plant, method_sets=method_sets), library)

    one, five = engine(METHOD_SET_IDS[0]), engine(*METHOD_SET_IDS[:5])
    year = readings(plant, tuple(one.points))
    now_ns = parse_rfc3339("2026-11-23T00:00:00Z")
    one_s = best_s(3, lambda: one.compute(year, *YEAR, None, now_ns))
    five_s = best_s(3, lambda: five.compute(year, *YEAR, None, now_ns))

    print(
        f"\na year in quarters, {len(plant.nodes)} nodes: one method set {one_s * 1e3:.0f} ms, "
        f"five {five_s * 1e3:.0f} ms, ratio {five_s / one_s:.2f}, at most 2"
    )


def test_a_factor_lookup_of_ten_million_rows() -> None:
    library, zone = FactorLibrary.shipped(), ZoneInfo("Asia/Shanghai")
    time_ns = np.random.default_rng(3).integers(*YEAR, 10_000_000)
    bounds = np.array([parse_rfc3339(f"{year}-01-01T00:00:00Z") for year in range(2010, 2028)])
    now_ns = parse_rfc3339("2026-11-23T00:00:00Z")

    def looked_up() -> object:
        return library.grid_factor("CN-CQ", time_ns, zone=zone, known_at_ns=now_ns)

    searched_s = best_s(5, lambda: np.searchsorted(bounds, time_ns, side="right"))
    taken_s = best_s(5, looked_up)

    print(
        f"\n10 M factors by time: {taken_s:.2f} s, one searchsorted {searched_s:.2f} s, "
        f"ratio {taken_s / searched_s:.2f}, at most 3"
    )


async def test_the_inventory_of_a_year(plant: Plant, database: str) -> None:
    store = await PostgresStore.open(database, plant)
    library = FactorLibrary.shipped()
    pipeline = Pipeline(Engine(plant, library), store, LocalBus(), Health(), SystemClock())
    year = readings(plant, tuple(Engine(plant, library).points))
    order = np.argsort(year.time_ns, kind="stable")
    for first in range(0, len(year), 100_000):
        await store.write(year.take(order[first : first + 100_000]))
    await pipeline.drain()
    await store.pool.execute("ANALYZE")
    registers = Registers(store.pool, plant, library)
    periods = Periods(plant, store, library, registers)
    inventories = Inventories(plant, store, periods, registers, partial(factors_used, store.pool))

    taken = []
    for _ in range(5):
        began = time.perf_counter()
        made = await inventories.of(*YEAR, plant.method_sets[0])
        taken.append(time.perf_counter() - began)
    await store.close()

    assert len(made.month_ns) == 12
    print(f"\ninventory of a year, {len(plant.nodes)} nodes: {min(taken) * 1e3:.0f} ms, at most 200")
