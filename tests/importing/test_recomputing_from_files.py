"""Figures of months whose samples have left the database are computed again from the Parquet files, to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.clock import parse_rfc3339
from core.errors import BadRequest
from core.plant.model import Retention
from core.samples import NS_PER_S, PointTable, sample_batch
from core.store.postgres import PostgresStore
from core.store.upkeep import tidy
from ecmc.command import recompute_window, settle
from ecmc.folder import archive_in, read_plant

START, END = "2026-01-05T00:00:00Z", "2026-01-30T00:00:00Z"


async def test_a_recomputation_reads_dropped_months_from_their_files(
    plant_folder: Path, database: str, reachable: Callable[[str], Path]
) -> None:
    plant, data = read_plant(plant_folder), reachable("ecmc-files-")
    store = await PostgresStore.open(database, plant)
    store.archive = archive_in(data)
    store.archive.begin()
    time_ns = np.arange(
        parse_rfc3339("2026-01-01T00:00:00Z"), parse_rfc3339("2026-03-20T00:00:00Z"), 3600 * NS_PER_S
    )
    register = np.cumsum(np.random.default_rng(2).uniform(0, 9, time_ns.size) // 1)
    await store.write(sample_batch(PointTable(("a",)), np.zeros(time_ns.size), time_ns, register))
    await settle(plant, store)
    await store.pool.execute("UPDATE ecmc.seal_horizon SET closed_until = '2026-03-01T00:00:00Z'")
    await tidy(store, parse_rfc3339("2026-06-01T00:00:00Z"), Retention(feeding_days=30))
    left = await store.pool.fetchval("SELECT min(time) FROM ecmc.sample")
    await store.close()

    lines = await recompute_window(plant, START, END, None, data, database)

    assert left.isoformat() >= "2026-02-20"
    assert lines[-1].startswith("0 of ")
    (data / "parquet" / "samples").rename(data / "elsewhere")
    with pytest.raises(BadRequest, match="no longer kept"):
        await recompute_window(plant, START, END, None, data, database)
