"""A small works with grid, roof, gas, a battery and a formula, on a real database, with a clock set by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from core.bus import LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.compute.engine import Engine
from core.compute.pipeline import Pipeline
from core.health import Health
from core.plant.load import load_plant
from core.plant.model import Plant
from core.results import HOUR_NS
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store.postgres import PostgresStore
from core.store.seam import Correction, WriteReport

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START_NS = parse_rfc3339("2026-03-01T16:00:00Z")  # midnight in Shanghai

PLANT = """\
plant: works
name: {zh: 小厂, en: Works}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 900
method_sets: [zero-carbon-factory, ghg-protocol]
connections:
  - {id: mb1, protocol: modbus-tcp, host: 127.0.0.1, port: 1502}
devices:
  - {id: m-grid, connection: mb1, unit_id: 7, accuracy_class: 0.5, ct_ratio: 1, vt_ratio: 1}
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: roof, kind: source, carrier: electricity, origin: own, factor: 0}
    - {id: gas, kind: source, carrier: natural_gas, origin: purchased, fuel: natural_gas@ndrc_other_industry}
    - {id: main, kind: bus, carrier: electricity}
    - {id: bat, kind: storage, carrier: electricity, capacity_kwh: 100, charge_efficiency: 0.95, discharge_efficiency: 0.95}
    - {id: boiler, kind: load, burns: natural_gas}
    - {id: press, kind: load, carrier: electricity}
    - {id: lamps, kind: load, carrier: electricity}
    - {id: other, kind: load, carrier: electricity}
    - {id: sold, kind: export, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: main, meter: grid.energy}
    - {id: e-roof, from: roof, to: main, meter: roof.energy}
    - {id: e-gas, from: gas, to: boiler, meter: gas.volume}
    - {id: e-charge, from: main, to: bat, meter: bat.charged}
    - {id: e-discharge, from: bat, to: main, meter: bat.discharged}
    - {id: e-press, from: main, to: press, meter: press.energy}
    - {id: e-lamps, from: main, to: lamps, meter: "= e-press * 0.1"}
    - {id: e-sold, from: main, to: sold, meter: sold.energy}
    - {id: e-rest, from: main, to: other, meter: remainder}
"""
POINTS = """\
point,device,name,quantity,unit,address,function,type,scale,period_s
grid.energy,m-grid,,active_energy_import_total,kWh,40960,3,uint32,0.01,900
roof.energy,,,active_energy_yield_total,kWh,,,,,900
gas.volume,,,volume_std_total,Nm3,,,,,900
bat.charged,,,battery_charge_energy_total,kWh,,,,,900
bat.discharged,,,battery_discharge_energy_total,kWh,,,,,900
press.energy,,,active_energy_import_total,kWh,,,,,900
sold.energy,,,active_energy_export_total,kWh,,,,,900
"""
KW = {
    "grid.energy": 90.0,
    "roof.energy": 20.0,
    "gas.volume": 6.0,
    "bat.charged": 8.0,
    "bat.discharged": 4.0,
    "press.energy": 60.0,
    "sold.energy": 5.0,
}


@dataclass
class HandClock:
    time_ns: int

    def now_ns(self) -> int:
        return self.time_ns


def readings(
    start_ns: int, end_ns: int, kw: Mapping[str, float] = KW, every_s: int = 900, wobble: float = 0.1
) -> SampleBatch:
    """Registers that count, each at its own uneven pace, read every `every_s` from start to end, both included."""
    table = PointTable(tuple(kw))
    time_ns = np.arange(start_ns, end_ns + 1, every_s * NS_PER_S)
    hours = (time_ns - START_NS) / HOUR_NS
    value = [
        1000.0 + rate * (hours + wobble * np.sin(hours * (1 + 0.37 * i)))
        for i, rate in enumerate(kw.values())
    ]
    if "bat.discharged" in kw:  # a battery gives nothing back before it was charged
        value[list(kw).index("bat.discharged")] = 1000.0 + kw["bat.discharged"] * np.maximum(hours - 3, 0.0)
    point = np.repeat(np.arange(len(kw)), time_ns.size)
    return sample_batch(table, point, np.tile(time_ns, len(kw)), np.round(np.concatenate(value), 3))


@dataclass
class Works:
    """One plant, its store and its pipeline; `write` and `drain` are what a running plant does."""

    folder: Path
    plant: Plant
    store: PostgresStore
    clock: HandClock
    pipeline: Pipeline
    store_dsn: str

    @classmethod
    async def open(cls, dsn: str, folder: Path, clock: HandClock) -> Works:
        plant = load_plant(folder, [PROFILES])
        store = await PostgresStore.open(dsn, plant)
        pipeline = Pipeline(engine_of(plant), store, LocalBus(), Health(), clock)
        return cls(folder, plant, store, clock, pipeline, dsn)

    async def write(self, batch: SampleBatch, correction: Correction | None = None) -> WriteReport:
        return await self.store.write(batch, correction)

    async def drain(self) -> None:
        await self.pipeline.drain()


def engine_of(plant: Plant) -> Engine:
    return Engine(plant, FactorLibrary.for_plant(plant.folder))


@pytest.fixture
def plant_folder(tmp_path: Path) -> Path:
    (tmp_path / "plant.yaml").write_text(PLANT, "utf-8")
    (tmp_path / "points.csv").write_text(POINTS, "utf-8")
    return tmp_path


@pytest.fixture
async def works(database: str, plant_folder: Path) -> AsyncIterator[Works]:
    opened = await Works.open(database, plant_folder, HandClock(parse_rfc3339("2026-11-22T00:00:00Z")))
    yield opened
    await opened.store.close()


@pytest.fixture(name="readings")
def readings_maker() -> Callable[..., SampleBatch]:
    return readings


@pytest.fixture(scope="session", name="engine_of")
def engine_maker() -> Callable[[Plant], Engine]:
    return engine_of
