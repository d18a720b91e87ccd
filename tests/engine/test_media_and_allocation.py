"""Steam by its state, water by its temperatures, air by what is stated; a CHP's carbon by three rules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.compute.engine import Engine
from core.errors import FaultyInput
from core.plant.load import load_plant
from core.plant.model import Plant
from core.results import HOUR_NS, Flow, Mark, WindowResult
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START = parse_rfc3339("2026-03-02T00:00:00Z")
KNOWN = parse_rfc3339("2026-11-22T00:00:00Z")
DIRECT = Flow(1, "location", "ghg-protocol")
STEAM = FactorLibrary.shipped().steam
FEED_WATER = FactorLibrary.shipped().row("heat:feedwater_enthalpy_20C").value

HEAD = """\
plant: media
name: {zh: 介质厂, en: Media}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 900
method_sets: [ghg-protocol]
network:
  nodes:
"""
POINTS = "point,device,name,quantity,unit,period_s\n"


def plant_of(folder: Path, nodes: str, edges: str, points: str) -> Plant:
    (folder / "plant.yaml").write_text(HEAD + nodes + "  edges:\n" + edges, "utf-8")
    (folder / "points.csv").write_text(POINTS + points, "utf-8")
    return load_plant(folder, [PROFILES])


def readings_of(**columns: Any) -> SampleBatch:
    """One hour of readings each minute; counters as rates by the hour, gauges as functions of it."""
    names = tuple(name.replace("__", ".") for name in columns)
    time_ns = START + np.arange(61) * 60 * NS_PER_S
    hours = (time_ns - START) / HOUR_NS
    value = [np.broadcast_to(c(hours) if callable(c) else c * hours, hours.shape) for c in columns.values()]
    return sample_batch(
        PointTable(names),
        np.repeat(np.arange(len(names)), hours.size),
        np.tile(time_ns, len(names)),
        np.concatenate(value),
    )


def hour_of(plant: Plant, **columns: Any) -> WindowResult:
    batch = readings_of(**columns)
    return Engine(plant, FactorLibrary.shipped()).compute(batch, START, START + HOUR_NS, None, KNOWN)


def kwh(result: WindowResult, edge: str) -> float:
    return float(result.energy.energy_kwh[result.edges.index(edge)].sum())


STEAM_NODES = """\
    - {id: park, kind: source, carrier: steam, origin: purchased, factor: 0.11}
    - {id: dryer, kind: load, carrier: steam}
