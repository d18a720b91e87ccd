"""How near the engine comes to one pass of numpy over the same arrays. Run: pytest -s tests/benchmarks/test_engine_speed.py

Figures are CPU time, the best of a few runs, so that a busy machine spoils them less. Tracing is measured over a quarter of a year of minutes, since the ratio does not
depend on the span; memory is that of week after week, as the pipeline takes a year.
"""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from core.carbon.factors import FactorLibrary
from core.carbon.trace import Tracer
from core.compute.engine import Engine
from core.compute.live import Live
from core.energy.register import register_energy
from core.plant.load import load_plant
from core.plant.model import Node, NodeKind, Plant
from core.samples import NS_PER_S, PointTable, sample_batch
from core.store.seam import Stocks

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"

QUARTER = 365 * 1440 // 4
WEEK = 7 * 1440


@dataclass(frozen=True)
class Link:
    id: str
    source: str
    target: str
    weight: float = 1.0


def best_s(run: Callable[[], object], times: int = 5) -> float:
    spent = []
    for _ in range(times):
        start = time.process_time()
        run()
        spent.append(time.process_time() - start)
    return min(spent)


def network(nodes: int, edges: int, stores: int = 0, cyclic: bool = False) -> Tracer:
    """A chain of buses with sources, loads and cross ties."""
    rng = np.random.default_rng(7)
    sources, buses = nodes // 5, 2 * nodes // 5
    loads = nodes - sources - buses - stores
    records = [Node(f"s{i}", NodeKind.SOURCE) for i in range(sources)]
    records += [Node(f"b{i}", NodeKind.BUS) for i in range(buses)]
    records += [Node(f"l{i}", NodeKind.LOAD) for i in range(loads)]
    records += [Node(f"t{i}", NodeKind.STORAGE, standing_loss_kw=0.1) for i in range(stores)]
    ends = [(f"s{i}", f"b{i % buses}") for i in range(sources)]
    ends += [(f"b{i}", f"b{i + 1}") for i in range(buses - 1)]
    ends += [(f"b{i * 3 % buses}", f"l{i}") for i in range(loads)] + [(f"b{buses - 1}", "l0")]
    for i in range(stores):
        ends += [(f"b{5 + i}", f"t{i}"), (f"t{i}", f"b{5 + i}")]
    if cyclic:
        ends += [("b6", "b3"), ("b8", "b6")]
    while len(ends) < edges:
        low, high = sorted(rng.choice(buses, 2, replace=False).tolist())
        ends.append((f"b{low}", f"b{high}"))
    return Tracer(records, [Link(f"e{i}", a, b) for i, (a, b) in enumerate(ends)])


@pytest.mark.parametrize(
    ("name", "stores", "cyclic", "attributes", "at_most"),
    [
        ("acyclic, one attribute", 0, False, 1, 3.0),
        ("acyclic, four attributes", 0, False, 4, 3.0),
        ("two storages and a cycle, one attribute", 2, True, 1, 15.0),
        ("two storages and a cycle, four attributes", 2, True, 4, 15.0),
    ],
)
def test_tracing_against_one_pass_per_attribute(
    name: str, stores: int, cyclic: bool, attributes: int, at_most: float
) -> None:
    rng = np.random.default_rng(1)
    tracer = network(50, 100, stores, cyclic)
    edge_kwh = rng.random((len(tracer.edges), QUARTER))
    kappa = rng.random((len(tracer.edges), QUARTER))
    source_kappa = rng.random((len(tracer.sources), attributes, QUARTER))
    stocks = {"stock_kwh": np.full(stores, 1e7), "stock_kg": np.full((stores, attributes), 1e6)}

    one_pass_s = best_s(lambda: (edge_kwh * kappa).sum(axis=0))
    traced_s = best_s(lambda: tracer.trace(edge_kwh, source_kappa, **stocks), 3) / attributes

    ratio = traced_s / one_pass_s
    print(
        f"\n{name}: {ratio:.2f} passes of numpy an attribute ({traced_s:.3f} s a quarter), at most {at_most:g}"
    )


def test_week_after_week_stays_below_a_gigabyte() -> None:
    rng = np.random.default_rng(1)
    tracer = network(50, 100, 2, True)
    kwh, kg = np.full(2, 1e7), np.full((2, 4), 1e6)

    tracemalloc.start()
    for _ in range(3):
        result = tracer.trace(
            rng.random((len(tracer.edges), WEEK)),
            rng.random((len(tracer.sources), 4, WEEK)),
            stock_kwh=kwh,
            stock_kg=kg,
        )
        kwh, kg = result.stock_kwh[:, -1], result.stock_kg[..., -1]
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    print(f"\nweeks of minutes, four attributes: peak {peak_bytes / 1e6:.0f} MB, at most 1,000")
    assert np.isfinite(kg).all()


