"""Readings in, kilograms out: hand-worked figures, and the same bits however a window is cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.engine import Engine
from core.plant.model import Plant
from core.results import HOUR_NS, Flow, WindowResult
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.seal import hour_digests
from core.store.seam import Stocks

START = parse_rfc3339("2026-03-02T00:00:00Z")
KNOWN = parse_rfc3339("2026-11-22T00:00:00Z")
LOCATION_2 = Flow(2, "location", "zero-carbon-factory")
DIRECT = Flow(1, "location", "zero-carbon-factory")


def steady(hours: int, every_s: int = 30, **kw: float) -> SampleBatch:
    """Registers that count steadily, one point a keyword (`grid_energy=100` is 100 an hour)."""
    table = PointTable(tuple(name.replace("_", ".") for name in kw))
    time_ns = START + np.arange(0, hours * 3600 + 1, every_s) * NS_PER_S
    point = np.repeat(np.arange(len(kw)), time_ns.size)
    hour = np.tile((time_ns - START) / HOUR_NS, len(kw))
    return sample_batch(
        table, point, np.tile(time_ns, len(kw)), 1000.0 + hour * np.repeat(list(kw.values()), time_ns.size)
    )


def scope(result: WindowResult, node: str, flow: Flow) -> float:
    return float(result.emissions_kg[result.nodes.index(node), result.flows.index(flow)].sum())


def test_an_hour_of_grid_roof_and_gas_by_hand(small_plant: Plant) -> None:
    engine = Engine(small_plant, FactorLibrary.shipped())
    readings = steady(
        1,
        grid_energy=60.0,
        roof_energy=40.0,
        gas_volume=10.0,
        bat_charged=0.0,
        bat_discharged=0.0,
        press_energy=70.0,
    )

    hour = engine.compute(readings, START, START + HOUR_NS, None, KNOWN)

    grid_kg_per_kwh = 0.5581  # Chongqing, data year 2023, the newest published
    gas_kg = 10.0 * 389.31e-4 * 0.0153 * 0.99 * 44 / 12 * 1000  # Nm3 x GJ/Nm3 x tC/GJ x OF x 44/12
    assert hour.energy.energy_kwh.sum(axis=1)[0] == pytest.approx(60.0)
    assert scope(hour, "site", LOCATION_2) == pytest.approx(60.0 * grid_kg_per_kwh)
    assert scope(hour, "press", LOCATION_2) == pytest.approx(60.0 * grid_kg_per_kwh * 0.7)
    assert scope(hour, "other", LOCATION_2) == pytest.approx(60.0 * grid_kg_per_kwh * 0.3)
    assert scope(hour, "boiler", DIRECT) == pytest.approx(gas_kg, rel=1e-6)
    assert scope(hour, "site", DIRECT) == pytest.approx(gas_kg, rel=1e-6)
    assert np.abs(hour.residual_kwh[hour.nodes.index("main")]).max() < 1e-9
    assert hour.conservation_error < 1e-9


def test_a_window_gives_the_same_bits_however_it_is_cut(small_plant: Plant) -> None:
    engine = Engine(small_plant, FactorLibrary.shipped())
    rng = np.random.default_rng(3)
    whole = steady(
        3,
        20,
        grid_energy=80.0,
        roof_energy=35.0,
        gas_volume=9.0,
        bat_charged=12.0,
        bat_discharged=9.0,
        press_energy=66.0,
    )
    readings = whole.take(np.sort(rng.choice(len(whole), len(whole) * 2 // 3, replace=False)))

    at_once = engine.compute(readings, START, START + 3 * HOUR_NS, None, KNOWN)
    stocks = None
    cuts = [0, 7, 60, 61, 100, 180]
    parts = []
    for first, last in pairwise(cuts):
        part = engine.compute(
            readings, START + first * engine.base_ns, START + last * engine.base_ns, stocks, KNOWN
        )
        stocks = Stocks(
            part.storages, part.flows, part.interval_stock_kwh[:, -1], part.interval_stock_kg[:, :, -1]
        )
        parts.append(part)

    for name in ("emissions_kg", "through_kg", "through_kwh", "residual_kwh", "coverage", "in_kwh"):
        joined = np.concatenate([getattr(part, name) for part in parts], axis=-1)
        np.testing.assert_array_equal(joined, getattr(at_once, name), err_msg=name)
    np.testing.assert_array_equal(parts[-1].interval_stock_kg[..., -1], at_once.stock_kg[..., -1])


def test_the_site_is_what_loads_and_stores_took(small_plant: Plant) -> None:
    engine = Engine(small_plant, FactorLibrary.shipped())
    readings = steady(
        2,
        grid_energy=90.0,
        roof_energy=20.0,
        gas_volume=5.0,
        bat_charged=15.0,
        bat_discharged=3.0,
        press_energy=70.0,
    )

    held = Stocks(engine.storages, engine.flows, np.array([20.0]), np.full((1, len(engine.flows)), 5.0))

    result = engine.compute(readings, START, START + 2 * HOUR_NS, held, KNOWN)

    inside = [i for i, node in enumerate(result.nodes) if node not in ("grid", "roof", "gas", "site")]
    np.testing.assert_allclose(result.emissions_kg[inside].sum(axis=0), result.emissions_kg[-1], rtol=1e-9)


def test_patching_a_minute_gives_what_computing_the_hour_gives(small_plant: Plant) -> None:
    engine = Engine(small_plant, FactorLibrary.shipped())
    readings = steady(
        1,
        grid_energy=90.0,
        roof_energy=20.0,
        gas_volume=5.0,
        bat_charged=15.0,
        bat_discharged=3.0,
        press_energy=70.0,
    )
    early = readings.take(readings.time_ns <= START + 600 * NS_PER_S)
    held = Stocks(engine.storages, engine.flows, np.array([20.0]), np.full((1, len(engine.flows)), 5.0))

    hour = engine.compute(early, START, START + HOUR_NS, held, KNOWN)
    first, last = 9, 60
    stocks = Stocks(
        hour.storages, hour.flows, hour.interval_stock_kwh[:, first], hour.interval_stock_kg[:, :, first]
    )
    longer = readings.take(readings.time_ns <= START + 1200 * NS_PER_S)
    part = engine.compute(
        longer, START + first * engine.base_ns, START + last * engine.base_ns, stocks, KNOWN
    )
    patched = hour.patched(part)
    afresh = engine.compute(longer, START, START + HOUR_NS, held, KNOWN)

    np.testing.assert_array_equal(patched.emissions_kg, afresh.emissions_kg)
    np.testing.assert_array_equal(patched.energy.energy_kwh, afresh.energy.energy_kwh)
    np.testing.assert_array_equal(patched.stock_kg, afresh.stock_kg)


def test_energies_counted_anew_give_the_same_bits(small_plant: Plant) -> None:
    engine = Engine(small_plant, FactorLibrary.shipped())
    registers = {"roof_energy": 35.0, "gas_volume": 9.0, "bat_charged": 12.0, "press_energy": 66.0}
    whole = steady(3, 20, grid_energy=80.0, bat_discharged=9.0, **registers)
    silent = (whole.point == 4) & (whole.time_ns > START + HOUR_NS) & (whole.time_ns < START + 2 * HOUR_NS)
    computed = engine.compute(whole.take(np.flatnonzero(~silent)), START, START + 3 * HOUR_NS, None, KNOWN)

    again, place = engine.recount(computed.energy, None, START, None, KNOWN)

    assert hour_digests(again.spread(engine.flows, place)) == hour_digests(computed)
    assert len(again.flows) < len(engine.flows)  # scope 1 is one thing on both bases
