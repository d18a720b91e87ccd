"""Gauges by quarter of an hour: count, sum, least and greatest of the samples that are not bad.

A bucket is always made anew from its samples, never added to, so repeated and
corrected samples cannot bend it. A ledger written with the samples says which
buckets; it is drained every few seconds where that is cheap, and once a minute at least.
"""

from __future__ import annotations

from typing import Any

import asyncpg

from core.clock import datetime_of, time_ns_of
from core.store.rollup import QUARTER_NS
from core.store.statement import statement

_AT_ONCE = 1000
_LOCK = 0x65636D6A

_Range = tuple[int, int, frozenset[int] | None]


async def refresh_gauges(connection: asyncpg.Connection[Any]) -> int:
    """Roll up all that the ledger says by now and drop it from there; returns the ranges done.

    What comes meanwhile waits for the next time: a quarter that is being caught up is not made over and over.
    """
    newest = await connection.fetchval("SELECT max(id) FROM ecmc.dirty_gauge")
    done = 0
    while newest is not None and (ranges := await _refresh(connection, newest)):
        done += ranges
    return done


async def _refresh(connection: asyncpg.Connection[Any], newest: int) -> int:
    """Some of the ranges up to that id, in one transaction."""
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        taken = await connection.fetch(
            "DELETE FROM ecmc.dirty_gauge WHERE id IN"
            " (SELECT id FROM ecmc.dirty_gauge WHERE id <= $2 ORDER BY id LIMIT $1)"
            " RETURNING start_time, end_time, point_ids",
            _AT_ONCE,
            newest,
        )
        for start_ns, end_ns, points in _merged([_quarters(row) for row in taken]):
            await connection.execute(
                statement("refresh_gauges"),
                datetime_of(start_ns),
                datetime_of(end_ns),
                None if points is None else sorted(points),
            )
    return len(taken)


def _quarters(row: asyncpg.Record) -> _Range:
    """The whole quarters [start, end) a range touches."""
    start_ns = time_ns_of(row["start_time"]) // QUARTER_NS * QUARTER_NS
    end_ns = (time_ns_of(row["end_time"]) // QUARTER_NS + 1) * QUARTER_NS
    return start_ns, end_ns, None if row["point_ids"] is None else frozenset(row["point_ids"])


def _merged(ranges: list[_Range]) -> list[_Range]:
    """Ranges that overlap as one, with all their points."""
    merged: list[_Range] = []
    for start_ns, end_ns, points in sorted(ranges, key=lambda r: r[:2]):
        if merged and start_ns < merged[-1][1]:
            before = merged[-1]
            both = None if points is None or before[2] is None else points | before[2]
            merged[-1] = before[0], max(end_ns, before[1]), both
        else:
            merged.append((start_ns, end_ns, points))
    return merged
