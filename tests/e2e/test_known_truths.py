"""Figures worked out by hand, asked through the public interface of a running ecmc."""

from __future__ import annotations

import gzip
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

PLANT = """\
plant: truths
name: {{zh: 真值厂, en: Truths}}
zone: {zone}
region: CN-CQ
base_interval_s: {base}
method_sets: [ghg-protocol]
network:
  nodes:
    - {{id: grid, kind: source, carrier: electricity, origin: purchased, factor: {factor}}}
    - {{id: main, kind: bus, carrier: electricity}}
    - {{id: hall, kind: load, carrier: electricity}}
  edges:
    - {{id: e-grid, from: grid, to: main, meter: feeder.energy}}
    - {{id: e-hall, from: main, to: hall, meter: remainder}}
"""
POINTS = """\
point,device,name,quantity,unit,counter_max
feeder.energy,,馈线电能,active_energy_import_total,kWh,{counter_max}
"""


def plant_files(
    zone: str = "Asia/Shanghai", base: int = 60, factor: str = "0.5", counter_max: str = ""
) -> dict[str, str]:
    return {
        "plant_yaml": PLANT.format(zone=zone, base=base, factor=factor),
        "points_csv": POINTS.format(counter_max=counter_max),
    }


def stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def write_csv(path: Path, rows: list[tuple[str, datetime, float]]) -> Path:
    text = "point,time,value\n" + "".join(f"{point},{stamp(at)},{value!r}\n" for point, at, value in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


MIDNIGHT = datetime(2026, 3, 2, tzinfo=UTC)


def steady_100_kw(silent: bool) -> list[tuple[str, datetime, float]]:
    """Readings each minute for eight hours of 100 kW, silent from 04:00 to 06:30."""
    rows = []
    for minute in range(8 * 60 + 1):
        if silent and 4 * 60 < minute < 6 * 60 + 30:
            continue
        rows.append(("feeder.energy", MIDNIGHT + timedelta(minutes=minute), 1000.0 + minute * 100.0 / 60.0))
    return rows


def hours(answer: list[dict[str, Any]], field: str) -> list[float]:
    return [row[field] for row in answer]


def test_a_silence_of_a_steady_load_is_spread_and_heals_when_the_readings_come(
    ecmc: Any, tmp_path: Path
) -> None:
    ecmc.write(**plant_files())
    ecmc.start()
    ecmc.import_(write_csv(tmp_path / "silent.csv", steady_100_kw(silent=True)))
    window = {"start": stamp(MIDNIGHT), "end": stamp(MIDNIGHT + timedelta(hours=8)), "bucket": "1h"}

    silent = ecmc.get("/v1/energy", edge="e-grid", **window)
    carbon = ecmc.get("/v1/emissions", node="hall", **window)
    ecmc.import_(write_csv(tmp_path / "late.csv", steady_100_kw(silent=False)))
    healed = ecmc.get("/v1/energy", edge="e-grid", **window)

    assert hours(silent, "energy_kwh") == pytest.approx([100.0] * 8, abs=1e-9)
    assert hours(silent, "estimated_share") == pytest.approx([0, 0, 0, 0, 1, 1, 0.5, 0], abs=1e-9)
    assert hours(silent, "coverage") == pytest.approx([1, 1, 1, 1, 0, 0, 0.5, 1], abs=1e-9)
    scope_2 = [row["emissions_kgco2e"] for row in carbon if row["scope"] == 2]
    assert scope_2 == pytest.approx([50.0] * 8, abs=1e-9)
    assert hours(healed, "energy_kwh") == pytest.approx([100.0] * 8, abs=1e-9)
    assert hours(healed, "estimated_share") == [0.0] * 8
    assert hours(healed, "coverage") == pytest.approx([1.0] * 8)


def test_any_shuffle_of_an_import_gives_identical_rows(ecmc: Any, tmp_path: Path) -> None:
    ecmc.write(**plant_files())
    ecmc.start()
    rows = steady_100_kw(silent=True)
    random.Random(7).shuffle(rows)
    window = {"start": stamp(MIDNIGHT), "end": stamp(MIDNIGHT + timedelta(hours=8))}

    for n, part in enumerate((rows[:200], rows[150:], rows)):
        ecmc.import_(write_csv(tmp_path / f"part{n}.csv.gz", part))
    shuffled = ecmc.get("/v1/energy", edge=["e-grid", "e-hall"], **window)
    ecmc.stop()
    ecmc.cli("run", "--help")
    import shutil

    shutil.rmtree(ecmc.data)
    ecmc.start()
    ecmc.import_(write_csv(tmp_path / "ordered.csv", steady_100_kw(silent=True)))
    ordered = ecmc.get("/v1/energy", edge=["e-grid", "e-hall"], **window)

    assert len(ordered) == 2 * 480
    assert shuffled == ordered


def test_the_steel_works_year_keeps_every_kilowatt_hour_and_every_kilogram(ecmc: Any, tmp_path: Path) -> None:
    from simulators.recording import steel_register  # the recording, as cumulative readings

    ecmc.write(**plant_files(zone="Asia/Seoul", base=900, factor="0.45848"))
    ecmc.start()
    times, register_kwh = steel_register()
    text = "point,time,value\n" + "".join(
        f"feeder.energy,{stamp(at)},{value!r}\n" for at, value in zip(times, register_kwh, strict=True)
    )
    file = tmp_path / "steel.csv.gz"
    file.write_bytes(gzip.compress(text.encode()))

    printed = ecmc.import_(file)
    window = {"start": "2017-12-31T15:00:00Z", "end": "2018-12-31T15:00:00Z"}
    intervals = ecmc.get("/v1/energy", edge="e-grid", bucket="15m", **window)
    year = ecmc.get("/v1/energy", edge="e-grid", bucket="1y", **window)
    carbon = ecmc.get("/v1/emissions", node="site", bucket="1y", **window)

    assert "accepted 35041" in printed
    assert len(intervals) == 35_040
    assert sum(row["energy_kwh"] for row in intervals) == pytest.approx(959_636.71, abs=0.005)
    assert year[0]["energy_kwh"] == pytest.approx(959_636.71, abs=0.005)
    scope_2 = next(row for row in carbon if row["scope"] == 2)
    assert scope_2["emissions_kgco2e"] / 1000 == pytest.approx(439.97, abs=0.01)


def test_a_register_that_wraps_keeps_counting_T9(ecmc: Any, tmp_path: Path) -> None:  # noqa: N802
    ecmc.write(**plant_files(counter_max="999999.99"))
    ecmc.start()
    rows = [
        ("feeder.energy", MIDNIGHT, 999_987.65),
        ("feeder.energy", MIDNIGHT + timedelta(minutes=1), 3.21),
    ]

    ecmc.import_(write_csv(tmp_path / "wrap.csv", rows))
    energy = ecmc.get(
        "/v1/energy", edge="e-grid", start=stamp(MIDNIGHT), end=stamp(MIDNIGHT + timedelta(hours=1))
    )

    assert [row["energy_kwh"] for row in energy] == pytest.approx([15.56], abs=1e-9)


TWO_BUSES = """\
plant: buses
name: {zh: 双母线, en: Two buses}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [ghg-protocol]
network:
  nodes:
    - {id: grid-1, kind: source, carrier: electricity, origin: purchased, factor: 0.5306}
    - {id: roof, kind: source, carrier: electricity, origin: own, factor: 0}
    - {id: grid-2, kind: source, carrier: electricity, origin: purchased, factor: 0.6}
    - {id: bus-1, kind: bus, carrier: electricity}
    - {id: bus-2, kind: bus, carrier: electricity}
    - {id: hall-1, kind: load, carrier: electricity}
    - {id: hall-2, kind: load, carrier: electricity}
  edges:
    - {id: e-grid-1, from: grid-1, to: bus-1, meter: a.energy}
    - {id: e-roof, from: roof, to: bus-1, meter: b.energy}
    - {id: e-tie, from: bus-1, to: bus-2, meter: c.energy}
    - {id: e-grid-2, from: grid-2, to: bus-2, meter: d.energy}
    - {id: e-hall-1, from: bus-1, to: hall-1, meter: remainder}
    - {id: e-hall-2, from: bus-2, to: hall-2, meter: remainder}
"""


def test_two_buses_mix_in_proportion_T10(ecmc: Any, tmp_path: Path) -> None:  # noqa: N802
    points = "".join(f"{name}.energy,,,active_energy_import_total,kWh\n" for name in "abcd")
    ecmc.write(plant_yaml=TWO_BUSES, points_csv="point,device,name,quantity,unit\n" + points)
    ecmc.start()
    power_kw = {"a": 100.0, "b": 50.0, "c": 90.0, "d": 30.0}
    rows = [
        (f"{name}.energy", MIDNIGHT + timedelta(minutes=minute), kw * minute / 60)
        for name, kw in power_kw.items()
        for minute in range(61)
    ]

    ecmc.import_(write_csv(tmp_path / "buses.csv", rows))
    window = {"start": stamp(MIDNIGHT), "end": stamp(MIDNIGHT + timedelta(hours=1)), "bucket": "1h"}
    intensity = {
        row["node"]: row["intensity_kgco2e_per_kwh"]
        for row in ecmc.get("/v1/intensity", node=["bus-1", "bus-2", "hall-2"], **window)
    }
    balance = ecmc.get("/v1/balance", node=["bus-1", "bus-2"], **window)

    assert intensity["bus-1"] == pytest.approx(0.353733, abs=1e-6)
    assert intensity["bus-2"] == pytest.approx(0.4153, abs=1e-6)
    assert intensity["hall-2"] == pytest.approx(0.4153, abs=1e-6)
    assert [row["residual_kwh"] for row in balance] == pytest.approx([0.0, 0.0], abs=1e-9)