@pytest.mark.parametrize("step", [None, 0.1], ids=["fine", "coarse"])
def test_registers_to_intervals(step: float | None) -> None:
    count = 4_000_000
    time_ns = np.arange(count, dtype=np.int64) * NS_PER_S
    value = np.cumsum(np.random.default_rng(1).exponential(50 / 3600, count))
    value = value if step is None else np.floor(value / step) * step
    status = np.zeros(count, dtype=np.int16)
    edges = np.arange(0, count * NS_PER_S, 60 * NS_PER_S)

    spent_s = best_s(
        lambda: register_energy(time_ns, value, status, edges, gap_after_ns=180 * NS_PER_S, rated_kw=800.0), 3
    )

    print(f"\nregisters to intervals: {count / spent_s / 1e6:.0f} M readings/s, at least 20")


def big_plant(folder: Path, meters: int) -> Plant:
    """500 nodes and an edge for each meter, half of them registers, half powers."""
    rng = np.random.default_rng(1)
    sources, buses, loads = 18, 200, 280
    kinds = [(f"s{i}", "source, origin: purchased, factor: 0.5") for i in range(sources)]
    kinds += [(f"b{i}", "bus") for i in range(buses)] + [(f"l{i}", "load") for i in range(loads)]
    kinds += [(f"t{i}", "storage, capacity_kwh: 1000") for i in range(2)]
    ends = [(f"s{i}", f"b{i}") for i in range(sources)] + [(f"b{i}", f"b{i + 1}") for i in range(buses - 1)]
    ends += [(f"b{i % buses}", f"l{i}") for i in range(loads)]
    ends += [("b5", "t0"), ("t0", "b5"), ("b9", "t1"), ("t1", "b9")]
    while len(ends) < meters:
        low, high = sorted(rng.choice(buses, 2, replace=False).tolist())
        ends.append((f"b{low}", f"b{high}" if rng.random() < 0.3 else f"l{rng.integers(loads)}"))
    lines = ["plant: big", "name: {zh: 大, en: Big}", "zone: Asia/Shanghai", "region: CN-CQ"]
    lines += ["base_interval_s: 60", "method_sets: [ghg-protocol]", "network:", "  nodes:"]
    lines += [f"    - {{id: {name}, carrier: electricity, kind: {kind}}}" for name, kind in kinds]
    lines += ["  edges:"]
    lines += [f"    - {{id: e{i}, from: {a}, to: {b}, meter: p{i}}}" for i, (a, b) in enumerate(ends)]
    (folder / "plant.yaml").write_text("\n".join(lines) + "\n", "utf-8")
    quantity = ("active_energy_import_total,kWh", "active_power_total,kW")
    points = [f"p{i},,,{quantity[i % 2]},1" for i in range(meters)]
    (folder / "points.csv").write_text(
        "\n".join(["point,device,name,quantity,unit,period_s", *points]) + "\n", "utf-8"
    )
    return load_plant(folder, [PROFILES])


def test_the_live_step_of_five_thousand_meters_and_five_hundred_nodes(tmp_path: Path) -> None:
    meters = 5000
    engine = Engine(big_plant(tmp_path, meters), FactorLibrary.shipped())
    live, table = Live(engine), PointTable(engine.live_points)
    power = np.array([int(name[1:]) % 2 == 1 for name in table.names])
    stocks = Stocks(engine.storages, engine.flows, np.full(2, 500.0), np.full((2, len(engine.flows)), 200.0))
    second = 1_790_812_800

    def step() -> None:
        nonlocal second
        second += 1
        value = np.where(power, 50.0, second * 0.01)
        live.observe(sample_batch(table, np.arange(meters), np.full(meters, second * NS_PER_S), value))
        live.update(second * NS_PER_S, stocks)

    step()
    spent_s = best_s(step, 10)

    print(f"\nlive step, {meters} meters taken in, 500 nodes pictured: {spent_s * 1e3:.0f} ms, at most 50")
    time_ns = (second // 60 * 60 + np.arange(-1, 62)) * NS_PER_S
    each = np.repeat(np.arange(meters), time_ns.size)
    value = np.where(power[each], 50.0, np.tile(time_ns, meters) / NS_PER_S * 0.01)
    minute = sample_batch(table, each, np.tile(time_ns, meters), value)
    span = int(time_ns[1]), int(time_ns[1]) + 60 * NS_PER_S
    spent_s = best_s(lambda: engine.compute(minute, *span, stocks, span[1]), 3)
    print(f"a minute of them at 1 Hz from readings to kilograms: {spent_s * 1e3:.0f} ms")
