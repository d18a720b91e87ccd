"""Samples into the database: once each, whatever is repeated, late or in dispute.

A batch is copied straight into `sample`; the unique index on (point, time) says
whether anything stands there already. Only then does the batch go the long way,
through a temporary table and the rule for what differs:

- the same value again changes nothing;
- a good value replaces a bad or uncertain one;
- any other difference is refused and reported, unless it is a correction, which
  keeps the old value with who, why and when;
- what stands by a correction gives way to another correction alone, so a value that
  was taken back does not return with the next delivery.

Within one batch the rule does not ask which came first: of several values for
one key a good one stands before an uncertain before a bad one, then the
smallest. So a shuffled batch stores the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt
from asyncpg import exceptions as pg

from core.clock import datetime_of, time_ns_of
from core.quality import BAD, is_bad, is_good
from core.samples import NS_PER_S, Floats, Indices, Statuses, Times
from core.store import late
from core.store.copy import copy_in, pg_time
from core.store.gauge import mark_gauges
from core.store.seam import Correction
from core.store.series import Space, Tier, week_of
from core.store.statement import statement

_COLUMNS = ("time", "value", "point_id", "status")
_POINTS_NAMED = 50  # a dirty range names its points up to this many
_APART_NS = 3600 * NS_PER_S  # changed times further apart make two dirty ranges
_MAX_CONFLICTS = 1000


async def prepare(connection: asyncpg.Connection[Any]) -> None:
    """Give a new connection the tables a batch passes through."""
    await connection.execute(
        "CREATE TEMP TABLE incoming (time timestamptz, value float8, point_id int, status smallint)"
        " ON COMMIT DELETE ROWS;"
        "CREATE TEMP TABLE newest (point_id int, time timestamptz, value float8, status smallint,"
        " first_time timestamptz) ON COMMIT DELETE ROWS"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Samples by database id, sorted by (point, time), each key once."""

    point: Indices
    time_ns: Times
    value: Floats
    status: Statuses

    def __len__(self) -> int:
        return int(self.point.size)

    def take(self, rows: npt.NDArray[Any]) -> Rows:
        return Rows(self.point[rows], self.time_ns[rows], self.value[rows], self.status[rows])


@dataclass(frozen=True, slots=True)
class Dispute:
    point: int
    time_ns: int
    stored: float
    stored_status: int
    offered: float
    offered_status: int


@dataclass(frozen=True, slots=True)
class Outcome:
    inserted: int = 0
    replaced: int = 0
    corrected: int = 0
    repeated: int = 0
    disputes: tuple[Dispute, ...] = ()
    dispute_count: int = 0


def settled(point: Indices, time_ns: Times, value: Floats, status: Statuses) -> tuple[Rows, Outcome]:
    """Samples in any order as Rows, and what that already decided between samples of one key."""
    status = np.where(
        np.isnan(value) & is_good(status), np.int16(BAD), status
    )  # a missing value is never good
    rank = np.where(is_good(status), 0, np.where(is_bad(status), 2, 1)).astype(np.int8)
    if _is_sorted(point, time_ns):
        return Rows(point, time_ns, value, status), Outcome()
    order = np.lexsort((status, value, rank, time_ns, point))
    rows = Rows(point[order], time_ns[order], value[order], status[order])
    new_key = np.empty(len(rows), dtype=bool)
    new_key[:1] = True
    new_key[1:] = (rows.point[1:] != rows.point[:-1]) | (rows.time_ns[1:] != rows.time_ns[:-1])
    if new_key.all():
        return rows, Outcome()
    stands = np.flatnonzero(new_key)[np.cumsum(new_key) - 1]
    same = (rows.value == rows.value[stands]) | (np.isnan(rows.value) & np.isnan(rows.value[stands]))
    beaten = ~new_key & (same | (is_good(rows.status[stands]) & ~is_good(rows.status)))
    lost = np.flatnonzero(~new_key & ~beaten)
    disputes = tuple(
        Dispute(
            int(rows.point[i]),
            int(rows.time_ns[i]),
            float(rows.value[stands[i]]),
            int(rows.status[stands[i]]),
            float(rows.value[i]),
            int(rows.status[i]),
        )
        for i in lost[:_MAX_CONFLICTS]
    )
    return rows.take(new_key), Outcome(
        repeated=int(beaten.sum()), disputes=disputes, dispute_count=int(lost.size)
    )


def _is_sorted(point: Indices, time_ns: Times) -> bool:
    """Strictly by (point, time): nothing to sort and nothing twice."""
    step = np.diff(point)
    return bool(np.all((step > 0) | ((step == 0) & (np.diff(time_ns) > 0))))


async def write_rows(
    connection: asyncpg.Connection[Any], tier: Tier, space: Space, rows: Rows, correction: Correction | None
) -> Outcome:
    """Commit rows, `latest` and the dirty ledger in one transaction."""
    if correction is None:
        try:
            return await _copied(connection, space, rows)
        except pg.UniqueViolationError:
            pass  # something of it stands already
    await _ensure_space(connection, space, rows)
    return await _replayed(connection, tier, rows, correction)


