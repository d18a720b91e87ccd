"""Interval rows a second of a restatement. Run: pytest -s tests/benchmarks/test_recompute_speed.py

A row is an edge in a base interval: 50 nodes, 100 edges, minutes, traced at the minute. Wall time says little on a
machine with other work, so the processor's time is printed beside it: rows a core-second of the best part, times two.
"""

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from core.bus import LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import SystemClock, parse_rfc3339
from core.compute.engine import Engine
from core.compute.history import History
from core.compute.pipeline import Pipeline
from core.compute.workers import Workers, begin_worker
from core.health import Health
from core.plant.load import load_plant
from core.plant.model import Plant
from core.proof.recompute import recompute
from core.proof.restate import GROUP_CELLS, Asked, Part, count_part, restate
from core.results import HOUR_NS
from core.samples import NS_PER_S, Floats, PointTable, sample_batch
from core.store.part import energy_schema, part_writer
from core.store.postgres import PostgresStore
from core.store.rollup import Ends

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START_NS = parse_rfc3339("2026-03-01T00:00:00Z")
BASE_NS = 60 * NS_PER_S
OLD_NS, NEW_NS = parse_rfc3339("2025-06-01T00:00:00Z"), parse_rfc3339("2026-11-01T00:00:00Z")


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """10 sources, 20 buses in a chain with cross ties, 20 loads; 100 edges, each with a register."""
    rng = np.random.default_rng(7)
    grid, own = "origin: purchased, factor: grid", "origin: own, factor: 0"
    nodes = [f"{{id: s{i}, kind: source, carrier: electricity, {grid if i % 3 else own}}}" for i in range(10)]
    nodes += [f"{{id: b{i}, kind: bus, carrier: electricity}}" for i in range(20)]
    nodes += [f"{{id: l{i}, kind: load, carrier: electricity}}" for i in range(20)]
    ends = [(f"s{i}", f"b{i}") for i in range(10)] + [(f"b{i}", f"b{i + 1}") for i in range(19)]
    ends += [(f"b{i * 3 % 20}", f"l{i}") for i in range(20)] + [("b19", "l0")]
    while len(ends) < 100:
        low, high = sorted(rng.choice(20, 2, replace=False).tolist())
        if (tie := (f"b{low}", f"b{high}")) not in ends:
            ends.append(tie)
    edges = [f"{{id: e{i}, from: {a}, to: {b}, meter: p{i}}}" for i, (a, b) in enumerate(ends)]
    lists = [
        "network:",
        "  nodes:",
        *(f"    - {n}" for n in nodes),
        "  edges:",
        *(f"    - {e}" for e in edges),
    ]
    head = ["plant: big", "name: {zh: 大厂, en: Big}", "zone: Asia/Shanghai", "region: CN-CQ"]
    head += ["base_interval_s: 60", "method_sets: [zero-carbon-factory]"]
    (tmp_path / "plant.yaml").write_text("\n".join([*head, *lists]) + "\n", "utf-8")
    points = [f"p{i},,,active_energy_import_total,kWh,60" for i in range(100)]
    (tmp_path / "points.csv").write_text(
        "\n".join(["point,device,name,quantity,unit,period_s", *points]) + "\n", "utf-8"
    )
    return load_plant(tmp_path, [PROFILES])


def registers(minutes: int, seed: int = 1) -> Floats:
    """What 100 registers of 0.01 kWh show every minute, shape (100, minutes + 1)."""
    step = np.random.default_rng(seed).uniform(0.5, 2.5, (100, minutes))
    start = np.full((100, 1), 1000.0)
    return np.round(np.concatenate([start, 1000.0 + np.cumsum(step, axis=1)], axis=1), 2)


def pool(workers: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, get_context("spawn"), begin_worker)


@pytest.mark.parametrize("bucket", ["1h", "base"])
@pytest.mark.timeout(600)
async def test_parquet_in_parquet_out(plant: Plant, tmp_path: Path, bucket: str) -> None:
    engine = Engine(plant, FactorLibrary.shipped())
    minutes = 28 * 1440
    step = GROUP_CELLS // (100 * 60) * 60
    parts = []
    for number in range(6):
        start_ns = START_NS + number * minutes * BASE_NS
        kwh = np.diff(registers(minutes, number))
        path = tmp_path / "energy" / f"{number}.parquet"
        with part_writer(path, energy_schema(), {}) as out:
            for at in range(0, minutes, step):
                part = kwh[:, at : at + step]
                out.add_energy(engine.edge_names, start_ns + at * BASE_NS, BASE_NS, part, np.ones(part.shape))
        span = start_ns, start_ns + minutes * BASE_NS
        out_path = tmp_path / "emissions" / path.name
        parts.append(Part(*span, path, out_path, engine.edge_names, BASE_NS, (span,), Ends(), 0))
    asked = Asked(START_NS, parts[-1].end_ns, NEW_NS, bucket, None)

    with pool() as executor:
        workers = Workers(executor)

        async def count(part: Part) -> tuple[int, float]:
            counted = await workers.run(count_part, [engine], part, asked, None, [None], {})
            return counted.intervals, counted.cpu_s

        await asyncio.gather(count(parts[0]), count(parts[1]))  # warm
        began = time.perf_counter()
        done = await asyncio.gather(*map(count, parts))
        wall_s = time.perf_counter() - began

    rows, best = sum(rows for rows, _ in done), max(rows / cpu_s for rows, cpu_s in done)
    size = parts[0].energy.stat().st_size / (rows / len(parts))
    print(
        f"\nParquet in ({size:.1f} B a row), Parquet out by {bucket}: {rows / wall_s / 1e6:.1f} M interval rows/s on two"
        f" processes, {2 * best / 1e6:.1f} M by the processor's time of the best part (wanted 30)"
    )


@pytest.mark.timeout(600)
async def test_the_database_at_both_ends(plant: Plant, tmp_path: Path, database: str) -> None:
    minutes = 1440
    time_ns = START_NS + np.arange(minutes + 1) * BASE_NS
    batch = sample_batch(
        PointTable(tuple(f"p{i}" for i in range(100))),
        np.repeat(np.arange(100), time_ns.size),
        np.tile(time_ns, 100),
        registers(minutes).reshape(-1),
    )
    store = await PostgresStore.open(database, plant)
    engine = Engine(plant, FactorLibrary.shipped())
    await store.write(batch)
    await Pipeline(engine, store, LocalBus(), Health(), SystemClock()).drain()
    rows = 100 * minutes
    span = START_NS, START_NS + minutes * BASE_NS

    with pool() as executor:
        workers = Workers(executor)
        pipeline = Pipeline(engine, store, LocalBus(), Health(), SystemClock(), workers)
        await pipeline.recompute(START_NS, START_NS + HOUR_NS, NEW_NS, "recompute")  # warm
        began = time.perf_counter()
        await pipeline.recompute(*span, OLD_NS, "recompute")
        plain_s = time.perf_counter() - began
        began = time.perf_counter()
        made = await recompute(pipeline, store, *span, now_ns=time.time_ns(), known_at_ns=NEW_NS)
        told_s = time.perf_counter() - began
        began = time.perf_counter()
        history = History(engine, store)
        await restate(store, history, workers, tmp_path / "out", *span, now_ns=NEW_NS)
        filed_s = time.perf_counter() - began
    await store.close()

    assert made.figures
    print(
        f"\ndatabase in, database out: {rows / plain_s / 1e6:.2f} M interval rows/s, with what changed and why"
        f" {rows / told_s / 1e6:.2f}; database in, Parquet out for the first time: {rows / filed_s / 1e6:.2f}"
    )
