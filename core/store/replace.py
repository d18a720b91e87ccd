"""Rows of a stretch of time in place of those that stand there, writing only the series that differ.

What one corrected meter changes is a few series of many, and reading rows costs
a tenth of writing them. So where a figure may well stand already, the rows are
read first and compared byte by byte, in the format they are written in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt

from core.store.copy import Columns, binary_rows, copy_out_rows, copy_rows_in
from core.store.statement import time_literal

_COMPARED_AT_ONCE = 256
_MOSTLY = 0.5  # where more than this share would be written, all are


@dataclass(frozen=True, slots=True)
class Stretch:
    """[start_ns, end_ns); `compare`: what is there may well be what is written."""

    start_ns: int
    end_ns: int
    compare: bool


async def replace_rows(
    connection: asyncpg.Connection[Any],
    stretch: Stretch,
    table: str,
    keys: Sequence[str],
    others: Sequence[str],
    columns: Columns,
) -> None:
    """Replace the rows of a table over a stretch, in the transaction the connection is in.

    Args:
        keys: Columns that make a row's key: ids named after their registry's table, and the time.
        columns: Of the keys, then of the others; each key once.
    """
    rows = binary_rows(columns)
    names = (*keys, *others)
    # Every id there is, so that the key finds the rows on every server, and rows of names no longer used go too.
    everything = [f"{key} = ANY(ARRAY(SELECT id FROM ecmc.{key.removesuffix('_id')}))" for key in keys[:-1]]
    times = f"{keys[-1]} >= {time_literal(stretch.start_ns)} AND {keys[-1]} < {time_literal(stretch.end_ns)}"
    here = " AND ".join((*everything, times))
    if stretch.compare:
        query = f"SELECT {', '.join(names)} FROM ecmc.{table} WHERE {here}"
        old = await copy_out_rows(connection, query, rows.dtype)
        if old is not None and len(old) and len(rows):
            changed = _changed(rows, old, len(keys))
            written = np.isin(rows["value0"], changed)
            if written.sum() <= _MOSTLY * len(rows):
                if changed.size:
                    mine = f"{keys[0]} = ANY('{{{','.join(map(str, changed.tolist()))}}}'::int[])"
                    here = " AND ".join((mine, *everything[1:], times))
                    await connection.execute(f"DELETE FROM ecmc.{table} WHERE {here}")
                    await copy_rows_in(connection, table, names, rows[written], schema="ecmc")
                return
    await connection.execute(f"DELETE FROM ecmc.{table} WHERE {here}")
    await copy_rows_in(connection, table, names, rows, schema="ecmc")


def _changed(rows: npt.NDArray[np.void], old: npt.NDArray[np.void], keys: int) -> npt.NDArray[np.int64]:
    """The first key of every row that is not among the old ones, and of every old one that is not among the rows."""
    place = np.zeros(len(rows) + len(old), dtype=np.int64)
    size = 1
    for i in range(keys):
        both = np.concatenate([rows[f"value{i}"], old[f"value{i}"]]).astype(np.int64)
        found, index = np.unique(both, return_inverse=True)
        place, size = place * found.size + index, size * found.size
    standing = np.full(size, -1, dtype=np.int64)
    standing[place[len(rows) :]] = np.arange(len(old))
    at = standing[place[: len(rows)]]
    there = np.flatnonzero(at >= 0)
    same = there[_equal(rows, old, there, at[there])]
    fresh, gone = np.ones(len(rows), dtype=np.bool_), np.ones(len(old), dtype=np.bool_)
    fresh[same], gone[at[same]] = False, False
    return np.unique(np.concatenate([rows["value0"][fresh], old["value0"][gone]]).astype(np.int64))


def _equal(
    rows: npt.NDArray[np.void],
    old: npt.NDArray[np.void],
    mine: npt.NDArray[np.int64],
    theirs: npt.NDArray[np.int64],
) -> npt.NDArray[np.bool_]:
    """Whether rows `mine` are, bit for bit, the old rows `theirs`."""
    left, right = (
        np.ascontiguousarray(whole).view(np.uint16).reshape(len(whole), -1) for whole in (rows, old)
    )
    equal = np.ones(mine.size, dtype=np.bool_)
    for first in range(0, mine.size, _COMPARED_AT_ONCE):  # so that what is compared stays in the cache
        part = slice(first, first + _COMPARED_AT_ONCE)
        equal[part] = ~(left[mine[part]] != right[theirs[part]]).any(axis=1)
    return equal
