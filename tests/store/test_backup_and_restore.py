"""A backup restored is the database it was made of, table by table; a damaged one restores nothing."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import zipfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from core.errors import FaultyInput, StoreRefused
from core.store import table as tables
from core.store.backup import back_up, read_manifest, restore
from core.store.postgres import PostgresStore
from core.store.table import Chunk
from ecmc.folder import read_plant

Fill = Callable[..., Awaitable[None]]
NOW_NS = 1_790_000_000_000_000_000


def silent(done: int, of: int, what: str) -> None: ...


async def sums(dsn: str) -> dict[str, tables.Sum]:
    """Every table of a database, whole."""
    connection = await asyncpg.connect(dsn, server_settings={"timezone": "UTC"})
    try:
        found = await tables.tables_of(connection)
        return {table.name: await tables.read_out(connection, Chunk(table)) for table in found}
    finally:
        await connection.close()


@pytest.fixture
async def source(database: str, fill: Fill) -> str:
    await fill(database)
    return database


async def test_with_its_samples_a_backup_restores_every_table(
    source: str, store_dsn: str, tmp_path: Path
) -> None:
    file = tmp_path / "plant.backup"

    made = await back_up(source, file, True, NOW_NS, silent)
    await restore(store_dsn, file, "p", silent)

    there = await sums(store_dsn)
    assert there == await sums(source)
    assert made.rows() == {name: total.rows for name, total in there.items()}


async def test_without_samples_all_but_the_raw_tables_are_the_same(
    source: str, databases: Any, tmp_path: Path
) -> None:
    file, target = tmp_path / "plant.backup", await asyncio.to_thread(databases.new)

    await back_up(source, file, False, NOW_NS, silent)
    await restore(target, file, "p", silent)

    before, after = await sums(source), await sums(target)
    raw = {"sample", "dirty_range", "dirty_gauge"}
    assert before["sample"].rows > 1000
    assert before["dirty_range"].rows > 0
    assert after["sample"].rows == 6  # the newest of each point, which its register counts on from
    assert after["dirty_range"].rows == 0
    assert {n: s for n, s in after.items() if n not in raw} == {
        n: s for n, s in before.items() if n not in raw
    }


async def test_up_to_where_days_are_closed_and_samples_dropped_is_restored_too(
    database: str, fill: Fill, databases: Any, tmp_path: Path
) -> None:
    await fill(database)
    told = {"closed_until": "2026-10-20T00:00:00+00:00", "thinned_until": "2026-10-05T00:00:00+00:00"}
    connection = await asyncpg.connect(database, server_settings={"timezone": "UTC"})
    for name, at in told.items():
        await connection.execute(f"UPDATE ecmc.seal_horizon SET {name} = '{at}'")
    await connection.close()
    file, target = tmp_path / "plant.backup", await asyncio.to_thread(databases.new)

    await back_up(database, file, True, NOW_NS, silent)
    await restore(target, file, "p", silent)

    connection = await asyncpg.connect(target, server_settings={"timezone": "UTC"})
    there = await tables.horizon(connection)
    await connection.close()
    assert there == told | {"dropped_until": "-infinity"}


async def test_a_restored_plant_knows_that_its_readings_are_gone(
    source: str, databases: Any, tmp_path: Path, plant: Any
) -> None:
    file, target = tmp_path / "plant.backup", await asyncio.to_thread(databases.new)
    await back_up(source, file, False, NOW_NS, silent)
    await restore(target, file, "p", silent)

    store = await PostgresStore.open(target, plant)
    newest = await store.latest(["p0"])
    kept_ns = await store.kept_from(["p0"])
    await store.close()

    assert kept_ns == newest.time_ns[0]


async def test_a_backup_is_of_one_moment_while_samples_come_in(
    source: str, databases: Any, tmp_path: Path, plant: Any
) -> None:
    file, target = tmp_path / "plant.backup", await asyncio.to_thread(databases.new)
    before = await sums(source)
    other = await asyncpg.connect(source)
    pending: list[asyncio.Task[Any]] = []

    def meddle(done: int, of: int, what: str) -> None:
        if done == 1:
            work = other.execute(
                "INSERT INTO ecmc.point (name, quantity, unit, kind) VALUES ('late', 'q', 'kW', 'gauge');"
                "UPDATE ecmc.sample SET value = value + 1; DELETE FROM ecmc.run"
            )
            pending.append(asyncio.ensure_future(work))

    await back_up(source, file, True, NOW_NS, meddle)
    await asyncio.gather(*pending)
    await other.close()
    await restore(target, file, "p", silent)

    assert await sums(source) != before
    assert await sums(target) == before


async def test_one_wrong_byte_restores_nothing(source: str, databases: Any, tmp_path: Path) -> None:
    file, target = tmp_path / "plant.backup", await asyncio.to_thread(databases.new)
    await back_up(source, file, True, NOW_NS, silent)
    changed = tmp_path / "changed.backup"
    _with_another_value(file, changed)
    before = await sums(target)

    with pytest.raises(FaultyInput, match="nothing was restored"):
        await restore(target, changed, "p", silent)

    assert await sums(target) == before


def _with_another_value(file: Path, changed: Path) -> None:
    """The same zip, sound in itself, but for one bit of the last value of the samples."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(changed, "w") as new:
        names = old.namelist()
        last = [name for name in names if name.startswith("sample/")][-1]
        for name in names:
            body = bytearray(old.read(name))
            if name == last:
                body[-24] ^= 1
            new.writestr(name, bytes(body))


