"""A month closed by command, proven by command, asked over HTTP, and found out when somebody touches it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg

PLANT = """\
plant: closing
name: {zh: 关账厂, en: Closing}
zone: Asia/Shanghai
region: CN
base_interval_s: 900
gap_after_s: 7200
method_sets: [zero-carbon-factory]
network:
  nodes:
    - {id: grid, kind: source, carrier: electricity, origin: purchased, factor: grid}
    - {id: hall, kind: load, carrier: electricity}
  edges:
    - {id: e-grid, from: grid, to: hall, meter: grid.energy}
"""
POINTS = """\
point,device,name,quantity,unit
grid.energy,,,active_energy_import_total,kWh
"""


def rows(hours: range) -> str:
    times = (f"2026-03-{1 + hour // 24:02}T{hour % 24:02}:00:00+08:00" for hour in hours)
    lines = (f"grid.energy,{time},{10.0 * hour}" for hour, time in zip(hours, times, strict=True))
    return "point,time,value\n" + "\n".join(lines) + "\n"


def test_seal_verify_and_what_came_late(ecmc: Any, tmp_path: Path, database: str) -> None:
    ecmc.write(plant_yaml=PLANT, points_csv=POINTS)
    file = tmp_path / "march.csv"
    with_dsn = ("--plant", ecmc.plant, "--dsn", database)

    file.write_text(rows(range(20)) + rows(range(30, 49)).split("\n", 1)[1], "utf-8")
    ecmc.cli("import", *with_dsn, file)
    assert "day 2026-03-01 revision 1 sealed" in ecmc.cli("seal", *with_dsn, "2026-03-01", "--why", "test")
    assert ecmc.cli("verify", *with_dsn).startswith("1 seals hold: 1 days computed again")

    file.write_text(rows(range(20, 30)), "utf-8")
    ecmc.cli("import", *with_dsn, file)
    assert "month 2026-03 revision 1 sealed" in ecmc.cli("seal", *with_dsn, "2026-03", "--why", "report")
    assert "5 seals hold" in ecmc.cli("verify", *with_dsn)

    march = ("--from", "2026-03-01T00:00:00+08:00", "--to", "2026-03-03T00:00:00+08:00")
    filed = ecmc.cli("recompute", *with_dsn, *march, "--out", tmp_path / "out", "--method-set", "cbam")
    assert "scope 2 location cbam kgCO2e: not stored, " in filed
    assert "nothing stored was changed" in filed
    ecmc.cli("recompute", *with_dsn, *march, "--bucket", "15m", code=2)  # a width is of files

    asyncio.run(_tamper(database))
    said = ecmc.cli("verify", *with_dsn, code=1)
    assert said.startswith(
        "day 2026-03-01 revision 1: energy e-grid energy_kwh at 2026-03-01T05:00:00Z: 2.5 is"
    )


async def _tamper(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "UPDATE ecmc.sample SET value = value + 1 WHERE time = '2026-03-01T06:00:00Z'"
        )
    finally:
        await connection.close()


def test_seals_over_http(ecmc: Any, tmp_path: Path) -> None:
    ecmc.write(plant_yaml=PLANT, points_csv=POINTS)
    ecmc.start()
    file = tmp_path / "march.csv"
    file.write_text(rows(range(25)), "utf-8")
    ecmc.import_(file)
    folders = ("--plant", ecmc.plant, "--data", ecmc.data)
    ecmc.cli("seal", *folders, "2026-03-01", "--why", "asked for")  # beside the ecmc that runs

    (seal,) = ecmc.get("/v1/seals", period="day")["seals"]
    assert (seal["label"], seal["revision"], seal["why"], seal["newest"]) == (
        "2026-03-01",
        1,
        "asked for",
        True,
    )
    assert seal["start"] == "2026-02-28T16:00:00Z"
    opened = ecmc.get(seal["explain"].split("?")[0], node="site", start=seal["start"], end=seal["end"])
    assert opened["emissions_kgco2e"] > 0
    assert ecmc.get("/v1/seals", start="2026-04-01T00:00:00Z")["seals"] == []
    ecmc.cli("seal", *folders, "2026-03-01", code=2)  # closed as it stands
