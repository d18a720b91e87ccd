"""A plant with grid, roof, gas and biomass, two months of steady readings, computed, behind the real app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest

from api.app import create_app
from api.deps import Services
from core.alerts import Alarms
from core.alerts.log import PostgresAlertLog
from core.bus import LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import SystemClock, parse_rfc3339
from core.engine import Engine
from core.health import Health
from core.inventory import Inventories
from core.period import Periods
from core.pipeline import Pipeline
from core.plant.load import load_plant
from core.plant.model import Plant
from core.samples import NS_PER_S, PointTable, sample_batch
from core.store.factor_use import factors_used
from core.store.postgres import PostgresStore

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"

PLANT = """\
plant: small
name: {zh: 小厂, en: Small}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 900
gap_after_s: 90000
method_sets: [zero-carbon-factory, ghg-protocol]
devices:
  - {id: m-grid, accuracy_class: 1}
  - {id: m-gas, accuracy_class: 2}
inventory:
  base_year: 2025
  base_year_kgco2e: 120000
  exclusions:
    - {what: {zh: 员工通勤, en: Commuting}, scope: 3, reason: {zh: 不显著, en: below the significance threshold}}
  uncertainty_pct: {grid: 5, natural_gas@ndrc_other_industry: 3}
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: roof, kind: source, carrier: electricity, origin: own, factor: 0}
    - {id: gas, kind: source, carrier: natural_gas, origin: purchased, fuel: natural_gas@ndrc_other_industry}
    - {id: straw, kind: source, carrier: biomass, origin: purchased, fuel: other_solid_biomass@ipcc_2006}
    - {id: main, kind: bus, carrier: electricity}
    - {id: boiler, kind: load, burns: natural_gas, name: {zh: 锅炉, en: Boiler}}
    - {id: stove, kind: load, burns: biomass}
    - {id: press, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: main, meter: grid.energy}
    - {id: e-roof, from: roof, to: main, meter: roof.energy}
    - {id: e-gas, from: gas, to: boiler, meter: gas.energy}
    - {id: e-straw, from: straw, to: stove, meter: straw.energy}
    - {id: e-press, from: main, to: press, meter: remainder}
"""
POINTS = """\
point,device,name,quantity,unit
grid.energy,m-grid,,active_energy_import_total,kWh
roof.energy,,,active_energy_yield_total,kWh
gas.energy,m-gas,,active_energy_import_total,kWh
straw.energy,,,active_energy_import_total,kWh
"""
KW = {"grid.energy": 100.0, "roof.energy": 20.0, "gas.energy": 50.0, "straw.energy": 10.0}
FROM, TO = "2026-08-31T16:00:00Z", "2026-10-31T16:00:00Z"  # September and October in Shanghai


@dataclass(slots=True)
class Office:
    """The accounting side of a computed plant."""

    plant: Plant
    store: PostgresStore
    http: httpx.AsyncClient


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    (tmp_path / "plant.yaml").write_text(PLANT, "utf-8")
    (tmp_path / "points.csv").write_text(POINTS, "utf-8")
    return load_plant(tmp_path, [PROFILES])


@pytest.fixture
async def office(database: str, plant: Plant) -> AsyncIterator[Office]:
    store = await PostgresStore.open(database, plant)
    library = FactorLibrary.shipped()
    bus, health, clock = LocalBus(), Health(), SystemClock()
    every_ns = np.arange(parse_rfc3339(FROM), parse_rfc3339(TO) + 1, 4 * 3600 * NS_PER_S)
    hours = (every_ns - every_ns[0]) / (3600 * NS_PER_S)
    table = PointTable(tuple(KW))
    point = np.repeat(np.arange(len(KW), dtype=np.int32), hours.size)
    value = np.concatenate([hours * kw for kw in KW.values()])
    await store.write(
        sample_batch(table, point, np.tile(every_ns, len(KW)), value, np.zeros(value.size, np.int16))
    )
    await Pipeline(Engine(plant, library), store, bus, health, clock).drain()
    services = Services(
        plant=lambda: plant,
        store=store,
        bus=bus,
        health=health,
        alarms=Alarms(plant, PostgresAlertLog(store.pool), bus, clock),
        clock=clock,
        devices=dict,
        live=lambda: None,
        indicators=Periods(plant, store, library).indicators,
        inventory=Inventories(plant, store, library, partial(factors_used, store.pool)).of,
        library=lambda: library,
        boot="b",
    )
    transport = httpx.ASGITransport(create_app(services))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield Office(plant, store, http)
    await store.close()
