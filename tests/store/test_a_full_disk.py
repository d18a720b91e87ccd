"""A disk that fills up in the middle of a write, a migration, a move or a restore: one plain line, and a whole database
afterwards."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import numpy as np
import pytest

from core.clock import parse_rfc3339
from core.errors import FaultyInput, StoreUnavailable
from core.results import HOUR_NS, WindowResult
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store import table as tables
from core.store.backup import back_up, restore
from core.store.embedded import EmbeddedServer, running_dsn
from core.store.move import move
from core.store.postgres import PostgresStore
from core.store.room import Room
from core.store.seam import Run, WriteReport
from core.store.table import Chunk
from ecmc.opened import own_server
from migrations import migrate

START_NS = parse_rfc3339("2026-10-01T00:00:00Z")
Fill = Callable[..., Awaitable[None]]
Progress = Callable[[int, int, str], None]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 200 MB; a server made on it leaves some 100."""
    folder = Path(tempfile.mkdtemp(prefix="ecmc-small-", dir="/tmp"))
    words = ["mount", "-t", "tmpfs", "-o", "size=200m,mode=755", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode != 0:
        folder.rmdir()
        pytest.skip("only root can make a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def full(disk: Path, but: int = 0) -> None:
    """Take all the room there is, but for some bytes."""
    with (disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while shutil.disk_usage(disk).free > but and file.write(b"\0" * (1 << 16)):
            pass


def filling(disk: Path, at: int) -> Progress:
    """A progress that fills the disk when so many chunks are done."""

    def progress(done: int, of: int, what: str) -> None:
        if done == at:
            full(disk)

    return progress


def silent(done: int, of: int, what: str) -> None: ...


@pytest.fixture
def server(small_disk: Path) -> Iterator[EmbeddedServer]:
    """A database server on the small disk."""
    made = EmbeddedServer(small_disk / "data")
    made.start()
    yield made
    made.stop()


def dsn_on(disk: Path) -> str:
    dsn = running_dsn(disk / "data")
    assert dsn is not None
    return dsn


def second(first: int, rows: int = 10_000) -> SampleBatch:
    """A reading a second from `first` on, of one point."""
    at_s = np.arange(first, first + rows)
    return sample_batch(PointTable(("p0",)), np.zeros(rows), START_NS + at_s * NS_PER_S, at_s)


async def until_refused(store: PostgresStore) -> tuple[int, str]:
    """Write until nothing more is taken; the rows confirmed and what was said."""
    rows = 0
    while rows < 3_000_000:
        try:
            rows += (await store.write(second(rows))).accepted
        except StoreUnavailable as why:
            return rows, str(why)
    raise AssertionError("the disk never filled")


async def persistently(store: PostgresStore, server: EmbeddedServer, batch: SampleBatch) -> WriteReport:
    """As a running plant does: its server brought back, the batch again."""
    for _ in range(50):
        try:
            return await store.write(batch)
        except StoreUnavailable:
            await asyncio.to_thread(server.revive)
            await asyncio.sleep(0.2)
    raise AssertionError("it never healed")


async def test_a_write_into_a_full_disk_is_taken_back_whole_and_goes_on_when_there_is_room(
    server: EmbeddedServer, small_disk: Path, plant: Any
) -> None:
    store = await PostgresStore.open(dsn_on(small_disk), plant)
    await asyncio.to_thread(full, small_disk, 20 << 20)

    rows, said = await until_refused(store)
    (small_disk / "ballast").unlink()
    again = await persistently(store, server, second(rows))

    stored = await store.pool.fetchrow("SELECT count(*), min(value), max(value), sum(value) FROM ecmc.sample")
    await store.close()
    whole = rows + 10_000
    assert "disk is full" in said or "does not answer" in said
    assert "\n" not in said
    assert again.accepted + again.repeated == 10_000
    assert tuple(stored) == (whole, 0, whole - 1, whole * (whole - 1) / 2)


async def test_raw_samples_stop_before_results_and_go_on_by_themselves(
    server: EmbeddedServer, small_disk: Path, plant: Any, window: Callable[..., WindowResult]
) -> None:
    store = await PostgresStore.open(dsn_on(small_disk), plant)
    seconds = itertools.count()
    store.room = Room(small_disk, clock_s=lambda: float(next(seconds)))
    await asyncio.to_thread(full, small_disk, store.room.short_bytes + (8 << 20))

    rows, said = await until_refused(store)
    await store.write_window(window(START_NS, 48), Run(START_NS, "f1", "samples"))
    (small_disk / "ballast").unlink()
    again = await store.write(second(rows))
    energy = await store.energy(["e-grid"], START_NS, START_NS + 48 * HOUR_NS, "1h")
    await store.close()

    assert "samples wait until there are" in said
    assert "figures go on" in said
    assert 0 < rows < 500_000
    assert server.is_alive()
    assert server.last_words() is None
    assert (again.accepted, len(energy.start_ns)) == (10_000, 48)


async def test_a_migration_on_a_full_disk_changes_nothing_and_is_done_when_there_is_room(
    server: EmbeddedServer, small_disk: Path
) -> None:
    dsn = dsn_on(small_disk)
    await asyncio.to_thread(full, small_disk)

    with pytest.raises(StoreUnavailable) as said:
        await migrate(dsn)
    (small_disk / "ballast").unlink()
    await asyncio.to_thread(server.revive)
    connection = await asyncpg.connect(dsn)
    left = await connection.fetchval("SELECT count(*) FROM pg_namespace WHERE nspname IN ('ecmc', 'board')")
    await connection.close()
    await migrate(dsn)

    assert "\n" not in str(said.value)
    assert left == 0


async def sums(dsn: str) -> dict[str, tables.Sum]:
    connection = await asyncpg.connect(dsn, server_settings={"timezone": "UTC"})
    try:
        found = await tables.tables_of(connection)
        return {table.name: await tables.read_out(connection, Chunk(table)) for table in found}
    finally:
        await connection.close()


async def attempt(work: Callable[[str], Awaitable[Any]], disk: Path) -> str:
    """What the work says when it runs on the disk's own server; "" when it succeeds."""
    try:
        async with own_server(disk / "data") as dsn:
            await work(dsn)
    except StoreUnavailable as why:
        return str(why)
    return ""


async def test_a_move_stopped_by_a_full_disk_goes_on_when_there_is_room(
    database: str, fill: Fill, small_disk: Path
) -> None:
    await fill(database, weeks=12, rows_a_week=8_000)

    said = await attempt(lambda dsn: move(database, dsn, filling(small_disk, 40)), small_disk)
    (small_disk / "ballast").unlink()
    async with own_server(small_disk / "data") as dsn:
        moved = await move(database, dsn, silent)

        assert await sums(dsn) == await sums(database)
    assert "No space left on device" in said
    assert "\n" not in said
    assert moved.same > 0


async def test_a_restore_stopped_by_a_full_disk_has_written_nothing(
    database: str, fill: Fill, small_disk: Path, tmp_path: Path
) -> None:
    await fill(database, weeks=12, rows_a_week=8_000)
    file = tmp_path / "plant.backup"
    await back_up(database, file, True, 1_790_000_000_000_000_000, silent)

    said = await attempt(lambda dsn: restore(dsn, file, "p", filling(small_disk, 40)), small_disk)
    (small_disk / "ballast").unlink()
    async with own_server(small_disk / "data") as dsn:
        assert sum(total.rows for total in (await sums(dsn)).values()) <= 1  # the schema's own row
        await restore(dsn, file, "p", silent)

        assert await sums(dsn) == await sums(database)
    assert "No space left on device" in said


async def test_a_backup_onto_a_full_disk_leaves_no_half_file(
    database: str, fill: Fill, small_disk: Path
) -> None:
    await fill(database)
    await asyncio.to_thread(full, small_disk)

    with pytest.raises(FaultyInput, match="No space left"):
        await back_up(database, small_disk / "plant.backup", True, 1_790_000_000_000_000_000, silent)

    assert os.listdir(small_disk) == ["ballast"]
    assert shutil.disk_usage(small_disk).free < 1 << 20
