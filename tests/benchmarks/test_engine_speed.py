"""How near the engine comes to one pass of numpy over the same arrays. Run: pytest -s tests/benchmarks/test_engine_speed.py

Figures are CPU time, the best of a few runs, so that a busy machine spoils them less. Tracing is measured over a quarter of a year of minutes, since the ratio does not
depend on the span; memory is that of week after week, as the pipeline takes a year.
"""

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from core.carbon.trace import Tracer
from core.energy.register import Register, Registers, register_energy
from core.plant.model import Node, NodeKind
from core.samples import NS_PER_S

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


def test_the_live_step_of_five_thousand_meters_and_five_hundred_nodes() -> None:
    meters, readings = 5000, 62
    rng = np.random.default_rng(1)
    time_ns = np.tile(np.arange(readings, dtype=np.int64) * NS_PER_S, meters)
    value = np.cumsum(rng.exponential(0.01, (meters, readings)), axis=1).ravel()
    status = np.zeros(value.size, dtype=np.int16)
    starts = np.arange(meters + 1) * readings
    registers = Registers([Register(180 * NS_PER_S, rated_kw=800.0)] * meters)
    tracer = network(500, 1000, 2, True)
    source_kappa = rng.random((len(tracer.sources), 4, 1))
    edge_of_meter = rng.integers(0, len(tracer.edges), meters)

    def step() -> None:
        energy = registers.energy(time_ns, value, status, starts, np.array([0, 60 * NS_PER_S]))
        by_edge = np.bincount(edge_of_meter, weights=energy.energy_kwh[:, 0], minlength=len(tracer.edges))
        tracer.trace(by_edge[:, None], source_kappa, stock_kwh=np.full(2, 1e7), stock_kg=np.full((2, 4), 1e6))

    spent_s = best_s(step)

    print(f"\nlive step, {meters} meters, 500 nodes, 1000 edges: {spent_s * 1e3:.0f} ms, at most 50")
