"""Readings for days that are closed: noted as late, so that what was known at the seal can be read again.

A closed day is verified with the readings it was computed from. Those that came
or changed afterwards are noted here with their time of arrival; `as_of` reads
past them. Whoever writes old readings holds the horizon shared until the
commit, so a day does not close between the note and the reading.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import numpy as np

from core.clock import datetime_of
from core.results import HOUR_NS
from core.store.copy import pg_time
from core.store.series import Tier

if TYPE_CHECKING:
    from core.store.writer import Rows

CLOSES_AFTER_NS = HOUR_NS  # no day closes sooner after its end: younger readings need not be looked at
_REACH_NS = 8 * 24 * HOUR_NS  # how far around a window its context may be searched for

_HORIZON = "SELECT extract(epoch FROM closed_until)::float8 FROM ecmc.seal_horizon FOR SHARE"

_NEW = """
INSERT INTO ecmc.late_sample (point_id, time, at)
SELECT point_id, to_timestamp(micro / 1e6 + 946684800), clock_timestamp()
FROM unnest($1::int[], $2::bigint[]) AS late (point_id, micro)
ON CONFLICT DO NOTHING
"""

# What `replace` is about to change, by the same rule; $1: a correction. It begins at $3.
_OLD = """
INSERT INTO ecmc.late_sample (point_id, time, at, old_value, old_status)
SELECT s.point_id, s.time, clock_timestamp(), s.value, s.status
FROM incoming AS i JOIN ecmc.sample AS s ON s.point_id = i.point_id AND s.time = i.time
WHERE s.time < to_timestamp($2::float8) AND s.time >= $3
  AND (
      (
          i.status BETWEEN 0 AND 16383 AND s.status NOT BETWEEN 0 AND 16383
          AND NOT EXISTS (SELECT FROM ecmc.correction AS c WHERE c.point_id = s.point_id AND c.time = s.time)
      )
      OR ($1 AND s.value <> i.value)
  )
"""


async def note_new(connection: asyncpg.Connection[Any], rows: Rows) -> None:
    """Note which of these newly written rows lie in closed days; in the transaction that writes them."""
    if len(rows) == 0 or int(rows.time_ns.min()) > time.time_ns() - CLOSES_AFTER_NS:
        return
    horizon_s: float = await connection.fetchval(_HORIZON)
    late = rows.time_ns < horizon_s * 1e9 if np.isfinite(horizon_s) else np.zeros(len(rows), dtype=np.bool_)
    if late.any():
        micro = pg_time(rows.time_ns[late])
        await connection.execute(_NEW, rows.point[late].tolist(), micro.tolist())


async def note_old(connection: asyncpg.Connection[Any], rows: Rows, correcting: bool) -> None:
    """Note what `replace` is about to change in closed days; `rows` are those in `incoming`."""
    if len(rows) == 0 or int(rows.time_ns.min()) > time.time_ns() - CLOSES_AFTER_NS:
        return
    horizon_s: float = await connection.fetchval(_HORIZON)
    if np.isfinite(horizon_s):
        await connection.execute(_OLD, correcting, horizon_s, datetime_of(int(rows.time_ns.min())))


_UNDO = """
WITH late AS (
    SELECT DISTINCT ON (point_id, time) point_id, time, old_value, old_status
    FROM ecmc.late_sample
    WHERE at > $1 AND point_id = ANY($2) AND time >= $3 AND time < $4
    ORDER BY point_id, time, at
),
gone AS (
    DELETE FROM ecmc.sample AS s USING late
    WHERE s.point_id = late.point_id AND s.time = late.time AND late.old_status IS NULL
)
UPDATE ecmc.sample AS s SET value = late.old_value, status = late.old_status
FROM late
WHERE s.point_id = late.point_id AND s.time = late.time AND late.old_status IS NOT NULL
"""


@asynccontextmanager
async def as_of(
    connection: asyncpg.Connection[Any], tier: Tier, ids: list[int], start_ns: int, end_ns: int, at_ns: int
) -> AsyncIterator[bool]:
    """Inside, this connection alone sees the readings around [start, end) as they were at a time.

    Yields whether that is as they are now.

    Later ones are taken out in a transaction that is always rolled back, so that the very same statements read
    the past as the present.
    """
    span = datetime_of(start_ns - _REACH_NS), datetime_of(end_ns + _REACH_NS)
    any_late = await connection.fetchval(
        "SELECT EXISTS (SELECT FROM ecmc.late_sample"
        " WHERE at > $1 AND point_id = ANY($2) AND time >= $3 AND time < $4)",
        datetime_of(at_ns),
        ids,
        *span,
    )
    if not any_late:
        yield True
        return
    undone = connection.transaction()
    await undone.start()
    try:
        if tier.has_columnstore:
            await connection.execute("SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
        await connection.execute(_UNDO, datetime_of(at_ns), ids, *span)
        yield False
    finally:
        await undone.rollback()
