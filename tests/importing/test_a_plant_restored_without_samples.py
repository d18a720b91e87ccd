"""A backup without samples, restored: closed figures still verify, and nothing can be computed from nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from core.clock import parse_rfc3339, rfc3339
from core.errors import BadRequest
from core.plant.model import Plant
from core.store.backup import back_up, restore
from core.store.postgres import PostgresStore
from ecmc.command import import_samples, recompute_window, seal_period, verify_plant
from ecmc.folder import read_plant


def silent(done: int, of: int, what: str) -> None: ...


async def test_its_seals_hold_and_its_past_stands(
    plant_folder: Path, database: str, databases: Any, tmp_path: Path
) -> None:
    plant, samples, backup = read_plant(plant_folder), tmp_path / "rows.csv", tmp_path / "plant.backup"
    rows = [f"a,2026-03-0{1 + i // 24}T{i % 24:02d}:00:00Z,{i * i}" for i in range(96)]
    samples.write_text("\n".join(["point,time,value", *rows]))
    await import_samples(plant, samples, None, database)
    await seal_period(plant, "2026-03-02", "closed by hand", None, database)
    await back_up(database, backup, False, parse_rfc3339("2026-04-01T00:00:00Z"), silent)
    target = await asyncio.to_thread(databases.new)
    await restore(target, backup, plant.id, silent)

    verdict = await verify_plant(plant, None, None, target)

    assert (verdict.difference, verdict.replayed, verdict.hashed) == (None, 0, 1)
    assert verdict.lost_before_ns == parse_rfc3339("2026-03-04T23:00:00Z")
    with pytest.raises(BadRequest, match="what was computed from them stands"):
        await recompute_window(plant, "2026-03-02T00:00:00Z", "2026-03-03T00:00:00Z", None, None, target)

    # What comes late for that past lands and wipes nothing of it; what comes for other times is computed.
    before = await energy_kwh(plant, target)
    samples.write_text(
        "point,time,value\na,2026-03-02T00:30:00Z,600.5\na,2026-02-01T00:00:00Z,0\na,2026-02-01T01:00:00Z,5\n"
        "a,2026-03-06T00:00:00Z,9500\na,2026-03-06T01:00:00Z,9510\n"
    )
    late = await import_samples(plant, samples, None, target)

    after = await energy_kwh(plant, target)
    new = {hour: kwh for hour, kwh in after.items() if hour not in before}
    assert late.accepted == 5
    assert {hour: after[hour] for hour in before} == before
    assert new["2026-02-01T00:00:00Z"] == 5.0
    since = [kwh for hour, kwh in new.items() if hour >= "2026-03-04T23"]
    assert sum(since) == pytest.approx(9510 - 95**2)  # the register counts on from its last reading before
    with pytest.raises(BadRequest, match="what was computed from them stands"):
        await recompute_window(plant, "2026-03-02T00:00:00Z", "2026-03-03T00:00:00Z", None, None, target)


async def energy_kwh(plant: Plant, dsn: str) -> dict[str, float]:
    """Every stored hour of the plant's edge."""
    store = await PostgresStore.open(dsn, plant)
    try:
        start_ns, end_ns = parse_rfc3339("2026-01-01T00:00:00Z"), parse_rfc3339("2026-04-01T00:00:00Z")
        hours = await store.energy([plant.edges[0].id], start_ns, end_ns, "1h")
        return dict(
            zip(map(rfc3339, hours.start_ns.tolist()), hours.columns["energy_kwh"].tolist(), strict=True)
        )
    finally:
        await store.close()
