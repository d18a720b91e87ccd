"""What TimescaleDB changes, all in one place: six operations over `sample`, chosen by probing.

Three kinds of server are out there: plain PostgreSQL, TimescaleDB under its
Apache licence (hypertables, no columnstore) and the community edition (both).
Everything else in ecmc is one text for all of them. Correcting compressed rows
and refreshing roll-ups are the other two operations; they are one statement
with a limit raised, and one path of code, in `writer` and `gauge`.

Partitions are weeks and there is no default one: with it PostgreSQL could no
longer read them in time order, and "the last reading before" would scan them
all. A batch makes the weeks it needs, however old.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
import numpy as np
import numpy.typing as npt

from core.clock import datetime_of, time_ns_of
from core.samples import NS_PER_S

if TYPE_CHECKING:  # only a migration needs it, and every start would wait for it
    from sqlalchemy import Connection

WEEK_NS = 7 * 86_400 * NS_PER_S
_MONDAY_NS = 4 * 86_400 * NS_PER_S  # 1970-01-05
_SPACE_LOCK = 0x65636D64
_LONG_S = 3600.0  # a whole week of samples is gone through

_SAMPLE = """
CREATE TABLE ecmc.sample (
    time     timestamptz NOT NULL,
    value    float8 NOT NULL,
    point_id int NOT NULL,
    status   smallint NOT NULL
)
"""
_KEY = "CREATE UNIQUE INDEX sample_key ON ecmc.sample (point_id, time)"


@dataclass(frozen=True, slots=True)
class Tier:
    """What the server can do beyond PostgreSQL."""

    has_timescale: bool
    has_columnstore: bool  # the community licence

    @property
    def name(self) -> str:
        if not self.has_timescale:
            return "plain"
        return "community" if self.has_columnstore else "apache"


_PROBE = """
SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb') AS has_timescale,
       EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
           AND current_setting('shared_preload_libraries') ~ 'timescaledb' AS could_have,
       coalesce(current_setting('timescaledb.license', true), '') = 'timescale' AS community
"""


def probe(connection: Connection) -> Tier:
    """Ask the server, creating the extension where it is installed and we may."""
    row = connection.exec_driver_sql(_PROBE).one()
    has_timescale = bool(row.has_timescale)
    if row.could_have and not has_timescale:
        may_create = connection.exec_driver_sql(
            "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"
        ).scalar()
        if may_create:
            connection.exec_driver_sql("CREATE EXTENSION timescaledb")
            row = connection.exec_driver_sql(_PROBE).one()
            has_timescale = True
    return Tier(has_timescale, has_timescale and bool(row.community))


def make_series(connection: Connection, tier: Tier) -> None:
    """Create `sample` as this server keeps time series best."""
    if not tier.has_timescale:
        connection.exec_driver_sql(_SAMPLE + " PARTITION BY RANGE (time)")
        connection.exec_driver_sql(_KEY)
        return
    connection.exec_driver_sql(_SAMPLE)
    connection.exec_driver_sql(_KEY)
    connection.exec_driver_sql(
        "SELECT create_hypertable('ecmc.sample', by_range('time', INTERVAL '7 days'),"
        " create_default_indexes => false)"
    )
    if tier.has_columnstore:
        connection.exec_driver_sql(
            "ALTER TABLE ecmc.sample SET (timescaledb.compress,"
            " timescaledb.compress_segmentby = 'point_id', timescaledb.compress_orderby = 'time')"
        )


_KIND_OF_SAMPLE = """
SELECT c.relkind = 'p' AS partitioned,
       coalesce(current_setting('timescaledb.license', true), '') = 'timescale' AS community
FROM pg_class AS c
WHERE c.oid = 'ecmc.sample'::regclass
"""


async def tier_of(connection: asyncpg.Connection[Any]) -> Tier:
    """How `sample` is kept in this database."""
    row = await connection.fetchrow(_KIND_OF_SAMPLE)
    assert row is not None
    return Tier(not row["partitioned"], not row["partitioned"] and row["community"])


_T = TypeVar("_T", int, npt.NDArray[np.int64])


def week_of(time_ns: _T) -> _T:
    """Number of the week a time, or each of many, lies in; weeks begin on Monday, UTC."""
    return (time_ns - _MONDAY_NS) // WEEK_NS


def week_start_ns(week: int) -> int:
    return week * WEEK_NS + _MONDAY_NS


class Space:
    """The weeks `sample` has room for; `ensure` makes those a batch still needs."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._weeks: set[int] = set()

    async def ensure(self, connection: asyncpg.Connection[Any], weeks: Iterable[int]) -> None:
        """Outside a transaction: a week once made stays, whatever becomes of the batch."""
        if self._tier.has_timescale:
            return
        missing = set(weeks) - self._weeks
        if not missing:
            return
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_SPACE_LOCK})")
            for week in sorted(missing):
                start, end = datetime_of(week_start_ns(week)), datetime_of(week_start_ns(week + 1))
                name = f"sample_{start:%Y%m%d}"
                await connection.execute(
                    f"CREATE TABLE IF NOT EXISTS ecmc.{name} PARTITION OF ecmc.sample"
                    f" FOR VALUES FROM ('{start:%Y-%m-%d}+00') TO ('{end:%Y-%m-%d}+00')"
                )
        self._weeks |= missing

    def forget(self) -> None:
        """Another process may have dropped weeks."""
        self._weeks.clear()


