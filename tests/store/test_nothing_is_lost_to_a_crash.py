"""The database server killed under load: what was confirmed is there, and nothing twice."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from core.clock import parse_rfc3339
from core.errors import StoreUnavailable
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store.embedded import EmbeddedServer
from core.store.postgres import PostgresStore
from core.store.seam import WriteReport

START_NS = parse_rfc3339("2026-10-01T00:00:00Z")
TABLE = PointTable(("p0", "p1", "p2"))


@pytest.fixture
def server(reachable: Any) -> Iterator[EmbeddedServer]:
    folder: Path = reachable("ecmc-crash-")
    made = EmbeddedServer(folder / "data")
    yield made
    made.stop()
    shutil.rmtree(folder, ignore_errors=True)


def second(n: int) -> SampleBatch:
    """Three points at second n, and again what they said the second before."""
    at_s = np.array([n, n, n, max(0, n - 1)])
    return sample_batch(TABLE, [0, 1, 2, 0], START_NS + at_s * NS_PER_S, at_s.astype(float))


async def persistently(store: PostgresStore, batch: SampleBatch) -> WriteReport:
    """As the spool does: the same batch again until it is confirmed."""
    until = time.monotonic() + 30
    while True:
        try:
            return await store.write(batch)
        except StoreUnavailable:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("seed", range(3))
async def test_a_killed_server_loses_nothing_confirmed_and_doubles_nothing(
    server: EmbeddedServer, plant: Any, seed: int
) -> None:
    dsn = await asyncio.to_thread(server.start)
    store = await PostgresStore.open(dsn, plant)
    kill_after_s = 0.05 + 0.1 * np.random.default_rng(seed).random()

    async def kill_and_restart() -> None:
        await asyncio.sleep(kill_after_s)
        pid = await store.pool.fetchval("SELECT pg_backend_pid()")
        postmaster = psutil.Process(pid).parent()
        assert postmaster is not None
        postmaster.kill()
        await asyncio.to_thread(server.stop)
        await asyncio.to_thread(server.start)

    async def produce() -> list[WriteReport]:
        return [await persistently(store, second(n)) for n in range(120)]

    _, reports = await asyncio.gather(kill_and_restart(), produce())
    rows = await store.pool.fetch(
        "SELECT extract(epoch FROM time)::float8 AS at, value FROM ecmc.sample ORDER BY point_id, time"
    )
    newest = await store.latest()
    await store.close()

    assert [r["value"] for r in rows] == [float(n) for _ in range(3) for n in range(120)]
    assert [r["at"] - START_NS / NS_PER_S for r in rows] == [float(n) for _ in range(3) for n in range(120)]
    assert newest.value.tolist() == [119.0] * 3
    assert sum(report.conflict_count for report in reports) == 0


async def test_a_database_that_went_away_is_said_so_and_serves_again_once_back(
    server: EmbeddedServer, plant: Any
) -> None:
    dsn = await asyncio.to_thread(server.start)
    store = await PostgresStore.open(dsn, plant)
    await asyncio.to_thread(server.stop)

    with pytest.raises(StoreUnavailable):
        await store.ready()
    again = await asyncio.to_thread(server.start)
    await store.ready()
    report = await store.write(second(1))
    await store.close()

    assert again == dsn
    assert report.accepted == 4
