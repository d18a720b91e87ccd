"""A real ecmc, files put into its inbox folder, and a kill in the middle of one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

PLANT = """\
plant: push
name: {zh: 推送厂, en: Push}
zone: Asia/Shanghai
region: CN-CQ
base_interval_s: 60
method_sets: [ghg-protocol]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: 0.5}
    - {id: hall, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: hall, meter: feeder.energy}
"""
POINTS = "point,device,name,quantity,unit\nfeeder.energy,,,active_energy_import_total,kWh\n"
START = datetime(2026, 3, 2, tzinfo=UTC)
ROWS = 180_000  # enough that its first rows are readable long before its last


def test_killed_in_the_middle_of_a_file_every_row_is_stored_once(ecmc: Any) -> None:
    ecmc.write(plant_yaml=PLANT, points_csv=POINTS)
    ecmc.start()
    inbox = ecmc.data / "inbox"
    ecmc.wait_for(inbox.is_dir)
    rows = "".join(
        f"feeder.energy,{(START + timedelta(seconds=i)).isoformat()},{i / 10}\n" for i in range(ROWS)
    )
    (inbox / "day.csv.part").write_text("point,time,value\n" + rows)
    (inbox / "day.csv.part").rename(inbox / "day.csv")

    def any_row() -> Any:
        end = START + timedelta(minutes=1)
        return ecmc.get("/v1/samples", point="feeder.energy", start=START.isoformat(), end=end.isoformat())[
            "items"
        ]

    ecmc.wait_for(any_row)
    ecmc.kill()
    killed_in_the_middle = (inbox / "day.csv").exists()
    ecmc.start(40)
    ecmc.wait_for((inbox / "done" / "day.csv").exists)

    (inbox / "bad.csv").write_text("point,time,value\nnobody,2026-03-02T00:00:00Z,1\n")

    end = START + timedelta(seconds=ROWS)
    window = {"start": START.isoformat(), "end": end.isoformat(), "bucket": "1y"}
    ecmc.wait_for(
        lambda: (
            sum(row["energy_kwh"] for row in ecmc.get("/v1/energy", edge="e-grid", **window))
            == pytest.approx((ROWS - 1) / 10)
        )
    )
    faults = ecmc.wait_for(lambda: next(iter((inbox / "faulty").glob("*.faults.txt")), None))
    assert killed_in_the_middle
    assert faults.read_text() == "bad.csv:2:1: unknown point 'nobody'\n"
    ecmc.wait_for(lambda: ecmc.get("/v1/health")["parts"]["inbox"]["status"] == "degraded")
