"""Frozen registers, overdrawn storages, nodes that do not balance: marked, told to the alarms, never smoothed over."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import core.answers.ledger
from core.alerts import Alarms
from core.alerts.watch import SETTLED_NS, Watch, observed
from core.answers.ledger import counter_ledger
from core.bus import LiveNode, LiveUpdate, LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.compute.engine import Engine
from core.compute.pipeline import Pipeline
from core.health import Health
from core.metrics import LIVE_ERROR
from core.plant.load import load_plant
from core.plant.model import Plant
from core.results import HOUR_NS, Mark, WindowResult
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store.postgres import PostgresStore

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START = parse_rfc3339("2026-03-02T00:00:00Z")
KNOWN = parse_rfc3339("2026-11-22T00:00:00Z")
HALLS = """\
plant: halls
name: {zh: 两厂房, en: Halls}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [zero-carbon-factory]
devices:
  - {id: m-grid, accuracy_class: 0.5}
  - {id: m-a, accuracy_class: 1}
  - {id: m-b, accuracy_class: 1, rated_kw: 200}
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: main, kind: bus, carrier: electricity}
    - {id: hall-a, kind: load, carrier: electricity}
    - {id: hall-b, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: main, meter: m-grid.energy}
    - {id: e-a, from: main, to: hall-a, meter: m-a}
    - {id: e-b, from: main, to: hall-b, meter: m-b}
