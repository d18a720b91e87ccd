"""A backup without samples, restored: closed figures still verify, and nothing can be computed from nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from core.clock import parse_rfc3339
from core.errors import BadRequest
from core.store.backup import back_up, restore
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

    verdict = await verify_plant(plant, None, target)

    assert (verdict.difference, verdict.replayed, verdict.hashed) == (None, 0, 1)
    assert verdict.lost_before_ns == parse_rfc3339("2026-03-04T23:00:00Z")
    with pytest.raises(BadRequest, match="what was computed from them stands"):
        await recompute_window(plant, "2026-03-02T00:00:00Z", "2026-03-03T00:00:00Z", None, None, target)
