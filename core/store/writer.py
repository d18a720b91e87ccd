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
from typing import Any, Literal

import asyncpg
import numpy as np
import numpy.typing as npt
from asyncpg import exceptions as pg

from core.clock import datetime_of, time_ns_of
from core.quality import BAD, is_bad, is_good
from core.samples import NS_PER_S, Floats, Indices, Statuses, Times
from core.store import late
from core.store.copy import copy_in, pg_time
from core.store.newest import LatestTable, Newest
from core.store.seam import Correction
from core.store.series import Space, Tier, is_compressed, week_of
from core.store.statement import statement, time_literal

Reason = Literal["samples", "correction"]

_COLUMNS = ("time", "value", "point_id", "status")
_POINTS_NAMED = 50  # a dirty range names its points up to this many
_APART_NS = 3600 * NS_PER_S  # changed times further apart make two dirty ranges
_MAX_CONFLICTS = 1000
_CORRECTING = 0x65636D69
# Compressed history may have to be opened, as far as the batch goes. Elsewhere the key finds each row, whatever is
# believed of the table that the batch lies in: a hash join would read the weeks whole.
_OPENED = "SET LOCAL timescaledb.max_tuples_decompressed_per_dml_transaction = 0"
_BY_KEY = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off"


async def prepare(connection: asyncpg.Connection[Any]) -> None:
    """Give a new connection the tables a batch passes through."""
    await connection.execute(
        "CREATE TEMP TABLE incoming (time timestamptz, value float8, point_id int, status smallint)"
        " ON COMMIT DELETE ROWS;"
        "CREATE TEMP TABLE newest (LIKE ecmc.latest_block INCLUDING STORAGE) ON COMMIT DELETE ROWS"
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

    def and_others(self, others: Rows) -> Rows:
        """Both together; no key is in both."""
        if len(others) == 0:
            return self
        whole = Rows(
            *(
                np.concatenate([getattr(self, name), getattr(others, name)])
                for name in ("point", "time_ns", "value", "status")
            )
        )
        return whole.take(np.lexsort((whole.time_ns, whole.point)))


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
    missing = np.isnan(value) & is_good(status)
    if missing.any():  # a missing value is never good
        status = np.where(missing, np.int16(BAD), status)
    rows = Rows(point, time_ns, value, status)
    if _each_key_once(rows):
        return rows, Outcome()
    sorted_rows = rows.take(np.lexsort((time_ns, point)))
    if _each_key_once(sorted_rows):
        return sorted_rows, Outcome()
    return _decided(rows)


def _decided(rows: Rows) -> tuple[Rows, Outcome]:
    """Which of several samples of one key stands, and what became of the others."""
    rank = np.where(is_good(rows.status), 0, np.where(is_bad(rows.status), 2, 1)).astype(np.int8)
    rows = rows.take(np.lexsort((rows.status, rows.value, rank, rows.time_ns, rows.point)))
    new_key = np.empty(len(rows), dtype=bool)
    new_key[:1] = True
    new_key[1:] = (rows.point[1:] != rows.point[:-1]) | (rows.time_ns[1:] != rows.time_ns[:-1])
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


def _each_key_once(rows: Rows) -> bool:
    """Strictly by (point, time)."""
    before, after = rows.point[:-1], rows.point[1:]
    return bool(np.all((after > before) | ((after == before) & (rows.time_ns[1:] > rows.time_ns[:-1]))))


class Writer:
    """Writes to one database; several connections may be in it at once."""

    def __init__(self, tier: Tier) -> None:
        self._tier = tier
        self._latest = LatestTable()
        self.space = Space(tier)

    async def write(
        self, connection: asyncpg.Connection[Any], rows: Rows, correction: Correction | None
    ) -> Outcome:
        """Commit rows, `latest` and the dirty ledger in one transaction."""
        if correction is None:
            try:
                return await self._copied(connection, rows)
            except pg.UniqueViolationError:
                pass  # something of it stands already
        await self._ensure_space(connection, rows)
        return await self._replayed(connection, rows, correction)

    async def _copied(self, connection: asyncpg.Connection[Any], rows: Rows) -> Outcome:
        for attempt in ("as known", "made anew"):
            await self._ensure_space(connection, rows)
            try:
                async with connection.transaction():
                    await copy_in(connection, "sample", _COLUMNS, _columns(rows), schema="ecmc")
                    await late.note_new(connection, rows)
                    blocks = await self._latest.put(connection, _newest(rows), _ledger(rows, "samples"))
            except pg.CheckViolationError:  # retention in another process dropped the week
                if attempt == "made anew":
                    raise
                self.space.forget()
            else:
                self._latest.remember(blocks)
                return Outcome(inserted=len(rows))
        raise AssertionError("unreachable")

    async def _ensure_space(self, connection: asyncpg.Connection[Any], rows: Rows) -> None:
        first, last = week_of(int(rows.time_ns.min())), week_of(int(rows.time_ns.max()))
        weeks = {first} if first == last else set(np.unique(week_of(rows.time_ns)).tolist())
        await self.space.ensure(connection, weeks)

    async def _replayed(
        self, connection: asyncpg.Connection[Any], rows: Rows, correction: Correction | None
    ) -> Outcome:
        corrected, blocks = 0, None
        async with connection.transaction():
            # What a correction keeps as the old value has to be the one it replaces. Compressed rows cannot be locked.
            mode = "" if correction is not None else "_shared"
            await connection.execute(f"SELECT pg_advisory_xact_lock{mode}({_CORRECTING})")
            first_ns, last_ns = int(rows.time_ns.min()), int(rows.time_ns.max())
            opens = await is_compressed(connection, self._tier, first_ns, last_ns)
            await connection.execute(_OPENED if opens else _BY_KEY)
            await copy_in(connection, "incoming", _COLUMNS, _columns(rows), schema=None)
            inserted = _rows_of(await connection.fetch(statement("insert_new")))
            await late.note_new(connection, inserted)
            replaced, found = _rows_of([]), []
            if len(inserted) < len(rows):
                span = datetime_of(first_ns), datetime_of(last_ns)
                if correction is not None:
                    done = await connection.execute(
                        statement("save_corrected"),
                        correction.who,
                        correction.why,
                        datetime_of(correction.at_ns),
                        *span,
                    )
                    corrected = int(done.split()[-1])
                await late.note_old(connection, rows, correction is not None)
                correcting = correction is not None
                replaced = _rows_of(await connection.fetch(statement("replace"), correcting, *span))
                found = await connection.fetch(statement("conflicts"), *span)
            changed = inserted.and_others(replaced)
            if len(changed):
                reason: Reason = "samples" if correction is None else "correction"
                ledger = _ledger(inserted, "samples") + _ledger(replaced, reason)
                blocks = await self._latest.put(connection, _newest(changed), ledger)
        if blocks is not None:
            self._latest.remember(blocks)
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


def _newest(rows: Rows) -> Newest:
    ends = np.flatnonzero(rows.point[1:] != rows.point[:-1])
    last = np.append(ends, len(rows) - 1)
    first = np.concatenate(([0], ends + 1))
    return Newest(
        rows.point[last], rows.time_ns[last], rows.value[last], rows.status[last], rows.time_ns[first]
    )


def _ledger(rows: Rows, reason: Reason) -> str:
    """Statements that mark rows dirty, for the engine and for the roll-up of gauges. COPY and several statements at
    once take no parameters; these are integers and times of ours."""
    marks = ""
    for start_ns, end_ns, points in dirty_ranges(rows):
        named = "NULL" if points is None else f"'{{{','.join(map(str, points))}}}'"
        what = f"{time_literal(start_ns)}, {time_literal(end_ns)}, {named}"
        marks += (
            f"INSERT INTO ecmc.dirty_range (start_time, end_time, point_ids, reason) VALUES ({what}, '{reason}');"
            f"INSERT INTO ecmc.dirty_gauge (start_time, end_time, point_ids) VALUES ({what});"
        )
    return marks


def dirty_ranges(rows: Rows) -> list[tuple[int, int, list[int] | None]]:
    """(first, last, points or None for many) of changed samples, cut where nothing changed for an hour."""
    if len(rows) == 0:
        return []
    first_ns, last_ns = int(rows.time_ns.min()), int(rows.time_ns.max())
    if last_ns - first_ns <= _APART_NS:
        return [(first_ns, last_ns, _named(rows.point))]
    order = np.argsort(rows.time_ns, kind="stable")
    times = rows.time_ns[order]
    cuts = np.flatnonzero(np.diff(times) > _APART_NS) + 1
    if cuts.size > _POINTS_NAMED:  # hourly or daily values over years: one long range says as much
        cuts = cuts[:0]
    parts = np.split(order, cuts)
    return [
        (int(rows.time_ns[part[0]]), int(rows.time_ns[part[-1]]), _named(np.sort(rows.point[part])))
        for part in parts
    ]


def _named(sorted_points: Indices) -> list[int] | None:
    starts = np.flatnonzero(sorted_points[1:] != sorted_points[:-1]) + 1
    if starts.size >= _POINTS_NAMED:
        return None
    named: list[int] = sorted_points[np.concatenate(([0], starts))].tolist()
    return named


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