async def _copied(connection: asyncpg.Connection[Any], space: Space, rows: Rows) -> Outcome:
    for attempt in ("as known", "made anew"):
        await _ensure_space(connection, space, rows)
        try:
            async with connection.transaction():
                await copy_in(connection, "sample", _COLUMNS, _columns(rows), schema="ecmc")
                await _note(connection, rows, "samples")
                await late.note_new(connection, rows)
            return Outcome(inserted=len(rows))
        except pg.CheckViolationError:  # retention in another process dropped the week
            if attempt == "made anew":
                raise
            space.forget()
    raise AssertionError("unreachable")


async def _ensure_space(connection: asyncpg.Connection[Any], space: Space, rows: Rows) -> None:
    first, last = week_of(int(rows.time_ns.min())), week_of(int(rows.time_ns.max()))
    weeks = {first} if first == last else set(np.unique(week_of(rows.time_ns)).tolist())
    await space.ensure(connection, weeks)


async def _replayed(
    connection: asyncpg.Connection[Any], tier: Tier, rows: Rows, correction: Correction | None
) -> Outcome:
    async with connection.transaction():
        if tier.has_columnstore:  # compressed history may have to be opened, as much as the batch touches
            await connection.execute("SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0")
        await copy_in(connection, "incoming", _COLUMNS, _columns(rows), schema=None)
        inserted = _rows_of(await connection.fetch(statement("insert_new")))
        await late.note_new(connection, inserted)
        if len(inserted) == len(rows):
            await _note(connection, inserted, "samples")
            return Outcome(inserted=len(rows))
        corrected = 0
        if correction is not None:
            done = await connection.execute(
                statement("save_corrected"), correction.who, correction.why, datetime_of(correction.at_ns)
            )
            corrected = int(done.split()[-1])
        await late.note_old(connection, rows, correction is not None)
        replaced = _rows_of(await connection.fetch(statement("replace"), correction is not None))
        found = await connection.fetch(statement("conflicts"))
        await _note(connection, inserted, "samples")
        await connection.execute("TRUNCATE newest")  # it empties itself only at the commit
        await _note(connection, replaced, "samples" if correction is None else "correction")
    disputes = tuple(
        Dispute(
            row["point_id"],
            time_ns_of(row["time"]),
            row["stored"],
            row["stored_status"],
            row["offered"],
            row["offered_status"],
        )
        for row in found[:_MAX_CONFLICTS]
    )
    return Outcome(
        inserted=len(inserted),
        replaced=len(replaced) - corrected,
        corrected=corrected,
        repeated=len(rows) - len(inserted) - len(replaced) - len(found),
        disputes=disputes,
        dispute_count=len(found),
    )


async def _note(connection: asyncpg.Connection[Any], rows: Rows, reason: str) -> None:
    """Newest values and the ledger, for rows that are now in `sample`."""
    if len(rows) == 0:
        return
    new_point = np.flatnonzero(np.diff(rows.point)) + 1
    first = np.concatenate(([0], new_point))
    last = np.concatenate((new_point - 1, [len(rows) - 1]))
    newest = rows.take(last)
    columns: list[npt.NDArray[Any]] = [
        newest.point,
        pg_time(newest.time_ns),
        newest.value,
        newest.status,
        pg_time(rows.time_ns[first]),
    ]
    await copy_in(
        connection, "newest", ("point_id", "time", "value", "status", "first_time"), columns, schema=None
    )
    await connection.execute(statement("upsert_latest"))
    for start_ns, end_ns, points in dirty_ranges(rows.point, rows.time_ns):
        await mark(connection, start_ns, end_ns, points, reason)
        await mark_gauges(connection, start_ns, end_ns, points)


def dirty_ranges(point: Indices, time_ns: Times) -> list[tuple[int, int, list[int] | None]]:
    """(first, last, points or None for many) of changed samples, cut where nothing changed for an hour."""
    order = np.argsort(time_ns, kind="stable")
    times = time_ns[order]
    cuts = np.flatnonzero(np.diff(times) > _APART_NS) + 1
    if cuts.size > _POINTS_NAMED:  # hourly or daily values over years: one long range says as much
        cuts = cuts[:0]
    ranges: list[tuple[int, int, list[int] | None]] = []
    for part in np.split(order, cuts):
        points = np.unique(point[part])
        named = points.tolist() if points.size <= _POINTS_NAMED else None
        ranges.append((int(time_ns[part[0]]), int(time_ns[part[-1]]), named))
    return ranges


async def mark(
    connection: asyncpg.Connection[Any], start_ns: int, end_ns: int, points: Sequence[int] | None, reason: str
) -> None:
    await connection.execute(
        "INSERT INTO ecmc.dirty_range (start_time, end_time, point_ids, reason) VALUES ($1, $2, $3, $4)",
        datetime_of(start_ns),
        datetime_of(end_ns),
        points,
        reason,
    )


def _columns(rows: Rows) -> list[npt.NDArray[Any]]:
    return [pg_time(rows.time_ns), rows.value, rows.point, rows.status]


def _rows_of(records: Sequence[asyncpg.Record]) -> Rows:
    return Rows(
        np.array([r[0] for r in records], dtype=np.int32),
        np.array([time_ns_of(r[1]) for r in records], dtype=np.int64),
        np.array([r[2] for r in records], dtype=np.float64),
        np.array([r[3] for r in records], dtype=np.int16),
    )
