"""Meter events, factors and activities through a running ecmc: figures re-state by themselves."""

from __future__ import annotations

import json
import urllib.error
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

PLANT = """\
plant: written
name: {zh: 记录厂, en: Written}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [ghg-protocol]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}
    - {id: main, kind: bus, carrier: electricity}
    - {id: hall, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: main, meter: feeder.energy}
    - {id: e-hall, from: main, to: hall, meter: remainder}
"""
POINTS = "point,device,name,quantity,unit\nfeeder.energy,,,active_energy_import_total,kWh\n"
MIDNIGHT = datetime(2026, 3, 1, 16, tzinfo=UTC)  # of 2 March in Shanghai


def stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def replaced_meter() -> list[tuple[datetime, float]]:
    """100 kW for six hours; at 03:00:30 a meter that shows 5300 gives way to one that shows 12."""
    rows = []
    for minute in range(6 * 60 + 1):
        shown = 5000.0 + minute * 100 / 60 if minute <= 180 else 12.0 + (minute - 180.5) * 100 / 60
        rows.append((MIDNIGHT + timedelta(minutes=minute), shown))
    return rows


def refused(ecmc: Any, path: str, body: Any) -> dict[str, Any]:
    with pytest.raises(urllib.error.HTTPError) as error:
        ecmc.post(path, body, who="li")
    assert error.value.code == 422
    answer: dict[str, Any] = json.load(error.value)
    return answer


def test_a_replaced_meter_counts_on_without_a_spike_once_it_is_written_down(
    ecmc: Any, tmp_path: Path
) -> None:
    ecmc.write(plant_yaml=PLANT, points_csv=POINTS)
    ecmc.start()
    file = tmp_path / "replaced.csv"
    rows = [f"feeder.energy,{stamp(at)},{value!r}\n" for at, value in replaced_meter()]
    file.write_text("point,time,value\n" + "".join(rows), "utf-8")
    ecmc.import_(file)
    window = {"start": stamp(MIDNIGHT), "end": stamp(MIDNIGHT + timedelta(hours=6)), "bucket": "1h"}

    def energy() -> list[float]:
        return [row["energy_kwh"] for row in ecmc.get("/v1/energy", edge="e-grid", **window)]

    without = energy()
    change = MIDNIGHT + timedelta(hours=3, seconds=30)
    event = {
        "meter": "feeder.energy",
        "time": stamp(change),
        "kind": "replacement",
        "final_reading": 5000 + 180.5 * 100 / 60,
        "first_reading": 12.0,
        "why": "calibration due",
    }
    assert "ratio" in refused(ecmc, "/v1/meter-events", [{**event, "kind": "ratio"}])["detail"]
    assert refused(ecmc, "/v1/meter-events", [event, {**event, "meter": "m"}])["errors"][0]["row"] == 2
    (number,) = ecmc.post("/v1/meter-events", [event], who="li")["ids"]
    ecmc.wait_for(lambda: energy()[3] != without[3])

    assert without[3] < 100.0  # nothing is made up across a fall nobody explained
    assert energy() == pytest.approx([100.0] * 6)
    assert sum(energy()) == pytest.approx(600.0)  # what both meters counted, no more and no less
    (listed,) = ecmc.get("/v1/meter-events", meter="feeder.energy")["items"]
    assert (listed["who"], listed["why"], listed["first_reading"]) == ("li", "calibration due", 12.0)

    days = ecmc.get("/v1/ledger", point="feeder.energy", start=window["start"], end=window["end"])["days"]
    (day,) = days
    assert (day["first_reading"], day["last_reading"]) == (5000.0, pytest.approx(12 + 179.5 * 100 / 60))
    assert day["register_kwh"] is None  # last less first says nothing across a replacement
    assert day["energy_kwh"] == pytest.approx(600.0)
    assert day["events"][0]["kind"] == "replacement"
    assert day["marks"]["event"] >= 1

    ecmc.post(f"/v1/meter-events/{number}/withdraw", {"why": "it was the other feeder"}, who="wang")
    ecmc.wait_for(lambda: energy() == pytest.approx(without))
    assert ecmc.get("/v1/meter-events")["items"][0]["withdrawn_by"] == "wang"


def test_a_ratio_changed_in_the_middle_counts_from_then_on(ecmc: Any, tmp_path: Path) -> None:
    ecmc.write(plant_yaml=PLANT, points_csv=POINTS)
    ecmc.start()
    file = tmp_path / "steady.csv"
    rows = [
        f"feeder.energy,{stamp(MIDNIGHT + timedelta(minutes=m))},{m * 10 / 6!r}\n" for m in range(4 * 60 + 1)
    ]
    file.write_text("point,time,value\n" + "".join(rows), "utf-8")
    ecmc.import_(file)
    window = {"start": stamp(MIDNIGHT), "end": stamp(MIDNIGHT + timedelta(hours=4)), "bucket": "1h"}

    def energy() -> list[float]:
        return [row["energy_kwh"] for row in ecmc.get("/v1/energy", edge="e-grid", **window)]

    ecmc.post(
        "/v1/meter-events",
        {
            "meter": "feeder.energy",
            "time": stamp(MIDNIGHT + timedelta(hours=2)),
            "kind": "ratio",
            "ratio": 1.5,
        },
        who="li",
    )
    ecmc.wait_for(lambda: energy()[2] == pytest.approx(150.0))
    assert energy() == pytest.approx([100.0, 100.0, 150.0, 150.0])
    ecmc.stop()
    ecmc.start()  # the event is knowledge of the database: a restart has it too
    later = tmp_path / "later.csv"
    at = stamp(MIDNIGHT + timedelta(hours=3, seconds=30))
    later.write_text(f"point,time,value\nfeeder.energy,{at},{180.5 * 10 / 6!r}\n", "utf-8")
    ecmc.import_(later)
    assert energy() == pytest.approx([100.0, 100.0, 150.0, 150.0])
