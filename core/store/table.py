"""The tables of a database as they stand in it, and how their rows leave and enter it.

Nothing is listed by hand: whatever a migration adds travels with the next move
or backup. Rows travel in PostgreSQL's binary COPY format and in the order of
their key, so that equal rows are equal bytes on every server: a SHA-256 over
them compares two databases, or a database with a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import Any, TypeAlias

import asyncpg

from core.clock import datetime_of, time_ns_of
from core.samples import NS_PER_S
from core.store.series import Space, Tier, week_of, week_start_ns

Connection: TypeAlias = "asyncpg.Connection[Any]"
Sink: TypeAlias = Callable[[bytes], Awaitable[None]]

SAMPLE = "sample"
# Readings and what is known of them alone; without its readings a database has no use for the rest of these.
RAW = frozenset({SAMPLE, "latest_block", "dirty_range", "dirty_gauge"})

_TABLES = """
SELECT c.oid, c.relname AS name,
       ARRAY(SELECT a.attname FROM pg_attribute AS a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
             ORDER BY a.attnum) AS columns,
       ARRAY(SELECT a.attname FROM unnest(k.indkey::smallint[]) WITH ORDINALITY AS i(attnum, place)
             JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum = i.attnum ORDER BY i.place) AS key,
       ARRAY(SELECT a.attname FROM pg_attribute AS a
             WHERE a.attrelid = c.oid AND a.attnum = ANY(k.indkey) AND a.atttypid = 'timestamptz'::regtype) AS times,
       ARRAY(SELECT a.attname FROM pg_attribute AS a
             WHERE a.attrelid = c.oid AND a.attcollation <> 0) AS texts,
       ARRAY(SELECT a.attname FROM pg_attribute AS a
             WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
             AND pg_get_serial_sequence(format('ecmc.%I', c.relname), a.attname) IS NOT NULL) AS counted,
       ARRAY(SELECT f.confrelid FROM pg_constraint AS f
             WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid) AS parents
FROM pg_class AS c
JOIN LATERAL (
    SELECT i.indkey FROM pg_index AS i
    WHERE i.indrelid = c.oid AND i.indisunique AND i.indpred IS NULL AND i.indexprs IS NULL
    ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1
) AS k ON true
WHERE c.relnamespace = 'ecmc'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
AND c.relname <> 'alembic_version'
ORDER BY c.relname
"""


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its columns, its key, the time of the key that cuts it into chunks (None: it is one chunk)."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    time: str | None
    texts: frozenset[str]
    counted: tuple[str, ...]  # columns a sequence numbers

    def rows(self, chunk: Chunk | None = None) -> str:
        """The query for its rows, or those of a chunk, in the order of the key."""
        # Servers sort text each in its own way, bytes all in the same.
        order = ", ".join(f'"{c}" COLLATE "C"' if c in self.texts else f'"{c}"' for c in self.key)
        where = "" if chunk is None else chunk.where
        return f'SELECT {self._names()} FROM ecmc."{self.name}" {where} ORDER BY {order}'

    def _names(self) -> str:
        return ", ".join(f'"{column}"' for column in self.columns)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The rows of a table with start <= time < end, UTC; all of them where the table has no such time."""

    table: Table
    start: datetime | None = None
    end: datetime | None = None

    @property
    def where(self) -> str:
        if self.start is None or self.end is None:
            return ""
        column = self.table.time
        return f"WHERE \"{column}\" >= '{self.start.isoformat()}' AND \"{column}\" < '{self.end.isoformat()}'"

    def __str__(self) -> str:
        return self.table.name if self.start is None else f"{self.table.name} {self.start:%Y-%m-%d}"


@dataclass(frozen=True, slots=True)
class Sum:
    """What a chunk of rows amounts to."""

    rows: int
    sha256: str


async def tables_of(connection: Connection) -> list[Table]:
    """All tables of the schema, every table after those it refers to."""
    rows = {row["oid"]: row for row in await connection.fetch(_TABLES)}
    order = TopologicalSorter({oid: [p for p in row["parents"] if p in rows] for oid, row in rows.items()})
    return [
        Table(
            row["name"],
            tuple(row["columns"]),
            tuple(row["key"]),
            row["times"][0] if row["times"] else None,
            frozenset(row["texts"]),
            tuple(row["counted"]),
        )
        for row in (rows[oid] for oid in order.static_order())
    ]


async def chunks_of(connection: Connection, table: Table) -> list[Chunk]:
    """The chunks rows of a table lie in: weeks of samples, as they are stored; months of anything else with a time."""
    if table.time is None:
        return [Chunk(table)]
    if table.name == SAMPLE:  # min() over it would read it whole
        span = await connection.fetchrow("SELECT min(first_time), max(time) FROM ecmc.latest")
    else:
        span = await connection.fetchrow(
            f'SELECT min("{table.time}"), max("{table.time}") FROM ecmc."{table.name}"'
        )
    if span is None or span[0] is None:
        return []
    between = _weeks_between if table.name == SAMPLE else months_between
    return [Chunk(table, start, end) for start, end in between(span[0], span[1])]