"""
MASS = "steam.mass,,,mass_total,t,60\nsteam.pressure,,,pressure,kPa,60\nsteam.temperature,,,temperature,degC,60\n"


@pytest.mark.parametrize(
    ("medium", "kj_per_kg"),
    [
        ("", STEAM.enthalpy_kj_per_kg(0.7)),
        (", medium: {pressure_mpa: 1.0}", STEAM.enthalpy_kj_per_kg(1.0)),
        (", medium: {pressure_mpa: 0.8, temperature_c: 250}", STEAM.enthalpy_kj_per_kg(0.8, 250)),
        (", medium: {pressure_mpa: 0.7, gauge: true}", STEAM.enthalpy_kj_per_kg(0.8013)),
    ],
)
def test_a_tonne_of_steam_is_worth_what_its_state_says(tmp_path: Path, medium: str, kj_per_kg: float) -> None:
    edges = f"    - {{id: e, from: park, to: dryer, meter: steam.mass{medium}}}\n"
    result = hour_of(plant_of(tmp_path, STEAM_NODES, edges, MASS), steam__mass=2.0)

    assert kwh(result, "e") == pytest.approx(2000 * (kj_per_kg - FEED_WATER) / 3600, rel=1e-9)


def test_bought_steam_reaches_the_dryer_as_direct_where_the_method_set_counts_it_so(tmp_path: Path) -> None:
    edges = "    - {id: e, from: park, to: dryer, meter: steam.mass, medium: {pressure_mpa: 0.7}}\n"
    plant = replace(plant_of(tmp_path, STEAM_NODES, edges, MASS), method_sets=("ghg-protocol", "cbam"))

    result = hour_of(plant, steam__mass=2.0)

    dryer = result.emissions_kg[result.nodes.index("dryer")].sum(axis=-1)
    kg = {
        (flow.method_set, flow.scope): dryer[f]
        for f, flow in enumerate(result.flows)
        if flow.basis == "location"
    }
    assert kg["cbam", 1] == kg["ghg-protocol", 2] > 0
    assert kg["cbam", 2] == kg["ghg-protocol", 1] == 0


def test_measured_pressure_and_temperature_are_followed_interval_by_interval(tmp_path: Path) -> None:
    edges = (
        "    - {id: e, from: park, to: dryer, meter: steam.mass,"
        " medium: {pressure_mpa: steam.pressure, temperature_c: steam.temperature}}\n"
    )
    result = hour_of(
        plant_of(tmp_path, STEAM_NODES, edges, MASS),
        steam__mass=2.0,
        steam__pressure=lambda h: np.where(h < 0.5, 800.0, 1000.0),
        steam__temperature=lambda h: np.where(h < 0.5, 250.0, 300.0),
    )
    quarters = result.energy.energy_kwh[0]
    assert quarters[0] == pytest.approx(500 * (STEAM.enthalpy_kj_per_kg(0.8, 250) - FEED_WATER) / 3600)
    assert quarters[3] == pytest.approx(500 * (STEAM.enthalpy_kj_per_kg(1.0, 300) - FEED_WATER) / 3600)
    assert not (result.energy.mark[0] & Mark.SUBSTITUTED).any()


def test_a_register_of_steam_alone_counts_by_the_measured_state_too(tmp_path: Path) -> None:
    """What the counter ledger shows is what is stored."""
    edges = (
        "    - {id: e, from: park, to: dryer, meter: steam.mass, medium: {pressure_mpa: steam.pressure}}\n"
    )
    plant = plant_of(tmp_path, STEAM_NODES, edges, MASS)
    engine = Engine(plant, FactorLibrary.shipped())
    batch = readings_of(steam__mass=2.0, steam__pressure=lambda h: 1000.0 + 400 * h)
    edges_ns = np.arange(START, START + HOUR_NS + 1, engine.base_ns)

    counted, power = engine.register_and_power("steam.mass", batch, edges_ns)

    assert power is None
    stored = engine.compute(batch, START, START + HOUR_NS, None, KNOWN)
    np.testing.assert_array_equal(counted.energy_kwh, stored.energy.energy_kwh[0])
    assert counted.energy_kwh.sum() > 2 * engine.kwh_per_unit("e")  # of what was assumed


def test_steam_whose_state_was_not_read_is_assumed_and_marked(tmp_path: Path) -> None:
    edges = (
        "    - {id: e, from: park, to: dryer, meter: steam.mass,"
        " medium: {pressure_mpa: steam.pressure, temperature_c: steam.temperature}}\n"
    )
    result = hour_of(
        plant_of(tmp_path, STEAM_NODES, edges, MASS), steam__mass=2.0, steam__pressure=lambda h: 800.0
    )

    assert kwh(result, "e") == pytest.approx(2000 * (STEAM.enthalpy_kj_per_kg(0.7) - FEED_WATER) / 3600)
    assert ((result.energy.mark[0] & Mark.SUBSTITUTED) != 0).all()
    assert (result.energy.covered[0] == 0).all()


def test_many_states_at_once_are_those_one_by_one() -> None:
    pressure = np.array([0.2, 0.7, 0.8, 1.0, 1.3, 0.7, 99.0, 0.8])
    temperature = np.array([np.nan, 165.0, 250.0, 300.0, 275.0, np.nan, 200.0, 20.0])

    many = STEAM.enthalpies(pressure, temperature)

    for p, t, h in zip(pressure[:6].tolist(), temperature[:6].tolist(), many[:6].tolist(), strict=True):
        assert h == pytest.approx(STEAM.enthalpy_kj_per_kg(p, None if np.isnan(t) else t), rel=1e-12)
    assert np.isnan(many[6:]).all()  # beyond the table; water


def test_chilled_water_by_its_flow_and_its_two_temperatures(tmp_path: Path) -> None:
    nodes = """\
    - {id: net, kind: source, carrier: chilled_water, origin: purchased, factor: 0.2}
    - {id: hall, kind: load, carrier: chilled_water}
"""
    points = "w.volume,,,volume_total,m3,60\nw.out,,,temperature_supply,degC,60\nw.in,,,temperature_return,degC,60\n"
    edges = "    - {id: e, from: net, to: hall, meter: w.volume, medium: {supply_c: w.out, return_c: w.in}}\n"
    result = hour_of(
        plant_of(tmp_path, nodes, edges, points), w__volume=10.0, w__out=lambda h: 7.0, w__in=lambda h: 12.0
    )
    assert kwh(result, "e") == pytest.approx(10 * 5 * 4.1868 / 3.6)


def test_compressed_air_by_what_a_cubic_metre_is_stated_to_hold(tmp_path: Path) -> None:
    nodes = """\
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}
    - {id: compressor, kind: converter}
    - {id: ring, kind: bus, carrier: compressed_air}
    - {id: paint, kind: load, carrier: compressed_air}
    - {id: tools, kind: load, carrier: compressed_air}
"""
    edges = """\
    - {id: e-el, from: grid, to: compressor, meter: c.energy}
    - {id: e-air, from: compressor, to: ring, meter: a.volume, medium: {kwh_per_unit: 0.1}}
    - {id: e-paint, from: ring, to: paint, meter: p.volume, medium: {kwh_per_unit: 0.1}}
    - {id: e-tools, from: ring, to: tools, meter: remainder}