"""
HALL_POINTS = """\
point,device,name,quantity,unit,period_s
m-grid.energy,m-grid,,active_energy_import_total,kWh,60
m-a.active_energy_import_total,m-a,,active_energy_import_total,kWh,60
m-a.active_power_total,m-a,,active_power_total,kW,60
m-b.active_energy_import_total,m-b,,active_energy_import_total,kWh,60
"""


@pytest.fixture
def halls(tmp_path: Path) -> Plant:
    (tmp_path / "plant.yaml").write_text(HALLS, "utf-8")
    (tmp_path / "points.csv").write_text(HALL_POINTS, "utf-8")
    return load_plant(tmp_path, [PROFILES])


def minutes(hours: int, **columns: Any) -> SampleBatch:
    """A reading a minute; each keyword a function of the hours since the start (`m_a__x` is the point m-a.x)."""
    names = tuple(name.replace("__", ".", 1).replace("_", "-", 1) for name in columns)
    time_ns = START + np.arange(hours * 60 + 1) * 60 * NS_PER_S
    hour = (time_ns - START) / HOUR_NS
    value = np.concatenate([np.broadcast_to(column(hour), hour.shape) for column in columns.values()])
    return sample_batch(
        PointTable(names), np.repeat(np.arange(len(names)), hour.size), np.tile(time_ns, len(names)), value
    )


def day(
    hours: int = 2, b_kw: float = 60.0, a_kw: Any = lambda h: 100.0 * h, power_kw: float = 100.0
) -> SampleBatch:
    return minutes(
        hours,
        m_grid__energy=lambda h: 160.0 * h,
        m_a__active_energy_import_total=a_kw,
        m_a__active_power_total=lambda h: power_kw,
        m_b__active_energy_import_total=lambda h: b_kw * h,
    )


def computed(plant: Plant, batch: SampleBatch, hours: int = 2) -> WindowResult:
    return Engine(plant, FactorLibrary.shipped()).compute(batch, START, START + hours * HOUR_NS, None, KNOWN)


def test_a_register_that_stands_still_under_load_is_marked_and_covers_nothing(halls: Plant) -> None:
    stuck = day(a_kw=lambda h: np.where(h < 0.5, 100.0 * h, 50.0), power_kw=600.0)  # 10 kWh a minute flow
    result = computed(halls, stuck, 1)
    row = result.edges.index("e-a")

    frozen = (result.energy.mark[row] & Mark.FROZEN) != 0
    assert not frozen[:30].any()
    assert frozen[31:].all()
    assert (result.energy.covered[row][31:] == 0).all()
    assert (result.energy.energy_kwh[row][31:] == 0).all()  # nothing is made up from the power


def test_a_frozen_register_is_noticed_at_an_ordinary_load_and_however_its_window_is_cut(halls: Plant) -> None:
    stuck = day(3, a_kw=lambda h: np.where(h < 1.5, 100.0 * h, 150.0), power_kw=100.0)
    engine = Engine(halls, FactorLibrary.shipped())
    row = engine.edge_names.index("e-a")

    whole = computed(halls, stuck, 3).energy
    parts = []
    for start in (START, START + HOUR_NS, START + 2 * HOUR_NS, START + 2 * HOUR_NS + 15 * 60 * NS_PER_S):
        span = start, (start // HOUR_NS + 1) * HOUR_NS
        part = engine.compute(stuck, *span, None, KNOWN)
        parts.append(engine.compute(stuck, *span, None, KNOWN, {0: stuck}) if part.wanted else part)

    frozen = (whole.mark[row] & Mark.FROZEN) != 0
    assert frozen.nonzero()[0].tolist() == list(range(92, 180))  # more than two of its minute's 1.67 kWh
    for name in ("mark", "covered"):
        cut = np.concatenate([getattr(part.energy, name)[row] for part in parts[:3]])
        np.testing.assert_array_equal(cut, getattr(whole, name)[row])
        np.testing.assert_array_equal(getattr(parts[3].energy, name)[row], getattr(whole, name)[row][135:])


@pytest.mark.parametrize("kw", [5.0, 30.0, 100.0])
def test_a_coarse_register_between_its_steps_is_not_frozen(halls: Plant, kw: float) -> None:
    for step in (1.0, 40.0):  # forty: one step times the ratio of its transformers, which nobody declared
        coarse = day(6, a_kw=lambda h, step=step: np.floor(kw * h / step) * step, power_kw=kw)

        marks = computed(halls, coarse, 6).energy.mark[computed(halls, coarse, 1).edges.index("e-a")]

        assert not (marks & Mark.FROZEN).any()


def test_an_idle_register_is_not_frozen(halls: Plant) -> None:
    result = computed(halls, day(a_kw=lambda h: 0.0 * h, power_kw=0.0), 1)
    assert not (result.energy.mark[result.edges.index("e-a")] & Mark.FROZEN).any()


def test_a_storage_that_gives_more_than_it_holds_is_marked_on_its_edge(small_plant: Plant) -> None:
    table = PointTable(
        ("grid.energy", "roof.energy", "gas.volume", "bat.charged", "bat.discharged", "press.energy")
    )
    time_ns = START + np.arange(0, 3601, 30) * NS_PER_S
    hour = (time_ns - START) / HOUR_NS
    rates = (60.0, 0.0, 0.0, 0.0, 20.0, 50.0)  # twenty kWh out of a battery that was never charged
    value = np.concatenate([1000.0 + rate * hour for rate in rates])
    batch = sample_batch(table, np.repeat(np.arange(6), hour.size), np.tile(time_ns, 6), value)

    result = Engine(small_plant, FactorLibrary.shipped()).compute(batch, START, START + HOUR_NS, None, KNOWN)

    marks = result.energy.mark
    assert ((marks[result.edges.index("e-discharge")] & Mark.OVERDRAWN) != 0).all()
    assert not (marks[result.edges.index("e-grid")] & Mark.OVERDRAWN).any()


@pytest.mark.parametrize(("b_kw", "beyond"), [(60.0, False), (59.5, False), (40.0, True)])
def test_a_node_is_out_of_balance_beyond_the_errors_of_its_meters(
    halls: Plant, b_kw: float, beyond: bool
) -> None:
    hour = computed(halls, day(b_kw=b_kw)).hour(0)
    errors = {"e-grid": 0.005, "e-a": 0.01, "e-b": 0.01}
    told = observed(halls.nodes, halls.edges, errors, dict.fromkeys(errors, 0.01), hour)
    ratio = told.value[told.points.index["balance:main"]]

    # Half a per cent of 160, one of 100 and one of what hall b took, and a step of each register.
    band = ((0.005 * 160) ** 2 + 1.0**2 + (0.01 * b_kw) ** 2 + 3 * 2 * 0.01**2) ** 0.5
    assert ratio == pytest.approx((60.0 - b_kw) / band, abs=1e-6)
    assert bool(ratio > 1) is beyond


def test_a_plant_watches_its_own_figures(halls: Plant) -> None:
    ids = {rule.id for rule in halls.alerts}
    assert {"conservation", "balance:main", "frozen:e-a", "power:e-a", "jump:e-a", "jump:e-b"} <= ids


class _Clock:
    time_ns = START + 2 * HOUR_NS + SETTLED_NS + NS_PER_S

    def now_ns(self) -> int:
        return self.time_ns


class _Log:
    async def append(self, events: Any) -> None: ...
    async def last(self) -> list[Any]:
        return []


async def test_an_imbalance_of_an_hour_raises_its_alarm_and_goes_with_it(halls: Plant, database: str) -> None:
    store = await PostgresStore.open(database, halls)
    pipeline = Pipeline(Engine(halls, FactorLibrary.shipped()), store, LocalBus(), Health(), _Clock())
    clock = _Clock()
    alarms = Alarms(halls, _Log(), LocalBus(), clock)
    watch = Watch(store, lambda: pipeline.history, clock, alarms.observe)
    lost = day(3, b_kw=40.0)  # 20 kW go missing, from the third hour on they do not
    third = lost.time_ns > START + 2 * HOUR_NS
    column = lost.point == lost.points.index["m-b.active_energy_import_total"]
    value = np.where(third & column, 80.0 + 60.0 * (lost.time_ns - START - 2 * HOUR_NS) / HOUR_NS, lost.value)
    await store.write(replace(lost, value=value))
    await pipeline.drain()
    engine = pipeline.history.current
    rates = dict(zip(engine.nodes, (110.0 if name == "site" else None for name in engine.nodes), strict=True))
    nodes = tuple(LiveNode(name, None, rate, None) for name, rate in rates.items())
    for second in range(1800):  # half an hour of pictures that are too high by what they are told to be
        watch.heard(LiveUpdate(START + HOUR_NS + second * NS_PER_S, nodes, {}))

    await watch.look()
    closed_kg = 160.0 * 0.5581
    assert LIVE_ERROR.labels("site")._value.get() == pytest.approx(110.0 / closed_kg - 1, rel=1e-9)
    alarm = alarms.one("balance:main")
    assert alarm["state"] == "active-unack"
    assert "imbalance over the errors" in str(alarm["message"])
    clock.time_ns += HOUR_NS
    await watch.look()
    assert alarms.one("balance:main")["state"] == "returned-unack"
    assert alarms.one("conservation")["state"] == "normal"
    await store.close()


async def test_a_day_of_power_beside_its_register(halls: Plant, database: str) -> None:
    store = await PostgresStore.open(database, halls)
    pipeline = Pipeline(Engine(halls, FactorLibrary.shipped()), store, LocalBus(), Health(), _Clock())
    clock = _Clock()
    clock.time_ns = START + 26 * HOUR_NS
    alarms = Alarms(halls, _Log(), LocalBus(), clock)
    await store.write(day(24, power_kw=110.0))  # ten per cent more than the register counts
    await pipeline.drain()
    await Watch(store, lambda: pipeline.history, clock, alarms.observe).look()

    alarm = alarms.one("power:e-a")
    assert alarm["state"] == "active-unack"
    assert alarm["value"] == pytest.approx(0.1, rel=1e-6)
    await store.close()


async def test_power_read_more_rarely_than_its_register_is_compared_by_its_own_gap_time(
    halls: Plant, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    power = "m-a.active_power_total"
    points = tuple(replace(p, period_s=600.0) if p.id == power else p for p in halls.points)
    halls = replace(halls, points=points)
    engine, store = Engine(halls, FactorLibrary.shipped()), await PostgresStore.open(database, halls)
    batch = day(24, power_kw=110.0)
    rare = (batch.time_ns - START) % (600 * NS_PER_S) == 0
    await store.write(batch.take(np.flatnonzero((batch.point != batch.points.index[power]) | rare)))

    asked = engine, store, "m-a.active_energy_import_total", START, START + 24 * HOUR_NS
    told, after = await counter_ledger(*asked)
    monkeypatch.setattr(core.answers.ledger, "DAYS_AT_ONCE", 1)

    assert await counter_ledger(*asked) == [told, after]  # however many days are read at once
    assert after.energy_kwh == pytest.approx(800.0)
    assert told.energy_kwh == pytest.approx(1600.0)  # sixteen hours of the plant's day
    assert told.power_kwh == pytest.approx(1760.0)
    assert told.difference_share == pytest.approx(0.1)
    await store.close()


async def test_a_figure_nobody_thought_of_does_not_end_the_watch(
    halls: Plant, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = await PostgresStore.open(database, halls)
    pipeline = Pipeline(Engine(halls, FactorLibrary.shipped()), store, LocalBus(), Health(), _Clock())
    await store.write(day(3))
    await pipeline.drain()
    told = asyncio.Semaphore(0)

    def refuse(_: SampleBatch) -> None:
        told.release()
        raise ValueError("a figure nobody thought of")

    watching = asyncio.create_task(Watch(store, lambda: pipeline.history, _Clock(), refuse).run())
    async with asyncio.timeout(10):
        for _ in ("the hour", "the day"):
            await told.acquire()
    await asyncio.sleep(0)

    assert not watching.done()
    assert [r.message for r in caplog.records if r.exc_info] == ["figures cannot be looked at"] * 2
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await store.close()
