"""A plant's data from one database into another, whatever kind of server each is.

Chunk by chunk: one that is missing in the target is copied and read back, one
that differs is replaced, one that is the same is left. So a move that was
killed goes on by being started again, and its end is a proof: every chunk of
every table was compared by row count and SHA-256. The source is read in one
snapshot; it must be at rest, for what comes in during the move stays behind.

A target under way carries a mark that keeps everything else from opening it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import asyncpg

from core.errors import StoreRefused
from core.store import table as tables
from core.store.claim import CLAIM
from core.store.refusal import refusals
from core.store.series import Tier, tier_of
from core.store.table import Chunk, Connection, Table
from migrations import migrate, set_unfinished, unfinished

Progress = Callable[[int, int, str], None]  # chunks done, of how many, which one is next

_FIRST_ADOPTED = (
    "SELECT fingerprint || ' ' || extract(epoch FROM at) FROM ecmc.plant_validity ORDER BY id LIMIT 1"
)


@dataclass(slots=True)
class Moved:
    """What a move did: chunks copied, chunks that were there already, rows by table."""

    copied: int
    same: int
    rows: dict[str, int]


async def move(source_dsn: str, target_dsn: str, progress: Progress) -> Moved:
    """Make the target equal to the source, table by table.

    Raises:
        StoreRefused: The source holds no plant; the target holds data that are not from an unfinished move of this
            plant; or what was copied does not read back the same.
        StoreUnavailable: One of the servers went away; starting again goes on.
    """
    await migrate(source_dsn)
    with refusals():
        source = await _connect(source_dsn)
        try:
            if not await source.fetchval("SELECT pg_try_advisory_lock($1)", CLAIM):
                raise StoreRefused(
                    "an ecmc runs on the source: stop it first, or what it writes now stays behind"
                )
            whose = await source.fetchval(_FIRST_ADOPTED)
            if whose is None:
                raise StoreRefused("the source holds no plant's data: nothing to move")
            async with source.transaction(isolation="repeatable_read", readonly=True):
                await _open_target(target_dsn, whose)
                target = await _connect(target_dsn)
                try:
                    await _refuse_the_same(source, target)
                    moved = await _Move(source, target, await tier_of(target), progress).run()
                    await set_unfinished(target, None)
                finally:
                    await target.close()
        finally:
            await source.close()
    return moved


async def _connect(dsn: str) -> Connection:
    connection = await asyncpg.connect(dsn, timeout=10, server_settings={"timezone": "UTC", "jit": "off"})
    await connection.execute("SET work_mem = '64MB'")  # chunks are sorted
    return connection


async def _open_target(dsn: str, whose: str) -> None:
    """Bring the target's schema up, mark it as ours; leave it alone where it holds anything else."""
    under_way = await unfinished(dsn)
    if under_way not in (None, whose):
        raise StoreRefused(f"the target is being filled with another plant's data ({under_way})")
    await migrate(dsn, finished=False)
    if under_way == whose:
        return
    connection = await _connect(dsn)
    try:
        await refuse_data(connection)
        await set_unfinished(connection, whose)
    finally:
        await connection.close()


async def refuse_data(connection: Connection) -> None:
    """StoreRefused where any table has a row."""
    for table in await tables.tables_of(connection):
        if not await tables.is_empty(connection, Chunk(table)):
            raise StoreRefused(
                f"the target already holds data (ecmc.{table.name} is not empty): an empty database or a new"
                " folder is wanted; nothing was changed"
            )


async def _refuse_the_same(source: Connection, target: Connection) -> None:
    """A database is not moved onto itself, however it is called."""
    where = (
        "SELECT (SELECT oid FROM pg_database WHERE datname = current_database()), pg_postmaster_start_time()"
    )
    if tuple(await source.fetchrow(where) or ()) == tuple(await target.fetchrow(where) or ()):
        raise StoreRefused("source and target are the same database")


class _Move:
    def __init__(self, source: Connection, target: Connection, tier: Tier, progress: Progress) -> None:
        self._source = source
        self._target = target
        self._tier = tier
        self._progress = progress
        self._done = 0
        self._of = 0
        self._moved = Moved(0, 0, {})

    async def run(self) -> Moved:
        all_tables = await tables.tables_of(self._source)
        whole = [Chunk(table) for table in all_tables if table.time is None]
        timed = {
            table.name: await tables.chunks_of(self._source, table) for table in all_tables if table.time
        }
        self._of = len(whole) + sum(map(len, timed.values()))
        await self._registries(whole)
        for table in all_tables:
            if table.time is not None:
                self._moved.rows[table.name] = sum([await self._chunk(c) for c in timed[table.name]])
        await self._compare_counts(all_tables)
        await tables.set_counters(self._target, await tables.counters(self._source, all_tables))
        await tables.set_horizon(self._target, await tables.horizon(self._source))
        return self._moved

    async def _registries(self, chunks: Sequence[Chunk]) -> None:
        """The tables that are one chunk refer to each other: all of them at once, or none."""
        sums = [await tables.read_out(self._source, chunk) for chunk in chunks]
        if sums == [await tables.read_out(self._target, chunk) for chunk in chunks]:
            self._moved.same += len(chunks)
        else:
            async with self._target.transaction():
                for chunk in reversed(chunks):
                    await tables.delete(self._target, self._tier, chunk)
                for chunk in chunks:
                    self._progress(self._done, self._of, str(chunk))
                    await self._carry(chunk)
            self._moved.copied += len(chunks)
        self._moved.rows.update((c.table.name, total.rows) for c, total in zip(chunks, sums, strict=True))
        self._done += len(chunks)

    async def _chunk(self, chunk: Chunk) -> int:
        self._progress(self._done, self._of, str(chunk))
        self._done += 1
        is_new = await tables.is_empty(self._target, chunk)
        if not is_new:
            there = await tables.read_out(self._source, chunk)
            if there == await tables.read_out(self._target, chunk):
                self._moved.same += 1
                return there.rows
        elif await tables.is_empty(self._source, chunk):
            return 0
        await tables.make_room(self._target, self._tier, chunk)
        async with self._target.transaction():
            if not is_new:
                await tables.delete(self._target, self._tier, chunk)
            rows = await self._carry(chunk)
        self._moved.copied += 1
        return rows

    async def _carry(self, chunk: Chunk) -> int:
        left = await tables.carry(self._source, self._target, chunk)
        arrived = await tables.read_out(self._target, chunk)
        if left != arrived:
            raise StoreRefused(
                f"{chunk}: {left.rows} rows left ({left.sha256[:12]}), {arrived.rows} arrived"
                f" ({arrived.sha256[:12]}); the chunk was taken back"
            )
        return left.rows

    async def _compare_counts(self, all_tables: Sequence[Table]) -> None:
        for table in all_tables:
            arrived = await tables.row_count(self._target, table)
            if arrived != self._moved.rows[table.name]:
                raise StoreRefused(
                    f"{table.name}: {self._moved.rows[table.name]} rows at the source, {arrived} in the target"
                )
