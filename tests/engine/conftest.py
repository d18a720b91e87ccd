"""A small plant with everything in it, built without files."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.plant.load import load_plant
from core.plant.model import Plant

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"

PLANT = """\
plant: small
name: {zh: 小厂, en: Small}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [zero-carbon-factory, ghg-protocol]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: roof, kind: source, carrier: electricity, origin: own, factor: 0}
    - {id: gas, kind: source, carrier: natural_gas, origin: purchased, fuel: natural_gas@ndrc_other_industry}
    - {id: main, kind: bus, carrier: electricity}
    - {id: bat, kind: storage, carrier: electricity, capacity_kwh: 100, charge_efficiency: 0.95, discharge_efficiency: 0.95}
    - {id: boiler, kind: load, burns: natural_gas}
    - {id: press, kind: load, carrier: electricity}
    - {id: other, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: main, meter: grid.energy}
    - {id: e-roof, from: roof, to: main, meter: roof.energy}
    - {id: e-gas, from: gas, to: boiler, meter: gas.volume}
    - {id: e-charge, from: main, to: bat, meter: bat.charged}
    - {id: e-discharge, from: bat, to: main, meter: bat.discharged}
    - {id: e-press, from: main, to: press, meter: press.energy}
    - {id: e-rest, from: main, to: other, meter: remainder}
"""
POINTS = """\
point,device,name,quantity,unit
grid.energy,,,active_energy_import_total,kWh
roof.energy,,,active_energy_yield_total,kWh
gas.volume,,,volume_std_total,Nm3
bat.charged,,,battery_charge_energy_total,kWh
bat.discharged,,,battery_discharge_energy_total,kWh
press.energy,,,active_energy_import_total,kWh
"""


@pytest.fixture
def small_plant(tmp_path: Path) -> Plant:
    (tmp_path / "plant.yaml").write_text(PLANT, "utf-8")
    (tmp_path / "points.csv").write_text(POINTS, "utf-8")
    return load_plant(tmp_path, [PROFILES])
