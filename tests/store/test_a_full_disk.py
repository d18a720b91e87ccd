"""A disk that fills up in the middle of a move or a restore: one plain line, and a whole database afterwards."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from core.errors import FaultyInput, StoreUnavailable
from core.store import table as tables
from core.store.backup import back_up, restore
from core.store.move import move
from core.store.table import Chunk
from ecmc.opened import own_server

Fill = Callable[..., Awaitable[None]]
Progress = Callable[[int, int, str], None]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 160 MB; a server made on it leaves some 60."""
    folder = Path(tempfile.mkdtemp(prefix="ecmc-small-", dir="/tmp"))
    words = ["mount", "-t", "tmpfs", "-o", "size=160m,mode=755", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(words, capture_output=True, check=False).returncode != 0:
        folder.rmdir()
        pytest.skip("only root can make a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()


def full(disk: Path) -> None:
    """Take all the room there is."""
    with (disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * (1 << 16)):
            pass


def filling(disk: Path, at: int) -> Progress:
    """A progress that fills the disk when so many chunks are done."""

    def progress(done: int, of: int, what: str) -> None:
        if done == at:
            full(disk)

    return progress


def silent(done: int, of: int, what: str) -> None: ...


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
