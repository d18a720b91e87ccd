"""A plant with grid, roof, gas and biomass, two months of steady readings, computed, behind the real app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from api.app import create_app
from api.deps import Services
from core.alerts import Alarms
from core.alerts.log import PostgresAlertLog
from core.answers.footprint import FootprintBook
from core.answers.inventory import Inventories
from core.answers.ledger import counter_ledger
from core.answers.period import Periods
from core.answers.reconciliation import reconciliation
from core.answers.shares import Shares
from core.bus import LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import SystemClock, parse_rfc3339
from core.compute.engine import Engine
from core.compute.pipeline import Pipeline
from core.energy.register import MeterEvent
from core.health import Health
from core.plant.load import load_plant
from core.plant.model import Plant
from core.proof.explain import Explanations
from core.registers.monte_carlo import MonteCarloRuns
from core.registers.shelf import Registers
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
  base_year: 2026
  base_year_kgco2e: 120000
  exclusions:
    - {what: {zh: 员工通勤, en: Commuting}, scope: 3, reason: {zh: 不显著, en: below the significance threshold}}
  uncertainty_pct: {grid: 5, natural_gas@ndrc_other_industry: 3}
products:
  - {id: gear, unit: t, nodes: press, shared: [boiler], life_cycle_factor: "generation_footprint_cn:coal",
     cbam: {sector: iron-and-steel, cn_code: "73181500"}}
  - {id: bolt, unit: t, nodes: [], shared: [boiler]}
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
    app: FastAPI


@pytest.fixture(scope="session")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Plant:
    folder = tmp_path_factory.mktemp("accounting")
    (folder / "plant.yaml").write_text(PLANT, "utf-8")
    (folder / "points.csv").write_text(POINTS, "utf-8")
    return load_plant(folder, [PROFILES])


@pytest.fixture(scope="session")
def computed(databases: Any, plant: Plant) -> str:
    """DSN of a database with the two months in it; whoever writes into it leaves it as it was."""
    dsn: str = databases.new()
    asyncio.run(_compute(dsn, plant))
    return dsn


async def _compute(dsn: str, plant: Plant) -> None:
    store = await PostgresStore.open(dsn, plant)
    every_ns = np.arange(parse_rfc3339(FROM), parse_rfc3339(TO) + 1, 4 * 3600 * NS_PER_S)
    hours = (every_ns - every_ns[0]) / (3600 * NS_PER_S)
    point = np.repeat(np.arange(len(KW), dtype=np.int32), hours.size)
    value = np.concatenate([hours * kw for kw in KW.values()])
    await store.write(sample_batch(PointTable(tuple(KW)), point, np.tile(every_ns, len(KW)), value))
    engine = Engine(plant, FactorLibrary.shipped())
    await Pipeline(engine, store, LocalBus(), Health(), SystemClock()).drain()
    await store.close()


_KEPT_BY_PEOPLE = "ecmc.entry, ecmc.certificate, ecmc.certificate_event, ecmc.evidence, ecmc.monte_carlo"


@pytest.fixture
async def office(computed: str, plant: Plant) -> AsyncIterator[Office]:
    """The plant with empty registers. Emptying them is a hundred times quicker than copying the database."""
    store = await PostgresStore.open(computed, plant)
    library = FactorLibrary.shipped()
    bus, health, clock = LocalBus(), Health(), SystemClock()
    pipeline = Pipeline(Engine(plant, library), store, bus, health, clock)
    registers = Registers(store.pool, plant, library)
    periods = Periods(plant, store, library, registers)
    inventories = Inventories(plant, store, periods, registers, partial(factors_used, store.pool))

    async def factors_changed(start_ns: int, end_ns: int) -> None:
        pipeline.adopt(Engine(plant, await registers.load()))
        await store.mark_dirty(parse_rfc3339(FROM), parse_rfc3339(TO), None, "factor")
        await pipeline.drain()

    async def event_changed(meter: str, event: MeterEvent) -> None:
        raise AssertionError("no test here writes one")

    services = Services(
        plant=lambda: plant,
        store=store,
        bus=bus,
        health=health,
        alarms=Alarms(plant, PostgresAlertLog(store.pool), bus, clock),
        clock=clock,
        devices=dict,
        live=lambda: None,
        indicators=inventories.indicators,
        inventories=lambda: inventories,
        green_ledger=periods.ledger,
        green_hours=periods.by_hour,
        library=lambda: registers.library,
        registers=lambda: registers,
        factors_changed=factors_changed,
        footprints=FootprintBook(plant, store, registers, clock.now_ns).of,
        counter_ledger=partial(counter_ledger, pipeline.history.current, store),
        event_changed=event_changed,
        boot="b",
        shares=Shares(store, pipeline.history),
        reconciliation=partial(reconciliation, pipeline.history.current, store),
        explain=Explanations(pipeline.history, store),
        monte_carlo=(runs := MonteCarloRuns(store.pool, clock)),
    )
    app = create_app(services)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        yield Office(plant, store, http, app)
    await runs.finished()
    await store.pool.execute(f"TRUNCATE {_KEPT_BY_PEOPLE} RESTART IDENTITY")
    await store.close()
