"""Series for answers: any bucket over any range, from the coarsest results that fit.

Whole hours come from the hourly roll-up, whole quarters around them from the
quarter-hourly one, and what a range cuts off, or a bucket finer than that
needs, from the blocks of base intervals. Where each part is read from never
shows: all of them add up the same parts (core/store/rollup.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import numpy as np
import numpy.typing as npt

from core.clock import datetime_of, time_ns_of
from core.results import HOUR_NS
from core.samples import NS_PER_S, Floats, Times
from core.store.copy import copy_out, time_ns_of_pg
from core.store.rollup import QUARTER_NS, Ends, Parts, emission_parts, energy_parts, node_parts
from core.store.seam import Bucket
from core.store.statement import time_literal

_FIXED_S: dict[str, int] = {"1m": 60, "5m": 300, "15m": 900, "30m": 1800, "1h": 3600}


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Rows sorted by (keys, bucket): sums of one series in one bucket.

    `start_ns` is the bucket's own start, `inside_s` how much of it lies in the range asked for.
    """

    keys: npt.NDArray[np.int64]  # shape (n, k)
    start_ns: Times
    inside_s: Floats
    columns: dict[str, Floats]


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of result: its tables `<name>_block`, `<name>_15m`, `<name>_1h`, its key and its summed columns."""

    name: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]


ENERGY = Family("energy", ("edge_id",), ("energy_kwh", "estimated_kwh", "covered_s"))
NODE = Family("node", ("node_id",), ("in_kwh", "out_kwh", "residual_kwh", "through_kwh", "covered_s"))
EMISSION = Family("emission", ("node_id", "flow_id"), ("emissions_kg", "through_kg"))


def bucket_edges(
    start_ns: int, end_ns: int, bucket: Bucket, zone: ZoneInfo, shifts: Sequence[int] = ()
) -> Times:
    """Edges of the buckets that touch [start, end), shape (n + 1,); days and longer begin at the zone's midnight.
    A day has 23, 24 or 25 hours, as the zone's clocks are set, and so is one of its shifts shorter or longer.

    Args:
        shifts: When shifts begin, minutes after midnight, in order.
    """
    if bucket in _FIXED_S:
        width_ns = _FIXED_S[bucket] * NS_PER_S
        first, last = start_ns // width_ns, -(-end_ns // width_ns)
        return (
            np.arange(first, last + 1) * width_ns
        )  # counted, for a float cannot tell times apart to the nanosecond
    day = (
        datetime_of(start_ns).astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
    )
    if bucket == "shift":
        if not shifts:
            raise ValueError("a plant without shifts has no buckets of them")
        return _shift_edges(day, start_ns, end_ns, zone, shifts)
    if bucket != "1d":
        day = day.replace(day=1)
    if bucket == "1y":
        day = day.replace(month=1)
    edges = [time_ns_of(day.replace(tzinfo=zone))]
    while edges[-1] < end_ns:
        day = _next(day, bucket)
        edges.append(time_ns_of(day.replace(tzinfo=zone)))
    return np.array(edges, dtype=np.int64)


def _shift_edges(day: datetime, start_ns: int, end_ns: int, zone: ZoneInfo, shifts: Sequence[int]) -> Times:
    """From the shift that is on at the start, begun the day before it may be, to the first edge not before the end."""
    edges: list[int] = []
    day -= timedelta(days=1)
    while not edges or edges[-1] < end_ns:
        begins = (day + timedelta(minutes=minute) for minute in shifts)
        edges += [time_ns_of(begin.replace(tzinfo=zone)) for begin in begins]
        day += timedelta(days=1)
    found = np.unique(np.array(edges, dtype=np.int64))
    first, last = np.searchsorted(found, start_ns, side="right") - 1, np.searchsorted(found, end_ns)
    return found[first : last + 1]


def _next(day: datetime, bucket: Bucket) -> datetime:
    if bucket == "1d":
        return day + timedelta(days=1)
    if bucket == "1y" or day.month == 12:
        return day.replace(year=day.year + 1, month=1)
    return day.replace(month=day.month + 1)


async def sums(
    connection: asyncpg.Connection[Any],
    family: Family,
    ids: tuple[list[int], ...],
    start_ns: int,
    end_ns: int,
    bucket: Bucket,
    zone: ZoneInfo,
    shifts: Sequence[int] = (),
) -> Sums:
    """Sums of the series with the ids (a list for each key) over [start, end), cut into buckets."""
    edges = bucket_edges(start_ns, end_ns, bucket, zone, shifts)
    cuts = _cuts(start_ns, end_ns, edges, bucket)
    coarse = await _from_rollups(connection, family, ids, edges, bucket, cuts)
    fine = [
        await _from_blocks(connection, family, ids, edges, piece)
        for piece in ((start_ns, cuts[0]), (cuts[3], end_ns))
        if piece[0] < piece[1]
    ]
    keys = np.concatenate([part[0] for part in (coarse, *fine)])
    columns = {name: np.concatenate([part[1][name] for part in (coarse, *fine)]) for name in family.columns}
    if keys.shape[0]:
        keys, columns = _added(keys, columns)
    index = keys[:, -1]
    inside_ns = np.minimum(edges[index + 1], end_ns) - np.maximum(edges[index], start_ns)
    return Sums(keys[:, :-1], edges[index], inside_ns / NS_PER_S, columns)


def _cuts(start_ns: int, end_ns: int, edges: Times, bucket: Bucket) -> tuple[int, int, int, int]:
    """Blocks up to the first, quarters to the second, hours to the third, quarters to the fourth, blocks after it."""
    if bucket in ("1m", "5m") or np.any(edges % QUARTER_NS):
        return end_ns, end_ns, end_ns, end_ns
    quarter_from, quarter_to = -(-start_ns // QUARTER_NS) * QUARTER_NS, end_ns // QUARTER_NS * QUARTER_NS
    if quarter_from >= quarter_to:
        return end_ns, end_ns, end_ns, end_ns
    hour_from, hour_to = -(-start_ns // HOUR_NS) * HOUR_NS, end_ns // HOUR_NS * HOUR_NS
    if hour_from >= hour_to or np.any(edges % HOUR_NS):
        return quarter_from, quarter_to, quarter_to, quarter_to
    return quarter_from, hour_from, hour_to, quarter_to


_Part = tuple[npt.NDArray[np.int64], dict[str, Floats]]


async def _from_rollups(
    connection: asyncpg.Connection[Any],
    family: Family,
    ids: tuple[list[int], ...],
    edges: Times,
    bucket: Bucket,
    cuts: tuple[int, int, int, int],
) -> _Part:
    if cuts[0] >= cuts[3]:
        return _nothing(family)
    if bucket in _FIXED_S:  # at most four rows a bucket: added up here, which spares the server its sorting
        return await _rows_of_rollups(connection, family, ids, edges, _FIXED_S[bucket] * NS_PER_S, cuts)
    keys = ", ".join(family.keys)
    match = " AND ".join(f"{key} = ANY(${i + 1}::int[])" for i, key in enumerate(family.keys))
    n = len(family.keys)
    at, given = [f"${n + i + 1}" for i in range(4)], [datetime_of(cut) for cut in cuts]
    place = f"width_bucket(start, ${n + 5}::timestamptz[]) - 1"
    told = [datetime_of(edge) for edge in edges.tolist()]
    columns = ", ".join(family.columns)
    summed = ", ".join(f"sum({name}) AS {name}" for name in family.columns)
    gathered = ", ".join(f"array_agg({name})" for name in (*family.keys, "bucket", *family.columns))
    query = f"""
        SELECT {gathered} FROM (
            SELECT {keys}, {place} AS bucket, {summed}
            FROM (
                SELECT {keys}, start, {columns} FROM ecmc.{family.name}_1h
                WHERE {match} AND start >= {at[1]} AND start < {at[2]}
                UNION ALL
                SELECT {keys}, start, {columns} FROM ecmc.{family.name}_15m
                WHERE {match} AND start >= {at[0]} AND start < {at[1]}
                UNION ALL
                SELECT {keys}, start, {columns} FROM ecmc.{family.name}_15m
                WHERE {match} AND start >= {at[2]} AND start < {at[3]}
            ) AS rows
            GROUP BY {keys}, bucket
        ) AS sums
    """
    row = await connection.fetchrow(query, *ids, *given, told)
    if row is None or row[0] is None:
        return _nothing(family)
    key_columns = np.array([row[i] for i in range(n + 1)], dtype=np.int64).T
    return key_columns, {name: np.array(row[n + 1 + i]) for i, name in enumerate(family.columns)}


async def _rows_of_rollups(
    connection: asyncpg.Connection[Any],
    family: Family,
    ids: tuple[list[int], ...],
    edges: Times,
    width_ns: int,
    cuts: tuple[int, int, int, int],
) -> _Part:
    # COPY takes no parameters; these are integers and times of ours.
    match = " AND ".join(
        f"{key} = ANY('{{{','.join(map(str, mine))}}}'::int[])"
        for key, mine in zip(family.keys, ids, strict=True)
    )
    names = ", ".join((*family.keys, "start", *family.columns))
    pieces = [("15m", cuts[0], cuts[1]), ("1h", cuts[1], cuts[2]), ("15m", cuts[2], cuts[3])]
    query = " UNION ALL ".join(
        f"SELECT {names} FROM ecmc.{family.name}_{level}"
        f" WHERE {match} AND start >= {time_literal(first)} AND start < {time_literal(last)}"
        for level, first, last in pieces
        if first < last
    )
    n = len(family.keys)
    kinds = (*("i4",) * n, "i8", *("f8",) * len(family.columns))
    rows = await copy_out(connection, query, kinds)
    index = (time_ns_of_pg(rows[n]) - edges[0]) // width_ns
    return np.column_stack([*rows[:n], index]), dict(zip(family.columns, rows[n + 1 :], strict=True))


def _nothing(family: Family) -> _Part:
    return np.empty((0, len(family.keys) + 1), dtype=np.int64), {name: np.empty(0) for name in family.columns}


async def _from_blocks(
    connection: asyncpg.Connection[Any],
    family: Family,
    ids: tuple[list[int], ...],
    edges: Times,
    piece: tuple[int, int],
) -> _Part:
    """Sums of the base intervals in [piece)."""
    hours = await connection.fetchrow("SELECT min(hour), max(hour) FROM ecmc.run")
    assert hours is not None
    if hours[0] is None:
        return _nothing(family)
    oldest, newest = (time_ns_of(hour) for hour in hours)
    keys: list[npt.NDArray[np.int64]] = []
    columns: list[dict[str, Floats]] = []
    hour_from, hour_to = piece[0] // HOUR_NS * HOUR_NS, -(-piece[1] // HOUR_NS) * HOUR_NS
    for block in await _blocks(connection, family, ids, hour_from, hour_to):
        hour_ns = block.hour_ns
        per_hour = block.intervals
        base_ns = HOUR_NS // per_hour
        # An exception holds for one hour by itself, so the blocks at the two ends are rolled up apart.
        for ends, chosen in (
            (Ends(), (hour_ns != oldest) & (hour_ns != newest)),
            (Ends(oldest=True, newest=oldest == newest), hour_ns == oldest),
            (Ends(newest=True), (hour_ns == newest) & (oldest != newest)),
        ):
            if not chosen.any():
                continue
            parts = block.parts(chosen, base_ns / NS_PER_S, ends)
            time_ns = hour_ns[chosen][:, None] + np.arange(per_hour) * base_ns
            take = parts.counts & (time_ns >= piece[0]) & (time_ns < piece[1])
            row, _ = np.nonzero(take)
            index = np.searchsorted(edges, time_ns[take], side="right") - 1
            keys.append(np.column_stack([block.keys[chosen][row], index]))
            columns.append({name: parts.columns[name][take] for name in family.columns})
    if not keys:
        return _nothing(family)
    return np.concatenate(keys), {name: np.concatenate([c[name] for c in columns]) for name in family.columns}


@dataclass(frozen=True, slots=True, eq=False)
class _Blocks:
    """Blocks of one length: `columns` of shape (n, intervals); of emissions with their node's beside them."""

    family: Family
    keys: npt.NDArray[np.int64]
    hour_ns: Times
    columns: dict[str, Floats]

    @property
    def intervals(self) -> int:
        return int(next(iter(self.columns.values())).shape[1])

    def parts(self, chosen: npt.NDArray[np.bool_], base_s: float, ends: Ends) -> Parts:
        c = {name: column[chosen] for name, column in self.columns.items()}
        if self.family is ENERGY:
            return energy_parts(c["energy_kwh"], c["estimated_kwh"], c["covered"], base_s)
        node = {name: c[name] for name in ("in_kwh", "out_kwh", "residual_kwh", "through_kwh")}
        if self.family is NODE:
            return node_parts(node, c["covered"], base_s, self.intervals, ends)
        carbon = {name: c[name][:, None] for name in ("emissions_kg", "through_kg")}
        parts = emission_parts(carbon, node, self.intervals, ends)
        return Parts(parts.counts[:, 0], {name: column[:, 0] for name, column in parts.columns.items()})


