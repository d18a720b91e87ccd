"""Shares of sources, cost by tariff, non-fossil parts through a battery; and meters corrected against each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from core.answers.reconciliation import reconciliation
from core.answers.shares import Shares, prices_at
from core.bus import LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import SystemClock, parse_rfc3339
from core.compute.engine import Engine
from core.compute.pipeline import Pipeline
from core.errors import BadRequest, FaultyInput
from core.health import Health
from core.plant.load import load_plant
from core.plant.model import Plant, Tariff, TariffPeriod
from core.results import HOUR_NS
from core.samples import NS_PER_S, PointTable, sample_batch
from core.store.postgres import PostgresStore

PROFILES = Path(__file__).resolve().parents[2] / "collector" / "profiles"
START = parse_rfc3339("2026-03-02T00:00:00+08:00")
PLANT = """\
plant: made
name: {zh: 构成厂, en: Made}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 900
method_sets: [ghg-protocol]
devices:
  - {id: m-grid, accuracy_class: 0.5}
  - {id: m-press, accuracy_class: 1}
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5, non_fossil_share: 0.4,
       tariff: {currency: CNY, price: 0.6, periods: [{from: "08:00", to: "11:00", price: 1.2}]}}
    - {id: roof, kind: source, carrier: electricity, origin: own, factor: 0}
    - {id: main, kind: bus, carrier: electricity}
    - {id: bat, kind: storage, carrier: electricity, capacity_kwh: 1000, charge_efficiency: 0.9}
    - {id: press, kind: load, carrier: electricity}
    - {id: rest, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: main, meter: grid.energy}
    - {id: e-roof, from: roof, to: main, meter: roof.energy}
    - {id: e-charge, from: main, to: bat, meter: bat.charged}
    - {id: e-discharge, from: bat, to: main, meter: bat.discharged}
    - {id: e-press, from: main, to: press, meter: press.energy}
    - {id: e-rest, from: main, to: rest, meter: REST}
