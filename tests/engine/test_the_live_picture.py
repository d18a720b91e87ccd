"""What flows now, from the newest readings, worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.compute.engine import Engine
from core.compute.live import Live
from core.plant.load import load_plant
from core.plant.model import Plant
from core.samples import NS_PER_S, batch_of_rows
from core.store.seam import Stocks

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
NOW = parse_rfc3339("2026-03-02T08:00:00Z")
PLANT = """\
plant: hall
name: {zh: 厅, en: Hall}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [ghg-protocol]
devices:
  - {id: m-grid}
  - {id: m-lamp}
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}
    - {id: main, kind: bus, carrier: electricity}
    - {id: bat, kind: storage, carrier: electricity, capacity_kwh: 100}
    - {id: sold, kind: export, carrier: electricity}
    - {id: press, kind: load, carrier: electricity}
    - {id: net, kind: source, carrier: chilled_water, origin: purchased, factor: 0.1}
    - {id: hall, kind: load, carrier: chilled_water}
    - {id: lamp, kind: load, carrier: electricity}
    - {id: lamps, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: main, meter: m-grid}
    - {id: e-sold, from: main, to: sold, meter: m-grid, direction: export}
    - {id: e-chg, from: main, to: bat, meter: bat.in}
    - {id: e-dis, from: bat, to: main, meter: bat.out}
    - {id: e-press, from: main, to: press, meter: press.energy}
    - {id: e-lamp, from: main, to: lamp, meter: m-lamp}
    - {id: e-lamps, from: main, to: lamps, meter: remainder}
    - {id: e-cold, from: net, to: hall, meter: cold.flow, medium: {supply_c: cold.out, return_c: cold.back}}
"""
POINTS = """\
point,device,name,quantity,unit,period_s
m-grid.active_power_total,m-grid,,active_power_total,kW,1
m-lamp.active_energy_import_total,m-lamp,,active_energy_import_total,kWh,1
m-lamp.active_power_total,m-lamp,,active_power_total,kW,1
bat.in,,,battery_charge_energy_total,kWh,1
bat.out,,,battery_discharge_energy_total,kWh,1
press.energy,,,active_energy_import_total,kWh,1
cold.flow,,,flow_mass,t/h,1
cold.out,,,temperature,degC,1
cold.back,,,temperature,degC,1
"""


@pytest.fixture
def hall(tmp_path: Path) -> Plant:
    (tmp_path / "plant.yaml").write_text(PLANT, "utf-8")
    (tmp_path / "points.csv").write_text(POINTS, "utf-8")
    return load_plant(tmp_path, [PROFILES])


@pytest.fixture
def live(hall: Plant) -> Live:
    return Live(Engine(hall, FactorLibrary.shipped()))


def see(live: Live, *rows: tuple[str, float, float]) -> None:
    """Readings of a point so many seconds after NOW."""
    live.observe(batch_of_rows([(point, NOW + int(s * NS_PER_S), value, 0) for point, s, value in rows]))


def edges(live: Live, at_s: float = 0.0, stocks: Stocks | None = None) -> dict[str, float | None]:
    return live.update(NOW + int(at_s * NS_PER_S), stocks).edges_kw


def test_a_coarse_register_tells_its_power_by_the_time_between_two_steps(live: Live) -> None:
    for second in range(0, 1800):  # 5 kW on a 1 kWh step, each 720 s
        see(live, ("press.energy", second, 500.0 + second // 720))

    assert edges(live, 1799)["e-press"] == pytest.approx(5.0, rel=0.01)
    for second in range(1800, 5041):  # and it stops: what it may still draw is less than a step since
        see(live, ("press.energy", second, 502.0))
    assert edges(live, 5040)["e-press"] == pytest.approx(3600 / 3600 * 1.0, rel=0.01)


def test_a_meter_that_gives_no_power_tells_it_by_its_register(live: Live) -> None:
    for second in (0, 36):
        see(live, ("m-lamp.active_energy_import_total", second, second / 36 * 0.1))
    by_register = edges(live, 36)["e-lamp"]
    see(live, ("m-lamp.active_power_total", 36, 12.0))

    assert by_register == pytest.approx(10.0)
    assert edges(live, 36)["e-lamp"] == 12.0


def test_a_register_without_a_step_yet_draws_nothing_and_one_seen_once_is_unknown(live: Live) -> None:
    see(live, ("press.energy", 0, 500.0))
    once = edges(live)["e-press"]
    see(live, ("press.energy", 1, 500.0))

    assert once is None
    assert edges(live, 1)["e-press"] == 0.0


def test_readings_of_a_second_come_in_any_order_and_the_newest_counts(live: Live) -> None:
    see(live, ("press.energy", 20, 500.2), ("press.energy", 0, 500.0), ("press.energy", 10, 500.1))
    see(live, ("press.energy", 5, 777.0))

    assert edges(live, 20)["e-press"] == pytest.approx(36.0, rel=1e-6)


@pytest.mark.parametrize(("kw", "bought", "sold"), [(80.0, 80.0, 0.0), (-30.0, 0.0, 30.0)])
def test_a_negative_power_is_export(live: Live, kw: float, bought: float, sold: float) -> None:
    see(live, ("m-grid.active_power_total", 0, kw))

    now = edges(live)

    assert (now["e-grid"], now["e-sold"]) == (bought, sold)


def test_a_carbon_rate_is_power_times_what_flows_together_at_the_bus(live: Live) -> None:
    bat = Stocks(("bat",), tuple(live._engine.flows), np.array([50.0]), np.full((1, 4), 10.0))
    for second in (0, 36):
        see(live, ("bat.out", second, second / 36 * 0.2), ("press.energy", second, second / 36 * 0.8))
        see(live, ("bat.in", second, 7.0), ("m-lamp.active_power_total", second, 0.0))
    see(live, ("m-grid.active_power_total", 36, 60.0))

    picture = live.update(NOW + 36 * NS_PER_S, bat)

    # 60 kW of 0.5 and 20 kW of the battery's 0.2 kg in each of two scopes: 38 kg in 80 kWh; the press takes it all.
    press = next(node for node in picture.nodes if node.node == "press")
    assert press.power_kw == pytest.approx(80.0)
    assert press.emissions_kgco2e_per_h == pytest.approx(38.0)
    assert press.intensity_kgco2e_per_kwh == pytest.approx(38.0 / 80.0)


def test_what_is_stale_or_absurd_is_unknown_and_not_zero(live: Live) -> None:
    see(live, ("m-grid.active_power_total", 0, 80.0))

    assert edges(live, 180)["e-grid"] == 80.0
    assert edges(live, 181)["e-grid"] is None
    see(live, ("m-grid.active_power_total", 200, 1e300))
    assert edges(live, 200)["e-grid"] is None


def test_cold_follows_its_two_temperatures_and_is_unknown_without_them(live: Live) -> None:
    see(live, ("cold.flow", 0, 10.0))
    blind = edges(live)["e-cold"]
    see(live, ("cold.out", 0, 12.0), ("cold.back", 0, 7.0))

    assert blind is None
    assert edges(live)["e-cold"] == pytest.approx(10.0 * 5.0 * 4.1868 / 3.6)


def test_a_changed_plant_keeps_the_newest_readings(live: Live, hall: Plant) -> None:
    see(live, ("m-grid.active_power_total", 0, 80.0))

    live.adopt(Engine(hall, FactorLibrary.shipped()))

    assert edges(live)["e-grid"] == 80.0