_NODE_COLUMNS = "n.in_kwh, n.out_kwh, n.residual_kwh, n.through_kwh, n.covered"
_BLOCK_SELECT = {
    "energy": "SELECT b.edge_id, b.hour, b.energy_kwh, b.estimated_kwh, b.covered FROM ecmc.energy_block AS b",
    "node": f"SELECT n.node_id, n.hour, {_NODE_COLUMNS} FROM ecmc.node_block AS n",
    "emission": f"SELECT b.node_id, b.flow_id, b.hour, b.emissions_kg, b.through_kg, {_NODE_COLUMNS}"
    " FROM ecmc.emission_block AS b JOIN ecmc.node_block AS n ON n.node_id = b.node_id AND n.hour = b.hour",
}


async def _blocks(
    connection: asyncpg.Connection[Any],
    family: Family,
    ids: tuple[list[int], ...],
    hour_from: int,
    hour_to: int,
) -> list[_Blocks]:
    table = "n" if family is NODE else "b"
    match = " AND ".join(f"{table}.{key} = ANY(${i + 1}::int[])" for i, key in enumerate(family.keys))
    n = len(family.keys)
    query = (
        f"{_BLOCK_SELECT[family.name]} WHERE {match} AND {table}.hour >= ${n + 1} AND {table}.hour < ${n + 2}"
    )
    records = await connection.fetch(query, *ids, datetime_of(hour_from), datetime_of(hour_to))
    by_length: dict[int, list[asyncpg.Record]] = {}
    for record in records:
        by_length.setdefault(len(record[-1]), []).append(record)
    return [
        _Blocks(
            family,
            np.array([[r[i] for i in range(n)] for r in same], dtype=np.int64),
            np.array([time_ns_of(r["hour"]) for r in same], dtype=np.int64),
            {name: np.array([r[name] for r in same]) for name in list(same[0].keys())[n + 1 :]},
        )
        for same in by_length.values()
    ]


def _added(
    keys: npt.NDArray[np.int64], columns: dict[str, Floats]
) -> tuple[npt.NDArray[np.int64], dict[str, Floats]]:
    """Rows of one key added up, sorted by key."""
    size = 1
    place = np.zeros(len(keys), dtype=np.int64)
    for key in keys.T:
        found, mine = np.unique(key, return_inverse=True)
        place, size = place * found.size + mine, size * found.size
    order = np.argsort(place, kind="stable")
    first = np.flatnonzero(np.diff(place[order], prepend=-1))
    return keys[order[first]], {
        name: np.add.reduceat(column[order], first) for name, column in columns.items()
    }
