"""Seals in the database: the chain, and closed figures kept when they are computed anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt
import orjson

from core.clock import datetime_of, rfc3339, time_ns_of
from core.errors import BadRequest
from core.results import HOUR_NS, Flow, WindowResult
from core.seal import Seal, day_digest, hour_digests, month_digest
from core.store.bucket import EMISSION, ENERGY, NODE, Family
from core.store.rollup import QUARTER_NS, Ends, Parts, window_parts
from core.store.seam import Pin, Stocks
from core.store.window import ARCHIVED, Ids, read_rollup, read_window, source

RESULT_LOCK = 0x65636D65  # results have one writer at a time


async def stored(
    connection: asyncpg.Connection[Any], start_ns: int, end_ns: int, revision: int | None = None
) -> list[WindowResult]:
    """Everything stored for the hours of [start, end), names sorted; several where the base interval changed."""
    read_in = None if revision is None else str(revision)
    edges = await _names(connection, "edge", "energy_block", "edge_id", start_ns, end_ns, revision)
    nodes = await _names(connection, "node", "node_block", "node_id", start_ns, end_ns, revision)
    storages = await _names(connection, "node", "stock", "node_id", start_ns, end_ns + 1000, revision)
    rows = await connection.fetch(
        "SELECT id, scope, basis, method_set FROM ecmc.flow ORDER BY scope, basis, method_set"
    )
    flows = [Flow(row["scope"], row["basis"], row["method_set"]) for row in rows]
    flow_ids = np.array([row["id"] for row in rows], dtype=np.int32)

    async def read(first_ns: int, last_ns: int) -> WindowResult:
        return await read_window(
            connection, first_ns, last_ns, edges, nodes, (flows, flow_ids), storages, read_in
        )

    try:
        return [await read(start_ns, end_ns)]
    except BadRequest:
        return [await read(hour, hour + HOUR_NS) for hour in range(start_ns, end_ns, HOUR_NS)]


async def _names(
    connection: asyncpg.Connection[Any],
    registry: str,
    table: str,
    key: str,
    start_ns: int,
    end_ns: int,
    revision: int | None,
) -> tuple[Sequence[str], Ids]:
    tables = (table,) if revision is None else (table, f"{table}_archive")
    there = " UNION ".join(f"SELECT {key} FROM ecmc.{name} WHERE hour >= $1 AND hour < $2" for name in tables)
    rows = await connection.fetch(
        f'SELECT id, name FROM ecmc.{registry} WHERE id IN ({there}) ORDER BY name COLLATE "C"',
        datetime_of(start_ns),
        datetime_of(end_ns),
    )
    return [row["name"] for row in rows], np.array([row["id"] for row in rows], dtype=np.int32)


async def preserve(connection: asyncpg.Connection[Any], result: WindowResult) -> None:
    """Keep the closed hours whose figures the result is about to change, under the revision they are sealed as."""
    days = await connection.fetch(
        "SELECT DISTINCT ON (label) start_time, end_time, revision FROM ecmc.seal"
        " WHERE period = 'day' AND start_time <= $2 AND end_time > $1 ORDER BY label, revision DESC",
        datetime_of(result.start_ns),
        datetime_of(result.end_ns),
    )
    after = hour_digests(result) if days else {}
    for day in days:
        first_ns, last_ns = time_ns_of(day["start_time"]), time_ns_of(day["end_time"])
        start_ns, end_ns = max(first_ns, result.start_ns), min(last_ns, result.end_ns)
        if start_ns < end_ns:
            before = await stored_digests(connection, start_ns, end_ns)
            hours = range(start_ns, end_ns, HOUR_NS)
            changed = [hour for hour in hours if before.get(hour) != after.get(hour)]
            await _keep(connection, changed, day["revision"])
        if first_ns <= result.end_ns < last_ns:
            await _keep_stocks(connection, result, day["revision"])


async def stored_digests(
    connection: asyncpg.Connection[Any], start_ns: int, end_ns: int, revision: int | None = None
) -> dict[int, bytes]:
    """Digests of the hours of [start, end) as they are stored."""
    digests: dict[int, bytes] = {}
    for part in await stored(connection, start_ns, end_ns, revision):
        digests |= hour_digests(part)
    return digests


async def _keep(connection: asyncpg.Connection[Any], hours: list[int], revision: int) -> None:
    if not hours:
        return
    at = [datetime_of(hour) for hour in hours]
    for table in ARCHIVED:
        await connection.execute(
            f"INSERT INTO ecmc.{table}_archive SELECT t.*, $2 FROM ecmc.{table} AS t WHERE hour = ANY($1)"
            " ON CONFLICT DO NOTHING",
            at,
            revision,
        )
    await connection.execute(_KEEP_RUN, at, revision)


_RUN = "known_at, plant_fingerprint, reason, conservation_error, factor_ids, computed"
_KEEP_RUN = f"""
INSERT INTO ecmc.run_archive (hour, revision, {_RUN})
SELECT hour, $2, {_RUN} FROM unnest($1::timestamptz[]) AS hour LEFT JOIN ecmc.run USING (hour)
ON CONFLICT DO NOTHING
"""


async def _keep_stocks(connection: asyncpg.Connection[Any], result: WindowResult, revision: int) -> None:
    """Keep what stood in the storages where the window ends, if the window says otherwise."""
    (there,) = (await stored(connection, result.end_ns, result.end_ns + HOUR_NS))[:1]
    mine = Stocks(result.storages, result.flows, result.stock_kwh[:, -1], result.stock_kg[..., -1])
    if any(name not in there.storages for name in mine.storages):
        same = False
    else:
        now = Stocks(there.storages, there.flows, there.stock_kwh[:, 0], there.stock_kg[..., 0])
        ours, _ = now.onto(mine.storages, mine.flows)
        same = np.array_equal(ours.kwh, mine.kwh, equal_nan=True) and np.array_equal(
            ours.kg, mine.kg, equal_nan=True
        )
    if same:
        return
    for table in ("stock", "stock_carbon"):
        await connection.execute(
            f"INSERT INTO ecmc.{table}_archive SELECT t.*, $2 FROM ecmc.{table} AS t WHERE hour = $1"
            " ON CONFLICT DO NOTHING",
            datetime_of(result.end_ns),
            revision,
        )


# The chain -------------------------------------------------------------------


async def chain(connection: asyncpg.Connection[Any]) -> list[Seal]:
    """Every seal, in the order of the chain."""
    return [_seal(row) for row in await connection.fetch("SELECT * FROM ecmc.seal ORDER BY id")]


async def seals(
    connection: asyncpg.Connection[Any], start_ns: int, end_ns: int, period: str | None
) -> list[Seal]:
    """Seals of periods that touch [start, end), by period and revision."""
    rows = await connection.fetch(
        "SELECT * FROM ecmc.seal WHERE start_time < $2 AND end_time > $1 AND ($3::text IS NULL OR period = $3)"
        " ORDER BY start_time, period, revision",
        datetime_of(start_ns),
        datetime_of(end_ns),
        period,
    )
    return [_seal(row) for row in rows]


def _seal(row: asyncpg.Record) -> Seal:
    return Seal(
        row["period"],
        row["label"],
        time_ns_of(row["start_time"]),
        time_ns_of(row["end_time"]),
        row["revision"],
        row["digest"],
        orjson.loads(row["factors"]),
        row["who"],
        row["why"],
        time_ns_of(row["sealed_at"]),
        row["chain"],
    )


async def open_days(connection: asyncpg.Connection[Any], zone: str, before_ns: int) -> list[str]:
    """Days with results that were never closed and ended by then, oldest first."""
    rows = await connection.fetch(
        "SELECT label FROM (SELECT DISTINCT (hour AT TIME ZONE $1)::date::text AS label FROM ecmc.run"
        " WHERE hour < $2) AS day"
        " WHERE NOT EXISTS (SELECT FROM ecmc.seal AS s WHERE s.period = 'day' AND s.label = day.label)"
        " AND ((label::date + 1)::timestamp AT TIME ZONE $1) <= $2 ORDER BY label",
        zone,
        datetime_of(before_ns),
    )
    return [row["label"] for row in rows]


_IS_REOPENED = """
(EXISTS (
    SELECT FROM ecmc.run_archive AS a
    WHERE a.hour >= s.start_time AND a.hour < s.end_time AND a.revision = s.revision
) OR EXISTS (
    SELECT FROM ecmc.stock_archive AS a
    WHERE a.hour >= s.start_time AND a.hour < s.end_time AND a.revision = s.revision
))
"""
_REOPENED = f"""
SELECT s.label, s.start_time, s.end_time, s.revision, s.sealed_at
FROM (SELECT DISTINCT ON (label) * FROM ecmc.seal WHERE period = 'day' ORDER BY label, revision DESC) AS s
WHERE {_IS_REOPENED}
ORDER BY s.label
"""
_IS_CLOSED = f"""
SELECT NOT {_IS_REOPENED}
FROM (SELECT * FROM ecmc.seal WHERE period = 'day' AND label = $1 ORDER BY revision DESC LIMIT 1) AS s
"""

_WHY = """
SELECT 'computed again for ' || string_agg(DISTINCT CASE r.reason WHEN 'samples' THEN 'readings'
    WHEN 'event' THEN 'a meter event' WHEN 'plant' THEN 'a change of model' WHEN 'stock' THEN 'what storages handed on'
    WHEN 'recompute' THEN 'a recomputation' ELSE r.reason END, ', ')