"""
    points = (
        "c.energy,,,active_energy_import_total,kWh,60\na.volume,,,volume_std_total,Nm3,60\n"
        "p.volume,,,volume_std_total,Nm3,60\n"
    )
    result = hour_of(
        plant_of(tmp_path, nodes, edges, points), c__energy=120.0, a__volume=1000.0, p__volume=250.0
    )
    flow = result.flows.index(Flow(2, "location", "ghg-protocol"))

    assert kwh(result, "e-tools") == pytest.approx(75.0)
    # A quarter of the air bears a quarter of the compressor's power, whatever a cubic metre is taken to hold.
    assert result.emissions_kg[result.nodes.index("paint"), flow].sum() == pytest.approx(120 * 0.5 / 4)


CHP = """\
    - {{id: gas, kind: source, carrier: natural_gas, origin: purchased, fuel: natural_gas@ndrc_other_industry}}
    - {{id: chp, kind: converter, burns: natural_gas{allocation}}}
    - {{id: line, kind: load, carrier: electricity}}
    - {{id: dryer, kind: load, carrier: steam}}
"""
CHP_EDGES = """\
    - {id: e-gas, from: gas, to: chp, meter: g.energy}
    - {id: e-el, from: chp, to: line, meter: l.energy}
    - {id: e-heat, from: chp, to: dryer, meter: d.heat}
"""
CHP_POINTS = (
    "g.energy,,,active_energy_import_total,kWh,60\nl.energy,,,active_energy_import_total,kWh,60\n"
    "d.heat,,,heat_energy_total,GJ,60\n"
)


@pytest.mark.parametrize(
    ("allocation", "of_power", "of_heat"),
    [
        ("", 1.0, 1.0),
        (", allocation: {rule: energy}", 1.0, 1.0),
        (", allocation: {rule: efficiency, reference: {electricity: 0.35, steam: 0.8}}", 1 / 0.35, 1 / 0.8),
        (
            ", allocation: {rule: exergy, temperature_c: {steam: 180}, ambient_c: 15}",
            1.0,
            1 - (15 + 273.15) / (180 + 273.15),
        ),
    ],
)
def test_a_chp_shares_its_carbon_by_the_declared_rule(
    tmp_path: Path, allocation: str, of_power: float, of_heat: float
) -> None:
    result = hour_of(
        plant_of(tmp_path, CHP.format(allocation=allocation), CHP_EDGES, CHP_POINTS),
        g__energy=1000.0,
        l__energy=350.0,
        d__heat=450.0 * 0.0036,
    )
    at = result.flows.index(DIRECT)
    line, dryer, site = (
        result.emissions_kg[result.nodes.index(n), at].sum() for n in ("line", "dryer", "site")
    )

    assert line + dryer == pytest.approx(site)
    assert line / site == pytest.approx(350 * of_power / (350 * of_power + 450 * of_heat))


@pytest.mark.parametrize(
    ("nodes", "edges", "points", "reason"),
    [
        (STEAM_NODES, "meter: steam.mass, medium: {temperature_c: 180}", MASS, "pressure_mpa is missing"),
        (STEAM_NODES, "meter: steam.mass, medium: {supply_c: 80, return_c: 60}", MASS, "tell of water"),
        (
            STEAM_NODES,
            "meter: steam.mass, medium: {pressure_mpa: steam.temperature}",
            MASS,
            "is in degC, wanted kPa",
        ),
        (
            STEAM_NODES,
            "meter: steam.mass, medium: {pressure_mpa: steam.presure}",
            MASS,
            "did you mean 'steam.pressure'",
        ),
        (STEAM_NODES, "meter: steam.mass, medium: {}", MASS, "medium states kwh_per_unit, or"),
        (STEAM_NODES, "meter: steam.mass, medium: {presure_mpa: 1}", MASS, "unknown key 'presure_mpa'"),
    ],
)
def test_a_medium_that_cannot_be_is_refused(
    tmp_path: Path, nodes: str, edges: str, points: str, reason: str
) -> None:
    with pytest.raises(FaultyInput, match=reason):
        plant_of(tmp_path, nodes, f"    - {{id: e, from: park, to: dryer, {edges}}}\n", points)


@pytest.mark.parametrize(
    ("allocation", "reason"),
    [
        (", allocation: {rule: efficiency, reference: {electricity: 0.35}}", "says nothing of steam"),
        (", allocation: {rule: efficiency}", "reference is missing"),
        (", allocation: {rule: exergy, temperature_c: {steam: 10}}", "no warmer than its surroundings"),
        (", allocation: {rule: mass}", "mass"),
    ],
)
def test_an_allocation_that_cannot_be_is_refused(tmp_path: Path, allocation: str, reason: str) -> None:
    with pytest.raises(FaultyInput, match=reason):
        plant_of(tmp_path, CHP.format(allocation=allocation), CHP_EDGES, CHP_POINTS)
