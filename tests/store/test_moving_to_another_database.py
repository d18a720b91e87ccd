"""`ecmc migrate`: everything arrives, once, proven; a kill costs nothing; nothing is written over."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from core.errors import StoreRefused
from core.store import table as tables
from core.store.move import move
from core.store.postgres import PostgresStore
from core.store.table import Chunk

ECMC = Path(sys.executable).with_name("ecmc")
Fill = Callable[..., Awaitable[None]]


def silent(done: int, of: int, what: str) -> None: ...


async def sums(dsn: str) -> dict[str, tables.Sum]:
    """Every table of a database, whole."""
    connection = await asyncpg.connect(dsn, server_settings={"timezone": "UTC"})
    try:
        found = await tables.tables_of(connection)
        return {table.name: await tables.read_out(connection, Chunk(table)) for table in found}
    finally:
        await connection.close()


async def execute(dsn: str, statement: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.fixture
def target(store_dsn: str) -> str:
    """An empty database: on the embedded server, and on the TimescaleDB server one may name."""
    return store_dsn


@pytest.fixture
async def source(database: str, fill: Fill) -> str:
    await fill(database)
    return database


async def test_every_table_arrives_whole(source: str, target: str) -> None:
    moved = await move(source, target, silent)

    there = await sums(target)
    assert there == await sums(source)
    assert {name: total.rows for name, total in there.items()} == moved.rows
    assert sum(total.rows > 0 for total in there.values()) > 15


async def test_numbers_go_on_where_they_were(source: str, target: str) -> None:
    newest = await execute(source, "SELECT max(id) FROM ecmc.correction")
    await execute(source, "UPDATE ecmc.seal_horizon SET closed_until = '2026-10-20' RETURNING 1")

    await move(source, target, silent)

    again = "SELECT nextval(pg_get_serial_sequence('ecmc.correction', 'id'))"
    assert await execute(target, again) > newest
    closed = "SELECT closed_until = '2026-10-20' FROM ecmc.seal_horizon"
    assert await execute(target, closed)


async def test_a_store_on_the_new_database_answers_as_the_old_one(
    source: str, target: str, plant: Any
) -> None:
    await move(source, target, silent)

    answers = []
    for dsn in (source, target):
        store = await PostgresStore.open(dsn, plant)
        span = await store.span()
        assert span is not None
        energy = await store.energy(["e-grid"], span[0], span[1], "1d")
        answers.append((span, energy.start_ns.tolist(), energy.columns["energy_kwh"].tolist()))
        await store.close()
    assert answers[0] == answers[1]


async def test_a_move_broken_off_goes_on_where_it_was(source: str, target: str) -> None:
    class Broken(Exception): ...

    def break_off(done: int, of: int, what: str) -> None:
        if done > of // 2:
            raise Broken

    with pytest.raises(Broken):
        await move(source, target, break_off)
    moved = await move(source, target, silent)

    assert moved.same > 0
    assert moved.copied > 0
    assert await sums(target) == await sums(source)


async def test_what_changed_between_two_attempts_is_copied_anew(source: str, target: str) -> None:
    def break_off(done: int, of: int, what: str) -> None:
        if done == of - 1:
            raise KeyError

    with pytest.raises(KeyError):
        await move(source, target, break_off)
    await execute(source, "UPDATE ecmc.sample SET value = value + 1 WHERE point_id = 1")
    await execute(
        source, "INSERT INTO ecmc.point (name, quantity, unit, kind) VALUES ('new', 'q', 'kW', 'gauge')"
    )

    await move(source, target, silent)

    assert await sums(target) == await sums(source)


async def test_an_unfinished_database_is_opened_by_nobody_else(
    source: str, database: str, databases: Any, plant: Any
) -> None:
    target = await asyncio.to_thread(databases.new)

    def break_off(done: int, of: int, what: str) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await move(source, target, break_off)

    with pytest.raises(StoreRefused, match="run that again"):
        await PostgresStore.open(target, plant)
    await move(source, target, silent)
    await (await PostgresStore.open(target, plant)).close()


async def test_a_target_with_data_is_left_alone(source: str, databases: Any, fill: Fill) -> None:
    target = await asyncio.to_thread(databases.new)
    await fill(target)
    before = await sums(target)

    with pytest.raises(StoreRefused, match="already holds data"):
        await move(source, target, silent)

    assert await sums(target) == before


async def test_another_plants_unfinished_move_is_left_alone(source: str, databases: Any, fill: Fill) -> None:
    other, target = await asyncio.to_thread(databases.new), await asyncio.to_thread(databases.new)
    await fill(other)

    def break_off(done: int, of: int, what: str) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        await move(other, target, break_off)

    with pytest.raises(StoreRefused, match="another plant's data"):
        await move(source, target, silent)


async def test_a_source_somebody_computes_on_is_not_moved(source: str, databases: Any) -> None:
    target = await asyncio.to_thread(databases.new)
    engine = await asyncpg.connect(source)
    await engine.execute("SELECT pg_advisory_lock(1701014883)")

    with pytest.raises(StoreRefused, match="stop it first"):
        await move(source, target, silent)
    await engine.close()


async def test_a_database_is_not_moved_onto_itself(source: str) -> None:
    with pytest.raises(StoreRefused):
        await move(source, source, silent)


async def test_a_source_without_a_plant_is_nothing_to_move(database: str, databases: Any) -> None:
    target = await asyncio.to_thread(databases.new)

    with pytest.raises(StoreRefused, match="nothing to move"):
        await move(database, target, silent)


async def test_a_killed_command_is_finished_by_the_same_command(databases: Any, fill: Fill) -> None:
    source, target = await asyncio.to_thread(databases.new), await asyncio.to_thread(databases.new)
    await fill(source, weeks=30, rows_a_week=3_000)
    words = [str(ECMC), "migrate", "--from", source, "--to", target]
    first = await asyncio.create_subprocess_exec(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    give_up = time.monotonic() + 60
    while not await execute(target, "SELECT EXISTS (SELECT FROM ecmc.sample)"):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)
    first.kill()
    await first.wait()

    second = await asyncio.to_thread(
        subprocess.run, words, capture_output=True, text=True, timeout=60, check=False
    )

    assert second.returncode == 0, second.stderr
    assert "sample: 90001 rows, compared" in second.stdout
    already = int(second.stdout.rsplit("copied, ", 1)[1].split()[0])
    assert already > 0
    assert await sums(target) == await sums(source)
