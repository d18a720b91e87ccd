"""Samples out of the database: pages for people, columns with context for the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt

from core.clock import datetime_of, time_ns_of
from core.quality import is_bad
from core.samples import NS_PER_S
from core.store.archive import Archive, merged
from core.store.context import with_context
from core.store.copy import copy_out, time_ns_of_pg
from core.store.statement import statement, time_literal
from core.store.writer import Rows

# Context is nearly always this near; only a point silent for longer is searched for over all its weeks.
NEAR_NS = 2 * 86_400 * NS_PER_S

_READINGS = """
SELECT point_id, time, value, status FROM ecmc.sample
WHERE point_id = ANY('{{{points}}}'::int[]) AND time >= {start} AND time < {end}{which}
"""
_NOT_BAD = " AND status >= 0"


async def readings(
    connection: asyncpg.Connection[Any],
    names: Mapping[str, int],
    start_ns: int,
    end_ns: int,
    spread_ns: int,
    archive: Archive | None = None,
) -> Rows:
    """Non-bad readings of [start, end) with their context (see `Store.readings`), sorted by (point, time).

    Args:
        names: The number of each point.
        archive: Where samples stand that the database may have dropped.
    """
    if archive is not None and archive.since() is None:
        archive = None
    far_ns = NEAR_NS + spread_ns
    if archive is not None and archive.reaches(start_ns - far_ns, end_ns + far_ns):
        return await _with_files(connection, archive, names, start_ns, end_ns, spread_ns)
    points = np.array(list(names.values()), dtype=np.int32)
    inside = await _inside(connection, points, start_ns, end_ns)
    bounds = await connection.fetch(
        "SELECT point_id, first_time, time FROM ecmc.latest WHERE point_id = ANY($1)", points.tolist()
    )
    first_ns = {row["point_id"]: time_ns_of(row["first_time"]) for row in bounds}
    last_ns = {row["point_id"]: time_ns_of(row["time"]) for row in bounds}
    before, short = await _before(connection, first_ns, start_ns, spread_ns)
    after = await _after(connection, last_ns, end_ns, spread_ns)
    parts = [before, inside, after]
    if archive is not None and short:  # a point silent for so long that what it said before has been dropped
        silent = {name: number for name, number in names.items() if number in short}
        parts = [part.take(~np.isin(part.point, list(short))) for part in parts]
        parts.append(await _with_files(connection, archive, silent, start_ns, end_ns, spread_ns))
    point = np.concatenate([p.point for p in parts])
    time_ns = np.concatenate([p.time_ns for p in parts])
    order = np.lexsort((time_ns, point))
    value = np.concatenate([p.value for p in parts])
    status = np.concatenate([p.status for p in parts])
    return Rows(point[order], time_ns[order], value[order], status[order])


async def _with_files(
    connection: asyncpg.Connection[Any],
    archive: Archive,
    names: Mapping[str, int],
    start_ns: int,
    end_ns: int,
    spread_ns: int,
) -> Rows:
    """The same out of the database and the files together."""
    ids = np.array(list(names.values()), dtype=np.int32)
    bounds = await connection.fetch(
        "SELECT min(first_time), max(time) FROM ecmc.latest WHERE point_id = ANY($1)", ids.tolist()
    )
    if bounds[0][0] is None:
        return _rows([])
    first_ns, last_ns = time_ns_of(bounds[0][0]), time_ns_of(bounds[0][1]) + 1000
    reach_ns = NEAR_NS + spread_ns
    found: list[Rows] = []
    while names:
        from_ns, to_ns = start_ns - reach_ns, end_ns + reach_ns
        points = np.array(list(names.values()), dtype=np.int32)
        # Bad ones too: what was taken back since its month was filed stands good in the file.
        stored = await _inside(connection, points, from_ns, to_ns, which="")
        filed = await asyncio.to_thread(archive.rows, names, from_ns, to_ns)
        rows = merged(stored, filed)
        picked = with_context(rows.take(~is_bad(rows.status)), start_ns, end_ns, spread_ns, to_ns)
        silent = set(names.values()) - set(picked.rows.point.tolist())
        further: set[int] = set()
        if from_ns > first_ns:
            further |= picked.short_before | silent
        if to_ns < last_ns:
            further |= picked.short_after | silent
        found.append(picked.rows.take(~np.isin(picked.rows.point, list(further))))
        names = {name: number for name, number in names.items() if number in further}
        reach_ns *= 8
    all_rows = _rows([])
    for rows in found:
        all_rows = merged(all_rows, rows)
    return all_rows


async def _inside(
    connection: asyncpg.Connection[Any],
    points: npt.NDArray[np.int32],
    start_ns: int,
    end_ns: int,
    which: str = _NOT_BAD,
) -> Rows:
    if end_ns <= start_ns or points.size == 0:
        return _rows([])
    # COPY takes no parameters; these are integers and times of ours.
    query = _READINGS.format(
        points=",".join(map(str, points.tolist())),
        start=time_literal(start_ns),
        end=time_literal(end_ns),
        which=which,
    )
    point, time, value, status = await copy_out(connection, query, ("i4", "i8", "f8", "i2"))
    return Rows(point, time_ns_of_pg(time), value, status)


async def _before(
    connection: asyncpg.Connection[Any], first_ns: dict[int, int], start_ns: int, spread_ns: int
) -> tuple[Rows, set[int]]:
    """The context before, and the points that had samples before what was found of them."""
    ids = [point for point, first in first_ns.items() if first < start_ns]
    near_ns = start_ns - NEAR_NS - spread_ns
    found = await _context(connection, "context_before", ids, start_ns, near_ns, spread_ns)
    whole = {row["point_id"] for row in found if row["step"] == 3}
    far = [point for point in ids if point not in whole and first_ns[point] < near_ns]
    if far:
        reach_ns = min(first_ns[point] for point in far)
        more = await _context(connection, "context_before", far, start_ns, reach_ns, spread_ns)
        found = [row for row in found if row["point_id"] not in set(far)] + more
    rows = _rows(found)
    oldest_ns: dict[int, int] = {}
    for point, time_ns in zip(rows.point.tolist(), rows.time_ns.tolist(), strict=True):
        oldest_ns[point] = min(time_ns, oldest_ns.get(point, time_ns))
    whole = {row["point_id"] for row in found if row["step"] == 3}
    return rows, {p for p in ids if p not in whole and first_ns[p] < oldest_ns.get(p, start_ns)}


async def _after(
    connection: asyncpg.Connection[Any], last_ns: dict[int, int], end_ns: int, spread_ns: int
) -> Rows:
    ids = [point for point, last in last_ns.items() if last >= end_ns]
    near_ns = end_ns + NEAR_NS + spread_ns
    found = await _context(connection, "context_after", ids, end_ns, near_ns, spread_ns)
    steps: dict[int, dict[int, int]] = {}
    for row in found:
        steps.setdefault(row["point_id"], {})[row["step"]] = time_ns_of(row["time"])
    far = [
        point
        for point in ids
        if last_ns[point] > near_ns
        and (
            1 not in (has := steps.get(point, {}))
            or (3 not in has and (2 in has or has[1] + spread_ns > near_ns))
        )
    ]
    if far:
        reach_ns = max(last_ns[point] for point in far)
        more = await _context(connection, "context_after", far, end_ns, reach_ns, spread_ns)
        found = [row for row in found if row["point_id"] not in set(far)] + more
    return _rows(found)


async def _context(
    connection: asyncpg.Connection[Any], name: str, ids: list[int], at_ns: int, reach_ns: int, spread_ns: int
) -> list[asyncpg.Record]:
    if not ids:
        return []
    spread = timedelta(microseconds=spread_ns // 1000)
    return await connection.fetch(statement(name), ids, datetime_of(at_ns), datetime_of(reach_ns), spread)


def _rows(records: list[asyncpg.Record]) -> Rows:
    return Rows(
        np.array([r["point_id"] for r in records], dtype=np.int32),
        np.array([time_ns_of(r["time"]) for r in records], dtype=np.int64),
        np.array([r["value"] for r in records], dtype=np.float64),
        np.array([r["status"] for r in records], dtype=np.int16),
    )


async def page(
    connection: asyncpg.Connection[Any], point: int, start_ns: int, end_ns: int, limit: int
) -> Rows:
    """At most `limit` samples of one point over [start, end), oldest first."""
    query = (
        f"SELECT point_id, time, value, status FROM ecmc.sample WHERE point_id = {int(point)}"
        f" AND time >= {time_literal(start_ns)} AND time < {time_literal(end_ns)} ORDER BY time LIMIT {int(limit)}"
    )
    ids, time, value, status = await copy_out(connection, query, ("i4", "i8", "f8", "i2"))
    return Rows(ids, time_ns_of_pg(time), value, status)


async def newest(connection: asyncpg.Connection[Any], ids: list[int] | None) -> Rows:
    """`latest` of the points, of all with None; sorted by id."""
    where = "" if ids is None else f"WHERE point_id = ANY('{{{','.join(map(str, ids))}}}'::int[])"
    query = f"SELECT point_id, time, value, status FROM ecmc.latest {where}"
    point, time, value, status = await copy_out(connection, query, ("i4", "i8", "f8", "i2"))
    rows = Rows(point, time_ns_of_pg(time), value, status)
    return rows.take(np.argsort(rows.point))


async def corrections(
    connection: asyncpg.Connection[Any], ids: list[int], start_ns: int, end_ns: int, limit: int
) -> list[asyncpg.Record]:
    """What was corrected in [start, end), newest correction first."""
    return await connection.fetch(
        "SELECT point_id, time, old_value, new_value, who, why, at FROM ecmc.correction"
        " WHERE point_id = ANY($1) AND time >= $2 AND time < $3 ORDER BY at DESC, id DESC LIMIT $4",
        ids,
        datetime_of(start_ns),
        datetime_of(end_ns),
        limit,
    )