FROM ecmc.run AS r JOIN ecmc.run_archive AS a USING (hour) WHERE hour >= $1 AND hour < $2 AND a.revision = $3
UNION ALL
SELECT count(*) || ' late readings of ' || string_agg(DISTINCT p.name, ', ') FROM ecmc.late_sample AS l
JOIN ecmc.point AS p ON p.id = l.point_id
WHERE l.at > $4 AND l.time >= $1 - interval '1 day' AND l.time < $2 + interval '1 day' HAVING count(*) > 0
UNION ALL
SELECT c.why || ' (' || c.who || ', ' || count(*) || ' corrected)' FROM ecmc.correction AS c
JOIN ecmc.late_sample AS l USING (point_id, time)
WHERE l.at > $4 AND l.time >= $1 - interval '1 day' AND l.time < $2 + interval '1 day' GROUP BY c.who, c.why
UNION ALL
SELECT v.why || ' (' || v.who || ')' FROM ecmc.plant_validity AS v
WHERE v.at > $4 AND coalesce(v.valid_from, '-infinity') < $2 AND coalesce(v.valid_to, 'infinity') > $1
"""


async def reopened(connection: asyncpg.Connection[Any]) -> list[tuple[str, str]]:
    """Closed days whose figures are no longer those of their newest seal, and why, oldest first."""
    days = []
    for row in await connection.fetch(_REOPENED):
        why = await connection.fetch(
            _WHY, row["start_time"], row["end_time"], row["revision"], row["sealed_at"]
        )
        days.append((row["label"], "; ".join(reason[0] for reason in why if reason[0])))
    return days


async def close_day(
    connection: asyncpg.Connection[Any],
    label: str,
    start_ns: int,
    end_ns: int,
    describe: Callable[[set[str]], dict[str, object]],
    who: str,
    why: str,
) -> Seal | None:
    """Close a day as it is stored now.

    None where something of it is still to be computed, there is nothing, or it is closed as it stands: somebody else
    was faster. Nobody computes or writes readings of the day meanwhile.
    """
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({RESULT_LOCK})")
        if await connection.fetchval(_IS_CLOSED, label):
            return None
        await connection.execute(
            "UPDATE ecmc.seal_horizon SET closed_until = greatest(closed_until, $1)", datetime_of(end_ns)
        )
        dirty = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM ecmc.dirty_range WHERE start_time < $2 AND end_time >= $1)",
            datetime_of(start_ns),
            datetime_of(end_ns + 2 * HOUR_NS),
        )
        hours = await stored_digests(connection, start_ns, end_ns)
        if dirty or not hours:
            return None
        used = await connection.fetch(
            "SELECT DISTINCT unnest(string_to_array(value, ' ')) FROM ecmc.run, jsonb_each_text(factor_ids)"
            " WHERE hour >= $1 AND hour < $2",
            datetime_of(start_ns),
            datetime_of(end_ns),
        )
        factors = describe({row[0] for row in used})
        return await _append(connection, "day", label, start_ns, end_ns, day_digest(hours), factors, who, why)


async def close_month(
    connection: asyncpg.Connection[Any], label: str, start_ns: int, end_ns: int, who: str, why: str
) -> Seal | None:
    """Close a month over the newest seals of its days; None where it has none."""
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({RESULT_LOCK})")
        days = await connection.fetch(
            "SELECT DISTINCT ON (label) label, digest FROM ecmc.seal WHERE period = 'day'"
            " AND start_time >= $1 AND end_time <= $2 ORDER BY label, revision DESC",
            datetime_of(start_ns),
            datetime_of(end_ns),
        )
        if not days:
            return None
        digest = month_digest({row["label"]: row["digest"] for row in days})
        return await _append(connection, "month", label, start_ns, end_ns, digest, {}, who, why)


async def _append(
    connection: asyncpg.Connection[Any],
    period: str,
    label: str,
    start_ns: int,
    end_ns: int,
    digest: bytes,
    factors: dict[str, object],
    who: str,
    why: str,
) -> Seal:
    revision = await connection.fetchval(
        "SELECT coalesce(max(revision), 0) + 1 FROM ecmc.seal WHERE period = $1 AND label = $2", period, label
    )
    before = await connection.fetchval("SELECT chain FROM ecmc.seal ORDER BY id DESC LIMIT 1")
    at = await connection.fetchval("SELECT clock_timestamp()")
    seal = Seal(period, label, start_ns, end_ns, revision, digest, factors, who, why, time_ns_of(at))
    seal = replace(seal, chain=seal.linked(before or b""))
    await connection.execute(
        "INSERT INTO ecmc.seal (period, label, start_time, end_time, revision, digest, factors, who, why,"
        " sealed_at, chain) VALUES ($1, $2, $3, $4, $5, $6, $7::jsonb, $8, $9, $10, $11)",
        period,
        label,
        datetime_of(start_ns),
        datetime_of(end_ns),
        revision,
        digest,
        orjson.dumps(factors).decode(),
        who,
        why,
        at,
        seal.chain,
    )
    return seal


# What a replay needs ---------------------------------------------------------


async def pins(
    connection: asyncpg.Connection[Any], start_ns: int, end_ns: int, revision: str | None
) -> list[Pin]:
    """The computations behind the hours of a revision (see `source`), or as they stand, in time order."""
    rows = await connection.fetch(
        f"SELECT hour, known_at, computed FROM {source('run', revision)} AS run"
        " WHERE hour >= $1 AND hour < $2 AND known_at IS NOT NULL ORDER BY hour",
        datetime_of(start_ns),
        datetime_of(end_ns),
    )
    return [
        Pin(time_ns_of(row["hour"]), time_ns_of(row["known_at"]), time_ns_of(row["computed"])) for row in rows
    ]


async def kept_from(connection: asyncpg.Connection[Any], points: list[int]) -> int | None:
    """From when on all readings of these points are there; None where none was ever dropped."""
    rows = await connection.fetch(
        "SELECT l.first_time, l.time, (SELECT min(time) FROM ecmc.sample AS s WHERE s.point_id = l.point_id) AS kept"
        " FROM ecmc.latest AS l WHERE l.point_id = ANY($1)",
        points,
    )
    horizon = await connection.fetchval(
        "SELECT dropped_until FROM ecmc.seal_horizon WHERE dropped_until > '-infinity'"
    )
    dropped = []
    for row in rows:
        if row["kept"] is None:  # of a point that has none left, nothing is missing after its last one
            dropped.append(row["time"])
        elif horizon is not None and row["first_time"] < horizon and row["kept"] < row["time"]:
            dropped.append(max(row["kept"], horizon))  # one that came late brings no other back
        elif row["kept"] > row["first_time"]:
            dropped.append(row["kept"])
    return max(map(time_ns_of, dropped), default=None)


async def rollup_difference(connection: asyncpg.Connection[Any], part: WindowResult) -> str | None:
    """The first roll-up row that is not the sum of its stored base intervals, in words."""
    edges = await _ids_of(connection, "edge", part.edges)
    nodes = await _ids_of(connection, "node", part.nodes)
    rows = await connection.fetch("SELECT id, scope, basis, method_set FROM ecmc.flow")
    flow_id = {Flow(row["scope"], row["basis"], row["method_set"]): row["id"] for row in rows}
    flows = np.array([flow_id[flow] for flow in part.flows], dtype=np.int32)
    families: tuple[tuple[Family, dict[str, Ids]], ...] = (
        (ENERGY, {"edge_id": edges}),
        (NODE, {"node_id": nodes}),
        (EMISSION, {"node_id": nodes, "flow_id": flows}),
    )
    named = (
        part.edges,
        part.nodes,
        tuple(f"{n} {f.scope} {f.basis} {f.method_set}" for n in part.nodes for f in part.flows),
    )
    for level, per_quarter in (("15m", 1), ("1h", 4)):
        width_ns = per_quarter * QUARTER_NS
        there = [
            await read_rollup(connection, f"{family.name}_{level}", ids, family.columns, part, width_ns)
            for family, ids in families
        ]
        # The hours at the two ends of all that was stored then leave out what had not come yet.
        matches = [np.zeros(found.counts.shape, dtype=np.bool_) for found in there]
        for ends in product((False, True), repeat=2):
            for hour in range(part.intervals * part.base_ns // HOUR_NS):
                buckets = slice(hour * HOUR_NS // width_ns, (hour + 1) * HOUR_NS // width_ns)
                if all(match[..., buckets].all() for match in matches):
                    continue
                summed = window_parts(part.hour(hour), Ends(*ends))
                for match, found, parts in zip(matches, there, summed, strict=True):
                    wanted = parts.summed(width_ns // part.base_ns)
                    match[..., buckets] |= _agree(found, buckets, wanted)
        for (family, _), names, match in zip(families, named, matches, strict=True):
            if not match.all():
                row, bucket = np.argwhere(~match.reshape(len(names), -1))[0].tolist()
                at = rfc3339(part.start_ns + bucket * width_ns)
                return f"{family.name}_{level} {names[row]} at {at} is not the sum of its base intervals"
    return None


def _agree(found: Parts, buckets: slice, wanted: Parts) -> npt.NDArray[np.bool_]:
    """Where stored roll-ups, cut to some buckets, are what they should be."""
    counts = found.counts[..., buckets]
    same: npt.NDArray[np.bool_] = counts == wanted.counts
    for name, column in wanted.columns.items():
        stored_ = found.columns[name][..., buckets]
        same &= ~counts | np.isclose(stored_, column, rtol=1e-12, atol=0, equal_nan=True)
    return same


async def _ids_of(connection: asyncpg.Connection[Any], registry: str, names: Sequence[str]) -> Ids:
    rows = await connection.fetch(f"SELECT id, name FROM ecmc.{registry} WHERE name = ANY($1)", list(names))
    id_of = {row["name"]: row["id"] for row in rows}
    return np.array([id_of[name] for name in names], dtype=np.int32)
