"""The newest sample of each point, 64 points a row: a batch of thousands of points changes dozens of rows.

A row a point would cost more than the samples themselves. A writer remembers the
rows as it last saw them, each with a version that no other content ever had, and
says which it changes; where that is not what stands, nothing is written, and the
row is read and tried again. To readers they are the view `ecmc.latest`, a row a point.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Self

import asyncpg
import numpy as np
import numpy.typing as npt

from core.samples import Floats, Indices, Statuses, Times
from core.store.copy import copy_in, copy_out_blocks, pg_time
from core.store.statement import statement

POINTS = 64  # a row of them fits a page four times, so that a new version finds room beside the old one
_NEVER = np.iinfo(np.int64).min  # as PostgreSQL sends '-infinity'
_NOT_YET = np.iinfo(np.int64).max
_COLUMNS = ("block", "version", "time", "value", "status", "first_time")
_UNKNOWN = -1  # a version: never looked at
_ABSENT = 0  # no row is there yet
_KINDS = ("i8", "f8", "i2", "i8")
_TRIES = 20


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Rows of `latest_block`, B of them; columns of shape (B, POINTS), times as `pg_time` counts.

    A point without samples has the time _NEVER.
    """

    block: Indices
    version: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    value: Floats
    status: Statuses
    first_time: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.block.size)

    @classmethod
    def empty(cls, block: Indices) -> Self:
        shape = block.size, POINTS
        return cls(
            block,
            np.full(block.size, _ABSENT, dtype=np.int64),
            np.full(shape, _NEVER),
            np.full(shape, np.nan),
            np.zeros(shape, dtype=np.int16),
            np.full(shape, _NOT_YET),
        )

    def take(self, rows: npt.NDArray[Any]) -> Blocks:
        return Blocks(*(getattr(self, name)[rows] for name in _COLUMNS))


@dataclass(frozen=True, slots=True, eq=False)
class Newest:
    """What a batch says of its points, each once, in the order of their ids; shapes (P,)."""

    point: Indices
    time_ns: Times
    value: Floats
    status: Statuses
    first_ns: Times

    def onto(self, blocks: Blocks, version: int) -> Blocks:
        """These blocks with it: of two samples the younger counts, of one time the one that comes now."""
        row = np.searchsorted(blocks.block, self.point // POINTS)
        time, value, status, first_time = (getattr(blocks, name).copy() for name in _COLUMNS[2:])
        at = row * POINTS + self.point % POINTS
        theirs, oldest = pg_time(self.time_ns), pg_time(self.first_ns)
        older = oldest < first_time.reshape(-1)[at]
        if older.any():
            first_time.reshape(-1)[at[older]] = oldest[older]
        newer = theirs >= time.reshape(-1)[at]
        for column, told in ((time, theirs), (value, self.value), (status, self.status)):
            column.reshape(-1)[at[newer]] = told[newer]
        return Blocks(blocks.block, np.full(len(blocks), version), time, value, status, first_time)


class LatestTable:
    """`latest_block` of one database, with the rows as this process last saw them."""

    def __init__(self) -> None:
        self._known = Blocks.empty(
            np.zeros(0, dtype=np.int32)
        )  # row i is block i; version -1: never looked at

    async def put(self, connection: asyncpg.Connection[Any], newest: Newest, before: str = "") -> Blocks:
        """Write in the transaction the connection is in, together with the statements `before`.

        Returns:
            What to `remember` once that transaction is committed.
        """
        block = newest.point // POINTS
        numbers = block[np.concatenate(([0], np.flatnonzero(block[1:] != block[:-1]) + 1))]
        known = self._of(numbers)
        unseen = known.version == _UNKNOWN
        if unseen.any():
            known = _merged(known, await _read(connection, numbers[unseen]))
        for _ in range(_TRIES):
            blocks = newest.onto(known, version=secrets.randbits(62) + 1)
            wire = _wire(blocks, before=known.version)
            await copy_in(connection, "newest", ("before", *_COLUMNS), wire, schema=None)
            done = await connection.execute(before + statement("upsert_latest"))
            if int(done.split()[-1]) == len(blocks):
                return blocks
            # Those that are there are locked by now: the next try fails only where a row is just being made.
            await connection.execute("TRUNCATE newest")
            known, before = _merged(known, await _read(connection, numbers)), ""
        raise AssertionError(f"the newest samples of {numbers.size} blocks could not be written")

    def remember(self, blocks: Blocks) -> None:
        """These are committed."""
        for name in _COLUMNS[1:]:
            getattr(self._known, name)[blocks.block] = getattr(blocks, name)

    def _of(self, numbers: Indices) -> Blocks:
        missing = int(numbers.max(initial=-1)) + 1 - len(self._known)
        if missing > 0:
            more = Blocks.empty(np.arange(len(self._known), len(self._known) + missing, dtype=np.int32))
            more.version[:] = _UNKNOWN
            pairs = ((getattr(self._known, name), getattr(more, name)) for name in _COLUMNS)
            self._known = Blocks(*(np.concatenate(pair) for pair in pairs))
        return self._known.take(numbers)


async def _read(connection: asyncpg.Connection[Any], numbers: Indices) -> Blocks:
    """Rows as they stand in the database, in the order of their numbers; empty ones where there are none."""
    wanted = ",".join(map(str, numbers.tolist()))
    query = (
        "SELECT block, version, time, value, status, first_time FROM ecmc.latest_block"
        f" WHERE block = ANY('{{{wanted}}}'::int[]) ORDER BY block"
    )
    found = Blocks(*await copy_out_blocks(connection, query, ("i4", "i8"), _KINDS, POINTS))
    return _merged(Blocks.empty(numbers), found)


def _merged(blocks: Blocks, others: Blocks) -> Blocks:
    """Blocks with these others in place of their own."""
    whole = blocks.take(np.arange(len(blocks)))
    at = np.searchsorted(whole.block, others.block)
    for name in _COLUMNS[1:]:
        getattr(whole, name)[at] = getattr(others, name)
    return whole


def _wire(blocks: Blocks, before: npt.NDArray[np.int64]) -> list[npt.NDArray[Any]]:
    time, first_time = (column.view("M8[us]") for column in (blocks.time, blocks.first_time))
    return [before, blocks.block, blocks.version, time, blocks.value, blocks.status, first_time]