def test_a_torn_file_is_no_backup(tmp_path: Path) -> None:
    torn = tmp_path / "torn.backup"
    torn.write_bytes(b"PK\x03\x04 and then nothing")

    with pytest.raises(FaultyInput, match="not a whole backup"):
        read_manifest(torn)


async def test_a_changed_manifest_is_noticed(source: str, tmp_path: Path) -> None:
    file, changed = tmp_path / "plant.backup", tmp_path / "changed.backup"
    await back_up(source, file, False, NOW_NS, silent)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            body = old.read(name)
            new.writestr(name, body.replace(b'"rows": 6', b'"rows": 7') if name == "manifest.json" else body)

    with pytest.raises(FaultyInput, match="manifest is damaged"):
        read_manifest(changed)


async def test_what_is_there_already_is_not_restored_over(source: str, tmp_path: Path) -> None:
    file = tmp_path / "plant.backup"
    await back_up(source, file, True, NOW_NS, silent)
    before = await sums(source)

    with pytest.raises(StoreRefused, match="already holds data"):
        await restore(source, file, "p", silent)

    assert await sums(source) == before


async def test_another_plants_backup_is_refused(source: str, databases: Any, tmp_path: Path) -> None:
    file, target = tmp_path / "plant.backup", await asyncio.to_thread(databases.new)
    await back_up(source, file, False, NOW_NS, silent)

    with pytest.raises(FaultyInput, match="of plant 'p', not of 'q'"):
        await restore(target, file, "q", silent)


async def test_a_backup_of_an_older_schema_is_brought_up_to_date(
    databases: Any, fill: Fill, tmp_path: Path
) -> None:
    """Made at the first schema, restored by this one."""
    from migrations import HEAD, migrate

    old, target = await asyncio.to_thread(databases.new), await asyncio.to_thread(databases.new)
    for dsn in (old, target):
        connection = await asyncpg.connect(dsn)
        await connection.execute("DROP SCHEMA ecmc CASCADE; DROP SCHEMA board CASCADE")
        await connection.close()
    await migrate(old, to="0001")
    connection = await asyncpg.connect(old)
    await connection.execute(
        "INSERT INTO ecmc.plant_revision VALUES ('f0', 'p', '厂', 'Plant', 'Asia/Shanghai', 60, 'm');"
        "INSERT INTO ecmc.edge (name, source, target, carrier) VALUES ('e', 'a', 'b', 'electricity');"
        "INSERT INTO ecmc.energy_1h VALUES (1, '2026-01-01T00:00:00Z', 1.5, 0, 3600)"
    )
    file = tmp_path / "old.backup"
    from core.store import backup as module

    await _backed_up_as_it_is(module, connection, file)
    await connection.close()

    await restore(target, file, "p", silent)

    connection = await asyncpg.connect(target)
    assert await connection.fetchval("SELECT energy_kwh FROM ecmc.energy_1h") == 1.5
    assert await connection.fetchval("SELECT version_num FROM ecmc.alembic_version") == HEAD
    await connection.close()


async def _backed_up_as_it_is(module: Any, connection: Any, file: Path) -> None:
    """A backup by the ecmc of that time: what `back_up` does once the schema is its own."""
    with zipfile.ZipFile(file, "w") as archive:
        await module._written(connection, archive, True, NOW_NS, silent)


def test_backup_and_restore_from_the_command_line(database: str, databases: Any, tmp_path: Path) -> None:
    ecmc = Path(sys.executable).with_name("ecmc")
    demo = Path(__file__).resolve().parents[2] / "simulators" / "plants" / "demo"
    file = tmp_path / "demo.backup"

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ecmc, *map(str, words)], capture_output=True, text=True, timeout=100, check=False
        )

    async def adopt() -> None:
        await (await PostgresStore.open(database, read_plant(demo))).close()

    asyncio.run(adopt())

    saved = run("backup", file, "--plant", demo, "--dsn", database, "--raw")
    back = run("restore", file, "--plant", demo, "--dsn", databases.new())

    assert saved.returncode == 0, saved.stderr
    assert back.returncode == 0, back.stderr
    assert back.stdout.startswith("restored ")