def months_between(first: datetime, last: datetime) -> list[tuple[datetime, datetime]]:
    """Start and end of every month, UTC, from the one a time lies in to the one another lies in."""
    first, last = first.astimezone(UTC), last.astimezone(UTC)
    cuts = [datetime(first.year, first.month, 1, tzinfo=UTC)]
    while cuts[-1] <= last:
        cuts.append((cuts[-1] + timedelta(days=31)).replace(day=1))
    return list(pairwise(cuts))


def _weeks_between(first: datetime, last: datetime) -> list[tuple[datetime, datetime]]:
    weeks = range(week_of(time_ns_of(first)), week_of(time_ns_of(last)) + 2)
    return list(pairwise(datetime_of(week_start_ns(week)) for week in weeks))


async def is_empty(connection: Connection, chunk: Chunk) -> bool:
    query = f'SELECT NOT EXISTS (SELECT FROM ecmc."{chunk.table.name}" {chunk.where})'
    return bool(await connection.fetchval(query))


async def read_out(connection: Connection, chunk: Chunk, sink: Sink | None = None) -> Sum:
    """Hand a chunk's bytes on, and say what they amount to."""
    digest = hashlib.sha256()

    async def take(data: bytes) -> None:
        digest.update(data)
        if sink is not None:
            await sink(data)

    done = await connection.copy_from_query(chunk.table.rows(chunk), output=take, format="binary")
    return Sum(_count(done), digest.hexdigest())


async def write_in(
    connection: Connection, table: Table, source: AsyncIterator[bytes], columns: Sequence[str]
) -> int:
    """COPY bytes into columns of a table, in the transaction the connection is in; returns the rows."""
    done = await connection.copy_to_table(
        table.name, source=source, columns=list(columns), schema_name="ecmc", format="binary"
    )
    return _count(done)


async def carry(source: Connection, target: Connection, chunk: Chunk) -> Sum:
    """Copy a chunk from one database into another; what it amounted to at the source."""
    between: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=16)  # full: the source waits

    async def out() -> Sum:
        total = await read_out(source, chunk, between.put)
        await between.put(None)
        return total

    async def given() -> AsyncIterator[bytes]:
        while (data := await between.get()) is not None:
            yield data

    async with asyncio.TaskGroup() as both:
        leaving = both.create_task(out())
        both.create_task(write_in(target, chunk.table, given(), chunk.table.columns))
    return leaving.result()


async def delete(connection: Connection, tier: Tier, chunk: Chunk) -> None:
    if tier.has_columnstore:
        await connection.execute("SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
    await connection.execute(f'DELETE FROM ecmc."{chunk.table.name}" {chunk.where}')


async def make_room(connection: Connection, tier: Tier, chunk: Chunk) -> None:
    """The weeks of samples a chunk spans."""
    if chunk.table.name == SAMPLE and chunk.start is not None and chunk.end is not None:
        first, last = time_ns_of(chunk.start), time_ns_of(chunk.end) - NS_PER_S
        await Space(tier).ensure(connection, range(week_of(first), week_of(last) + 1))


async def row_count(connection: Connection, table: Table) -> int:
    return int(await connection.fetchval(f'SELECT count(*) FROM ecmc."{table.name}"'))


async def counters(connection: Connection, tables: Sequence[Table]) -> dict[str, int]:
    """Where the sequences of the numbered columns stand, by `table.column`; those never used left out."""
    found: dict[str, int] = {}
    for table in tables:
        for column in table.counted:
            name = await connection.fetchval(
                "SELECT pg_get_serial_sequence($1, $2)", f'ecmc."{table.name}"', column
            )
            row = await connection.fetchrow(f"SELECT last_value, is_called FROM {name}")
            if row is not None and row["is_called"]:
                found[f"{table.name}.{column}"] = row["last_value"]
    return found


async def set_counters(connection: Connection, values: Mapping[str, int]) -> None:
    """Go on numbering where the other database was, so that no number is given twice."""
    for name, value in values.items():
        table, column = name.split(".")
        await connection.execute(
            "SELECT setval(pg_get_serial_sequence($1, $2)::regclass, $3)", f'ecmc."{table}"', column, value
        )


async def horizon(connection: Connection) -> dict[str, str]:
    """Up to where days are closed and samples dropped: one row without a key, which no chunk carries."""
    if await connection.fetchval("SELECT to_regclass('ecmc.seal_horizon')") is None:  # an old schema
        return {}
    row = await connection.fetchval("SELECT row_to_json(h)::text FROM ecmc.seal_horizon AS h")
    found: dict[str, str] = json.loads(row)
    return found


async def set_horizon(connection: Connection, values: Mapping[str, str]) -> None:
    """Take it over, as far as this schema knows it; days closed by the seals that are here are closed in any case."""
    known = await horizon(connection)
    for name in sorted(values.keys() & known):
        await connection.execute(
            f'UPDATE ecmc.seal_horizon SET "{name}" = $1::text::timestamptz', values[name]
        )
    if known:
        await connection.execute(
            "UPDATE ecmc.seal_horizon SET closed_until = greatest(closed_until, s.until)"
            " FROM (SELECT max(end_time) AS until FROM ecmc.seal WHERE period = 'day') AS s"
        )


def _count(tag: str) -> int:
    return int(tag.split()[-1])