@dataclass(frozen=True, slots=True)
class Week:
    """One partition or chunk of `sample`."""

    name: str  # with its schema, quoted
    end_ns: int
    must_compress: bool  # it could be, and is not or not whole


async def weeks_of(connection: asyncpg.Connection[Any], tier: Tier) -> list[Week]:
    """All of `sample`, oldest first."""
    if tier.has_columnstore:
        query = _CHUNKS.format(
            must_compress="NOT is_compressed OR _timescaledb_functions.chunk_status(c) & 8 <> 0"
        )
    elif tier.has_timescale:
        query = _CHUNKS.format(must_compress="false")
    else:
        rows = await connection.fetch(
            "SELECT c.relname FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhrelid"
            " WHERE i.inhparent = 'ecmc.sample'::regclass ORDER BY c.relname"
        )
        starts = [datetime.strptime(row["relname"], "sample_%Y%m%d").replace(tzinfo=UTC) for row in rows]
        return [
            Week(f"ecmc.{row['relname']}", time_ns_of(start) + WEEK_NS, False)
            for row, start in zip(rows, starts, strict=True)
        ]
    rows = await connection.fetch(query)
    return [Week(row["name"], time_ns_of(row["range_end"]), row["must_compress"]) for row in rows]


_CHUNKS = """
SELECT c::text AS name, range_end, {must_compress} AS must_compress
FROM timescaledb_information.chunks, format('%I.%I', chunk_schema, chunk_name) AS of, to_regclass(of) AS c
WHERE hypertable_schema = 'ecmc' AND hypertable_name = 'sample'
ORDER BY range_end
"""


_HORIZON = "UPDATE ecmc.seal_horizon SET thinned_until = greatest(thinned_until, $1){}"


async def raw_bytes(connection: asyncpg.Connection[Any], tier: Tier) -> int:
    """What `sample` takes on the disk, indexes and all."""
    if tier.has_timescale:
        return int(await connection.fetchval("SELECT hypertable_size('ecmc.sample')"))
    return int(
        await connection.fetchval(
            "SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0) FROM pg_inherits"
            " WHERE inhparent = 'ecmc.sample'::regclass"
        )
    )


async def is_compressed(connection: asyncpg.Connection[Any], tier: Tier, start_ns: int, end_ns: int) -> bool:
    """Whether any of [start, end] is."""
    if not tier.has_columnstore:
        return False
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM timescaledb_information.chunks WHERE hypertable_schema = 'ecmc'"
            " AND hypertable_name = 'sample' AND is_compressed AND range_start <= $2 AND range_end > $1)",
            datetime_of(start_ns),
            datetime_of(end_ns),
        )
    )


async def compress(connection: asyncpg.Connection[Any], tier: Tier, older_than_ns: int) -> int:
    """Compress what is older, and what came late for what was; returns the number of chunks it was done to.

    Nothing to do without a columnstore.
    """
    due = [
        week
        for week in await weeks_of(connection, tier)
        if week.must_compress and week.end_ns <= older_than_ns
    ]
    for week in due:
        await connection.execute(f"SELECT compress_chunk('{week.name}')", timeout=_LONG_S)
    return len(due)


async def retain(connection: asyncpg.Connection[Any], tier: Tier, older_than_ns: int) -> int:
    """Drop the weeks that are older whole, of every point; returns how many. Results are never touched."""
    due = [week for week in await weeks_of(connection, tier) if week.end_ns <= older_than_ns]
    if due:  # said before it is done: a kill in between only leaves roll-ups as they are
        await connection.execute(
            _HORIZON.format(", dropped_until = greatest(dropped_until, $1)"), datetime_of(due[-1].end_ns)
        )
    if due and tier.has_timescale:
        horizon = datetime_of(due[-1].end_ns)
        await connection.execute("SELECT drop_chunks('ecmc.sample', older_than => $1::timestamptz)", horizon)
    elif due:
        for week in due:
            await connection.execute(f"DROP TABLE {week.name}")
    return len(due)


async def thin(connection: asyncpg.Connection[Any], tier: Tier, week: Week) -> int:
    """Drop what a week has of points that feed no edge, and give its disk back; returns the rows dropped."""
    await connection.execute(_HORIZON.format(""), datetime_of(week.end_ns))
    async with connection.transaction():
        if tier.has_columnstore:
            await connection.execute("SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
        done = await connection.execute(
            f"DELETE FROM {week.name} WHERE point_id = ANY(ARRAY(SELECT id FROM ecmc.point WHERE NOT feeds))",
            timeout=_LONG_S,
        )
    rows = int(done.split()[-1])
    if rows:  # nothing new comes for an old week that would take the room in it
        await connection.execute(f"VACUUM FULL {week.name}", timeout=_LONG_S)
    return rows