"""
POINTS = """\
point,device,name,quantity,unit
grid.energy,m-grid,,active_energy_import_total,kWh
roof.energy,,,active_energy_yield_total,kWh
bat.charged,,,battery_charge_energy_total,kWh
bat.discharged,,,battery_discharge_energy_total,kWh
press.energy,m-press,,active_energy_import_total,kWh
rest.energy,,,active_energy_import_total,kWh
"""


def plant_in(folder: Path, rest: str = "remainder") -> Plant:
    (folder / "plant.yaml").write_text(PLANT.replace("REST", rest), "utf-8")
    (folder / "points.csv").write_text(POINTS, "utf-8")
    return load_plant(folder, [PROFILES])


async def works(plant: Plant, database: str, hours: dict[str, list[float]]) -> tuple[PostgresStore, Pipeline]:
    """kWh of each register hour by hour, read every quarter."""
    store = await PostgresStore.open(database, plant)
    count = len(next(iter(hours.values())))
    time_ns = START + np.arange(4 * count + 1) * 900 * NS_PER_S
    table = PointTable(tuple(hours))
    value = np.concatenate(
        [
            100.0 + np.interp(np.arange(4 * count + 1) / 4, np.arange(count + 1), [0.0, *np.cumsum(kwh)])
            for kwh in hours.values()
        ]
    )
    point = np.repeat(np.arange(len(hours)), time_ns.size)
    await store.write(sample_batch(table, point, np.tile(time_ns, len(hours)), value))
    pipeline = Pipeline(Engine(plant, FactorLibrary.shipped()), store, LocalBus(), Health(), SystemClock())
    await pipeline.drain()
    return store, pipeline


async def test_the_roofs_part_goes_through_the_battery_and_comes_out_later(
    tmp_path: Path, database: str
) -> None:
    # Hour 0: roof and grid halve, half of it is stored. Hour 1: the battery alone. From 8 to 9: the grid alone.
    store, pipeline = await works(
        plant_in(tmp_path),
        database,
        {
            "grid.energy": [50.0, 0, 0, 0, 0, 0, 0, 0, 100.0],
            "roof.energy": [50.0, 0, 0, 0, 0, 0, 0, 0, 0],
            "bat.charged": [50.0, 0, 0, 0, 0, 0, 0, 0, 0],
            "bat.discharged": [0, 45.0, 0, 0, 0, 0, 0, 0, 0],
            "press.energy": [50.0, 45.0, 0, 0, 0, 0, 0, 0, 40.0],
        },
    )
    shares = Shares(store, pipeline.history)
    (press, site) = await shares.of(["press", "site"], START, START + 9 * HOUR_NS)

    # 25 + 25 in the first hour; 45 out of the battery stand for 50 that went in; 40 from the grid.
    assert press.source_kwh == pytest.approx({"grid": 25 + 25 + 40.0, "roof": 25 + 25.0})
    assert press.energy_kwh == pytest.approx(135.0)
    assert press.cost == pytest.approx({"CNY": 50 * 0.6 + 40 * 1.2})
    assert press.priced_kwh == pytest.approx(90.0)
    assert press.non_fossil_kwh == pytest.approx(0.4 * 90 + 50)
    assert press.unknown_kwh == 0
    assert sum(site.source_kwh.values()) == pytest.approx(200.0)

    (later,) = await shares.of(["press"], START + HOUR_NS, START + 2 * HOUR_NS)
    assert later.source_kwh == pytest.approx({"earlier": 45.0})  # who filled the battery is before the window
    with pytest.raises(BadRequest, match="main is no load"):
        await shares.of(["main"], START, START + HOUR_NS)
    await store.close()


def test_a_tariff_by_hour_month_and_weekday(tmp_path: Path) -> None:
    plant = plant_in(tmp_path)
    tariff = Tariff(
        "CNY",
        0.6,
        (
            TariffPeriod(22 * 60, 6 * 60, 0.3, tuple(range(1, 13)), tuple(range(7))),
            TariffPeriod(18 * 60, 21 * 60, 1.5, (7, 8), (0, 1, 2, 3, 4)),
        ),
    )
    at = {
        "2026-07-06T19:00:00+08:00": 1.5,  # a Monday in July
        "2026-07-05T19:00:00+08:00": 0.6,  # a Sunday
        "2026-06-29T19:00:00+08:00": 0.6,  # June
        "2026-07-06T23:30:00+08:00": 0.3,
        "2026-07-07T05:45:00+08:00": 0.3,
        "2026-07-07T06:00:00+08:00": 0.6,
    }
    assert plant.zone == ZoneInfo("Asia/Shanghai")
    time_ns = np.array([parse_rfc3339(text) for text in at])
    assert prices_at(tariff, time_ns, plant).tolist() == list(at.values())


@pytest.mark.parametrize(
    ("swap", "reason"),
    [
        (('from: "08:00"', 'from: "8 o\'clock"'), "wanted a time of day"),
        (("currency: CNY, ", ""), "currency is missing"),
        (("price: 1.2", "price: dear"), "wanted a number"),
        (("non_fossil_share: 0.4", "non_fossil_share: 40"), "at most 1"),
    ],
)
def test_a_tariff_that_cannot_be_is_refused(tmp_path: Path, swap: tuple[str, str], reason: str) -> None:
    (tmp_path / "plant.yaml").write_text(PLANT.replace("REST", "remainder").replace(*swap), "utf-8")
    (tmp_path / "points.csv").write_text(POINTS, "utf-8")
    with pytest.raises(FaultyInput, match=reason):
        load_plant(tmp_path, [PROFILES])


async def test_the_meter_that_breaks_the_balance_is_named(tmp_path: Path, database: str) -> None:
    store, pipeline = await works(
        plant_in(tmp_path, "rest.energy"),
        database,
        {
            "grid.energy": [100.0] * 4,
            "roof.energy": [0.0] * 4,
            "bat.charged": [0.0] * 4,
            "bat.discharged": [0.0] * 4,
            "press.energy": [60.0] * 4,
            "rest.energy": [30.0]
            * 4,  # ten are missing; this meter's class is not stated, so it is the likeliest
        },
    )
    engine = pipeline.history.current
    rows = {row.edge: row for row in await reconciliation(engine, store, START, START + 4 * HOUR_NS)}

    corrected = {name: row.reconciled_kwh for name, row in rows.items()}
    assert corrected["e-grid"] + corrected["e-roof"] == pytest.approx(
        corrected["e-press"] + corrected["e-rest"] + corrected["e-charge"] - corrected["e-discharge"]
    )
    assert rows["e-rest"].assumed
    assert (rows["e-grid"].class_pct, rows["e-press"].class_pct) == (0.5, 1.0)
    assert any(row.suspect for row in rows.values())
    energy = await store.energy(["e-rest"], START, START + 4 * HOUR_NS, "1y")
    assert float(energy.columns["energy_kwh"].sum()) == pytest.approx(
        120.0
    )  # a view: nothing stored has moved
    await store.close()


async def test_both_views_over_http(office: Any) -> None:
    span = {"start": "2026-09-01T00:00:00+08:00", "end": "2026-09-02T00:00:00+08:00"}
    rows = (await office.http.get("/v1/participation", params={"node": "press", **span})).json()
    shares = {source["source"]: source["share"] for source in rows[0]["sources"]}
    assert shares == pytest.approx({"grid": 100 / 120, "roof": 20 / 120})
    answer = (await office.http.get("/v1/reconciliation", params=span)).json()
    assert {row["edge"] for row in answer["edges"]} >= {"e-grid", "e-press"}
    as_csv = await office.http.get("/v1/participation", params={"format": "csv", **span})
    assert as_csv.text.splitlines()[0].endswith("node,source,kwh,share")
