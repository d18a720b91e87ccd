"""Results into the database: an hour is replaced whole, in blocks and roll-ups alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt
import orjson

from core.clock import datetime_of, time_ns_of
from core.results import HOUR_NS, WindowResult
from core.samples import Floats, Times
from core.store.bucket import EMISSION, ENERGY, NODE, Family
from core.store.copy import copy_in, pg_time
from core.store.replace import Stretch, replace_rows
from core.store.rollup import QUARTER_NS, Ends, Parts, window_parts
from core.store.seals import RESULT_LOCK, preserve
from core.store.seam import Computed, Run, RunSpan
from core.store.window import source

Ids = npt.NDArray[np.int32]


async def write(
    connection: asyncpg.Connection[Any],
    result: WindowResult,
    run: Run,
    edges: Ids,
    nodes: Ids,
    flows: Ids,
    storages: Ids,
    done: Sequence[int],
) -> None:
    """Replace the window's hours and drop the ledger rows `done`; the ids are those of the result's names."""
    async with connection.transaction():
        await connection.execute(f"SELECT pg_advisory_xact_lock({RESULT_LOCK})")
        await preserve(connection, result)
        start, end = datetime_of(result.start_ns), datetime_of(result.end_ns)
        others = await connection.fetchrow(
            "SELECT coalesce(bool_or(hour < $1), false), coalesce(bool_or(hour >= $2), false)"
            " FROM (SELECT min(hour) AS hour FROM ecmc.run UNION ALL SELECT max(hour) FROM ecmc.run) AS ends",
            start,
            end,
        )
        assert others is not None
        ends = Ends(oldest=not others[0], newest=not others[1])
        # In the newest hour, which is still filling, everything moves.
        compare = not (ends.newest and result.end_ns - result.start_ns == HOUR_NS)
        stretch = Stretch(result.start_ns, result.end_ns, compare)
        await connection.execute("DELETE FROM ecmc.run WHERE hour >= $1 AND hour < $2", start, end)
        await _write_runs(connection, result, run)
        await _write_blocks(connection, stretch, result, edges, nodes, flows)
        base_per_quarter = QUARTER_NS // result.base_ns
        keys: tuple[tuple[Family, tuple[Ids, ...]], ...] = (
            (ENERGY, (edges,)),
            (NODE, (nodes,)),
            (EMISSION, (nodes, flows)),
        )
        for (family, ids), parts in zip(keys, window_parts(result, ends), strict=True):
            quarters = parts.summed(base_per_quarter)
            await _write_rollup(connection, stretch, f"{family.name}_15m", family, ids, quarters, QUARTER_NS)
            await _write_rollup(
                connection, stretch, f"{family.name}_1h", family, ids, quarters.summed(4), HOUR_NS
            )
        await _write_stocks(connection, result, storages, flows)
        if done:
            await connection.execute("DELETE FROM ecmc.dirty_range WHERE id = ANY($1)", list(done))


async def _write_runs(connection: asyncpg.Connection[Any], result: WindowResult, run: Run) -> None:
    await connection.execute(
        "INSERT INTO ecmc.run (hour, known_at, plant_fingerprint, reason, conservation_error, factor_ids)"
        " SELECT hour, $2, $3, $4, $5, $6::jsonb FROM unnest($1::timestamptz[]) AS hour",
        [datetime_of(hour) for hour in range(result.start_ns, result.end_ns, HOUR_NS)],
        datetime_of(run.known_at_ns),
        run.plant_fingerprint,
        run.reason,
        result.conservation_error,
        orjson.dumps(result.factor_ids).decode(),
    )


async def _write_blocks(
    connection: asyncpg.Connection[Any],
    stretch: Stretch,
    result: WindowResult,
    edges: Ids,
    nodes: Ids,
    flows: Ids,
) -> None:
    per_hour = HOUR_NS // result.base_ns
    hours = result.start_ns + np.arange(result.intervals // per_hour) * HOUR_NS

    def blocks(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.ascontiguousarray(column).reshape(-1, per_hour)

    energy = result.energy
    await replace_rows(
        connection,
        stretch,
        "energy_block",
        ("edge_id", "hour"),
        ("energy_kwh", "covered", "estimated_kwh", "mark"),
        [
            *_keys((edges,), hours),
            blocks(energy.energy_kwh),
            blocks(energy.covered),
            blocks(energy.estimated_kwh),
            blocks(energy.mark.astype(np.int16)),
        ],
    )
    await replace_rows(
        connection,
        stretch,
        "node_block",
        ("node_id", "hour"),
        ("in_kwh", "out_kwh", "residual_kwh", "through_kwh", "covered"),
        [
            *_keys((nodes,), hours),
            blocks(result.in_kwh),
            blocks(result.out_kwh),
            blocks(result.residual_kwh),
            blocks(result.through_kwh),
            blocks(result.coverage),
        ],
    )
    await replace_rows(
        connection,
        stretch,
        "emission_block",
        ("node_id", "flow_id", "hour"),
        ("emissions_kg", "through_kg"),
        [*_keys((nodes, flows), hours), blocks(result.emissions_kg), blocks(result.through_kg)],
    )


async def _write_rollup(
    connection: asyncpg.Connection[Any],
    stretch: Stretch,
    table: str,
    family: Family,
    ids: tuple[Ids, ...],
    parts: Parts,
    width_ns: int,
) -> None:
    starts = stretch.start_ns + np.arange(parts.counts.shape[-1]) * width_ns
    counts = parts.counts.reshape(-1)
    keys = [key[counts] for key in _keys(ids, starts)]
    columns = [parts.columns[name].reshape(-1)[counts] for name in family.columns]
    await replace_rows(connection, stretch, table, (*family.keys, "start"), family.columns, [*keys, *columns])


def _keys(ids: tuple[Ids, ...], starts: Times) -> list[npt.NDArray[Any]]:
    """Key columns of all combinations, in the order a (ids..., time) array is flattened."""
    grids = np.meshgrid(*ids, pg_time(starts), indexing="ij")
    return [grid.reshape(-1) for grid in grids]


async def _write_stocks(
    connection: asyncpg.Connection[Any], result: WindowResult, storages: Ids, flows: Ids
) -> None:
    if storages.size == 0:
        return
    hours = result.start_ns + np.arange(result.stock_kwh.shape[1]) * HOUR_NS
    first, last = datetime_of(result.start_ns), datetime_of(result.end_ns)
    for table in ("stock", "stock_carbon"):
        # At the end stands what the next hour begins with, also in storages that are only then there.
        await connection.execute(
            f"DELETE FROM ecmc.{table} WHERE hour >= $1 AND hour < $2 OR hour = $2 AND node_id = ANY($3)",
            first,
            last,
            storages.tolist(),
        )
    await copy_in(
        connection,
        "stock",
        ("node_id", "hour", "kwh"),
        [*_keys((storages,), hours), _flat(result.stock_kwh)],
        schema="ecmc",
    )
    await copy_in(
        connection,
        "stock_carbon",
        ("node_id", "flow_id", "hour", "kg"),
        [*_keys((storages, flows), hours), _flat(result.stock_kg)],
        schema="ecmc",
    )


def _flat(column: Floats) -> Floats:
    return np.ascontiguousarray(column, dtype=np.float64).reshape(-1)


async def stocks_at(
    connection: asyncpg.Connection[Any], at_ns: int, storages: Ids, flows: Ids
) -> tuple[Floats, Floats] | None:
    """Stocks (S,) kWh and (S, F) kg at an hour's start; None where none is stored.

    A storage that is not stored held nothing yet; a flow that is not stored is unknown where there was energy.
    """
    at = datetime_of(at_ns)
    energy = await connection.fetch(
        "SELECT node_id, kwh FROM ecmc.stock WHERE hour = $1 AND node_id = ANY($2)", at, storages.tolist()
    )
    if not energy and storages.size:
        return None
    carbon = await connection.fetch(
        "SELECT node_id, flow_id, kg FROM ecmc.stock_carbon WHERE hour = $1 AND node_id = ANY($2)",
        at,
        storages.tolist(),
    )
    kwh_of = {row["node_id"]: row["kwh"] for row in energy}
    kg_of = {(row["node_id"], row["flow_id"]): row["kg"] for row in carbon}
    kwh = np.array([kwh_of.get(s, 0.0) for s in storages.tolist()], dtype=np.float64)
    kg = np.array(
        [
            [kg_of.get((s, f), 0.0 if kwh_of.get(s, 0.0) == 0 else np.nan) for f in flows.tolist()]
            for s in storages.tolist()
        ],
        dtype=np.float64,
    ).reshape(storages.size, flows.size)
    return kwh, kg


async def computed(connection: asyncpg.Connection[Any], start_ns: int, end_ns: int) -> Computed:
    async with connection.transaction():
        # Whoever writes results now has committed before this is answered.
        await connection.execute(f"SELECT pg_advisory_xact_lock_shared({RESULT_LOCK})")
        now = await connection.fetchval("SELECT clock_timestamp()")
        rows = await connection.fetch(
            "SELECT min(hour) AS first, max(hour) + interval '1 hour' AS last, max(computed) AS newest FROM ("
            " SELECT hour, computed, hour - interval '1 hour' * row_number() OVER (ORDER BY hour) AS stretch"
            " FROM ecmc.run WHERE hour >= $1 AND hour < $2"
            ") AS run GROUP BY stretch ORDER BY first",
            datetime_of(start_ns),
            datetime_of(end_ns),
        )
        ends = await connection.fetchrow("SELECT min(hour), max(hour) FROM ecmc.run")
    first, last = (0 if end is None else time_ns_of(end) for end in ends or (None, None))
    return Computed(
        tuple((time_ns_of(row["first"]), time_ns_of(row["last"])) for row in rows),
        max((time_ns_of(row["newest"]) for row in rows), default=0),
        time_ns_of(now),
        first,
        last,
    )


async def has_run(connection: asyncpg.Connection[Any], hour_ns: int) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM ecmc.run WHERE hour = $1)", datetime_of(hour_ns)
        )
    )


_RUNS = """
SELECT min(hour) AS start, max(hour) + interval '1 hour' AS "end", min(known_at) AS first, max(known_at) AS last,
       plant_fingerprint, reason, max(conservation_error) AS conservation_error
FROM (
    SELECT *, hour - interval '1 hour' * row_number() OVER (PARTITION BY plant_fingerprint, reason ORDER BY hour)
        AS stretch
    FROM {run} WHERE hour >= $1 AND hour < $2 AND known_at IS NOT NULL
) AS runs
GROUP BY plant_fingerprint, reason, stretch
ORDER BY start
"""


async def runs(
    connection: asyncpg.Connection[Any], start_ns: int, end_ns: int, revision: str | None
) -> list[RunSpan]:
    query = _RUNS.format(run=f"{source('run', revision)} AS run")
    rows = await connection.fetch(query, datetime_of(start_ns // HOUR_NS * HOUR_NS), datetime_of(end_ns))
    return [
        RunSpan(
            time_ns_of(row["start"]),
            time_ns_of(row["end"]),
            time_ns_of(row["first"]),
            time_ns_of(row["last"]),
            row["plant_fingerprint"],
            row["reason"],
            row["conservation_error"],
        )
        for row in rows
    ]
