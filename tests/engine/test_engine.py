"""Readings in, kilograms out: hand-worked figures, and the same bits however a window is cut."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.compute.engine import Engine
from core.plant.model import NodeKind, Plant
from core.results import HOUR_NS, Flow, WindowResult
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.seal import hour_digests
from core.store.seam import Stocks

START = parse_rfc3339("2026-03-02T00:00:00Z")
KNOWN = parse_rfc3339("2026-11-22T00:00:00Z")
LOCATION_2 = Flow(2, "location", "zero-carbon-factory")
DIRECT = Flow(1, "location", "zero-carbon-factory")
LIBRARY = FactorLibrary.shipped()
POINTS = ("grid_energy", "roof_energy", "gas_volume", "bat_charged", "bat_discharged", "press_energy")


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


def troubled(seed: int) -> SampleBatch:
    """Three hours with readings missing, silences, glitches, a reset, and a battery that may give what it never got."""
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0, 80, 6)
    whole = steady(3, 20, **dict(zip(POINTS, rates.tolist(), strict=True)))
    second = (whole.time_ns - START) / NS_PER_S
    kept = rng.random(len(whole)) > 0.3
    for point in range(6):
        if rng.random() < 0.5:
            silent_s = np.sort(rng.uniform(-2000, 14_000, 2))
            kept &= (whole.point != point) | (second < silent_s[0]) | (second > silent_s[1])
    value = np.where(rng.random(len(whole)) < 0.01, 0.0, whole.value)
    value = np.where((whole.point == rng.integers(6)) & (second > 5000), value - 500.0, value)
    return replace(whole, value=np.round(value, int(rng.integers(0, 4)))).take(kept)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 179), max_size=4, unique=True))
def test_a_window_gives_the_same_bits_however_its_readings_came_and_it_is_cut(
    small_plant: Plant, seed: int, cuts: list[int]
) -> None:
    engine = Engine(small_plant, LIBRARY)
    readings = troubled(seed)
    arrived = readings.take(np.random.default_rng(seed).permutation(len(readings)))

    at_once = engine.compute(readings, START, START + 3 * HOUR_NS, None, KNOWN)
    stocks = None
    parts = []
    for first, last in pairwise([0, *sorted(cuts), 180]):
        part = engine.compute(
            arrived, START + first * engine.base_ns, START + last * engine.base_ns, stocks, KNOWN
        )
        stocks = Stocks(
            part.storages, part.flows, part.interval_stock_kwh[:, -1], part.interval_stock_kg[:, :, -1]
        )
        parts.append(part)

    for name in ("emissions_kg", "through_kg", "through_kwh", "residual_kwh", "coverage", "in_kwh"):
        joined = np.concatenate([getattr(part, name) for part in parts], axis=-1)
        np.testing.assert_array_equal(joined, getattr(at_once, name), err_msg=name)
    for name in ("energy_kwh", "covered", "estimated_kwh", "mark"):
        joined = np.concatenate([getattr(part.energy, name) for part in parts], axis=-1)
        np.testing.assert_array_equal(joined, getattr(at_once.energy, name), err_msg=name)
    np.testing.assert_array_equal(parts[-1].interval_stock_kg[..., -1], at_once.stock_kg[..., -1])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1))
def test_the_inventory_is_what_loads_nodes_and_stores_took_whatever_the_readings_are(
    small_plant: Plant, seed: int
) -> None:
    result = Engine(small_plant, LIBRARY).compute(troubled(seed), START, START + 3 * HOUR_NS, None, KNOWN)

    sources = [i for i, node in enumerate(small_plant.nodes) if node.kind is NodeKind.SOURCE]
    took = np.delete(result.emissions_kg[:-1], sources, axis=0).sum(axis=0)
    known = np.isfinite(took)
    np.testing.assert_allclose(took[known], result.emissions_kg[-1][known], rtol=1e-9, atol=1e-9)
    assert result.conservation_error < 1e-9
    assert not (result.energy.energy_kwh < 0).any()


def test_a_battery_balances_its_flows_its_losses_and_its_stock(small_plant: Plant) -> None:
    readings = steady(
        1,
        grid_energy=60.0,
        roof_energy=0.0,
        gas_volume=0.0,
        bat_charged=6.0,
        bat_discharged=3.0,
        press_energy=40.0,
    )
    held = Stocks(("bat",), Engine(small_plant, LIBRARY).flows, np.array([5.0]), np.full((1, 8), 2.0))

    hour = Engine(small_plant, LIBRARY).compute(readings, START, START + HOUR_NS, held, KNOWN)

    row = hour.nodes.index("bat")
    np.testing.assert_allclose(hour.residual_kwh[row], 0.0, atol=1e-12)
    np.testing.assert_allclose((hour.in_kwh - hour.out_kwh)[row].sum(), 3.0)


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
