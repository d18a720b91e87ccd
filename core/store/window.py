"""Stored results read back as the engine gave them: what a seal hashes, a replay compares, an answer opens.

A COPY of blocks is parsed by numpy as it comes, so a month of a node is a
matter of milliseconds. Hours that were never computed come back as unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt

from core.clock import datetime_of, rfc3339
from core.errors import BadRequest
from core.results import HOUR_NS, Flow, IntervalEnergy, WindowResult
from core.samples import NS_PER_S, Floats
from core.store.copy import copy_out_blocks, time_ns_of_pg
from core.store.rollup import Parts

Ids = npt.NDArray[np.int32]
# What of a closed hour is kept when it is computed anew, each in a table of that name and `_archive`.
ARCHIVED = ("energy_block", "node_block", "emission_block", "stock", "stock_carbon")
_ENERGY = ("energy_kwh", "covered", "estimated_kwh", "mark")
_NODE = ("in_kwh", "out_kwh", "residual_kwh", "through_kwh", "covered")
_EMISSION = ("emissions_kg", "through_kg")
_COLUMNS = {
    "run": "hour, known_at, plant_fingerprint, reason, conservation_error, computed, factor_ids",
    "energy_block": ", ".join(("edge_id", "hour", *_ENERGY)),
    "node_block": ", ".join(("node_id", "hour", *_NODE)),
    "emission_block": ", ".join(("node_id", "flow_id", "hour", *_EMISSION)),
    "stock": "node_id, hour, kwh",
    "stock_carbon": "node_id, flow_id, hour, kg",
}


async def read_window(
    connection: asyncpg.Connection[Any],
    start_ns: int,
    end_ns: int,
    edges: tuple[Sequence[str], Ids],
    nodes: tuple[Sequence[str], Ids],
    flows: tuple[Sequence[Flow], Ids],
    storages: tuple[Sequence[str], Ids],
    revision: str | None = None,
) -> WindowResult:
    """Results of the whole hours [start, end), for the names and ids given.

    Args:
        revision: See `source`; None: as they stand.

    Raises:
        BadRequest: The base interval changed inside the window.
    """
    per_hour = await _per_hour(connection, start_ns, end_ns, revision)
    hours = (end_ns - start_ns) // HOUR_NS
    span = _Span(connection, start_ns, end_ns, per_hour, revision)
    energy = await span.read("energy", {"edge_id": edges[1]}, _ENERGY)
    node = await span.read("node", {"node_id": nodes[1]}, _NODE)
    carbon = await span.read("emission", {"node_id": nodes[1], "flow_id": flows[1]}, _EMISSION)
    stock_kwh = await span.stocks("stock", {"node_id": storages[1]}, "kwh")
    stock_kg = await span.stocks("stock_carbon", {"node_id": storages[1], "flow_id": flows[1]}, "kg")
    return WindowResult(
        start_ns=start_ns,
        base_ns=HOUR_NS // per_hour,
        edges=tuple(edges[0]),
        nodes=tuple(nodes[0]),
        flows=tuple(flows[0]),
        storages=tuple(storages[0]),
        energy=IntervalEnergy(
            energy["energy_kwh"],
            np.nan_to_num(energy["covered"]),
            np.nan_to_num(energy["estimated_kwh"]),
            np.nan_to_num(energy["mark"]).astype(np.int16),
        ),
        in_kwh=node["in_kwh"],
        out_kwh=node["out_kwh"],
        residual_kwh=node["residual_kwh"],
        coverage=np.nan_to_num(node["covered"]),
        emissions_kg=carbon["emissions_kg"],
        through_kg=carbon["through_kg"],
        through_kwh=node["through_kwh"],
        stock_kwh=stock_kwh.reshape(len(storages[0]), hours + 1),
        stock_kg=stock_kg.reshape(len(storages[0]), len(flows[0]), hours + 1),
    )


async def _per_hour(
    connection: asyncpg.Connection[Any], start_ns: int, end_ns: int, revision: str | None
) -> int:
    """Base intervals an hour, as stored; one where nothing is."""
    found = await connection.fetch(
        f"SELECT DISTINCT cardinality(covered) AS n FROM {source('node_block', revision)} AS b"
        " WHERE hour >= $1 AND hour < $2 AND node_id = (SELECT id FROM ecmc.node WHERE name = 'site')",
        datetime_of(start_ns),
        datetime_of(end_ns),
    )
    if len(found) > 1:
        raise BadRequest(
            f"the base interval changed within {rfc3339(start_ns)} .. {rfc3339(end_ns)}: ask for one side of it"
        )
    return int(found[0]["n"]) if found else 1


async def revision_at(
    connection: asyncpg.Connection[Any], start_ns: int, end_ns: int, closed_at_ns: int | None
) -> str | None:
    """SQL of the revision that the day of an hour `t.hour` had at a time; NULL where it was not closed yet."""
    if closed_at_ns is None:
        return None
    days = await connection.fetch(
        "SELECT DISTINCT ON (label) start_time, end_time, revision FROM ecmc.seal WHERE period = 'day'"
        " AND start_time < $2 AND end_time > $1 AND sealed_at <= $3 ORDER BY label, revision DESC",
        datetime_of(start_ns),
        datetime_of(end_ns),
        datetime_of(closed_at_ns),
    )
    whens = " ".join(
        f"WHEN t.hour >= '{day['start_time'].isoformat()}' AND t.hour < '{day['end_time'].isoformat()}'"
        f" THEN {day['revision']}"
        for day in days
    )
    return f"CASE {whens} END" if whens else "NULL"


def source(table: str, revision: str | None) -> str:
    """What to read instead of a result table to get closed hours as a revision had them.

    An hour that was computed anew since has a row in run_archive under the last revision it belonged to.

    Args:
        revision: SQL of the revision an hour `t.hour` is read in, a number or more; where NULL, as it stands.
    """
    if revision is None:
        return f"ecmc.{table}"
    kept = f"SELECT min(a.revision) FROM ecmc.run_archive AS a WHERE a.hour = t.hour AND a.revision >= {revision}"
    if table in ("stock", "stock_carbon"):  # kept by themselves too, when only the hour before changed
        kept = (
            f"SELECT min(a.revision) FROM ecmc.stock_archive AS a"
            f" WHERE a.hour = t.hour AND a.node_id = t.node_id AND a.revision >= {revision}"
        )
    columns = _COLUMNS[table]
    return (
        f"(SELECT {columns} FROM ecmc.{table} AS t WHERE ({kept}) IS NULL"
        f" UNION ALL SELECT {columns} FROM ecmc.{table}_archive AS t WHERE t.revision = ({kept}))"
    )


class _Span:
    """One stretch of hours, read table by table."""

    def __init__(
        self,
        connection: asyncpg.Connection[Any],
        start_ns: int,
        end_ns: int,
        per_hour: int,
        revision: str | None,
    ) -> None:
        self._connection = connection
        self._start_ns, self._end_ns = start_ns, end_ns
        self._per_hour = per_hour
        self._revision = revision

    async def read(self, family: str, ids: dict[str, Ids], columns: Sequence[str]) -> dict[str, Floats]:
        """Columns of shape (*ids, T)."""
        hours = (self._end_ns - self._start_ns) // HOUR_NS
        shape = tuple(of.size for of in ids.values())
        out = {name: np.full((*shape, hours * self._per_hour), np.nan) for name in columns}
        if 0 in shape:
            return out
        kinds = ["i2" if name == "mark" else "f8" for name in columns]
        rows = await copy_out_blocks(
            self._connection,
            self._query(f"{family}_block", ids, columns, self._end_ns),
            ("i4",) * len(ids) + ("i8",),
            kinds,
            self._per_hour,
        )
        place = _places(rows, ids)
        hour = (time_ns_of_pg(rows[len(ids)]) - self._start_ns) // HOUR_NS
        for name, column in zip(columns, rows[len(ids) + 1 :], strict=True):
            out[name].reshape(*shape, hours, self._per_hour)[(*place, hour)] = column
        return out

    async def stocks(self, table: str, ids: dict[str, Ids], column: str) -> Floats:
        """Shape (*ids, H + 1), the window's end included."""
        hours = (self._end_ns - self._start_ns) // HOUR_NS
        shape = tuple(of.size for of in ids.values())
        out = np.full((*shape, hours + 1), np.nan)
        if 0 in shape:
            return out
        query = self._query(table, ids, (column,), self._end_ns + NS_PER_S)
        rows = await copy_out_blocks(self._connection, query, ("i4",) * len(ids) + ("i8", "f8"), (), 0)
        hour = (time_ns_of_pg(rows[len(ids)]) - self._start_ns) // HOUR_NS
        out[(*_places(rows, ids), hour)] = rows[len(ids) + 1]
        return out

    def _query(self, table: str, ids: dict[str, Ids], columns: Sequence[str], end_ns: int) -> str:
        """COPY takes no parameters; these are integers and times of ours."""
        names = ", ".join((*ids, "hour", *columns))
        match = " AND ".join(
            f"{key} = ANY('{{{','.join(map(str, of.tolist()))}}}')" for key, of in ids.items()
        )
        span = f"hour >= '{datetime_of(self._start_ns).isoformat()}' AND hour < '{datetime_of(end_ns).isoformat()}'"
        return f"SELECT {names} FROM {source(table, self._revision)} AS b WHERE {match} AND {span}"


async def read_rollup(
    connection: asyncpg.Connection[Any],
    table: str,
    ids: dict[str, Ids],
    columns: Sequence[str],
    part: WindowResult,
    width_ns: int,
) -> Parts:
    """Roll-up rows over a window's span, shape (*ids, buckets); `counts` where there is one."""
    shape = (*(of.size for of in ids.values()), part.intervals * part.base_ns // width_ns)
    out = {name: np.zeros(shape) for name in columns}
    counts = np.zeros(shape, dtype=np.bool_)
    if 0 in shape:
        return Parts(counts, out)
    names = ", ".join((*ids, "start", *columns))
    match = " AND ".join(f"{key} = ANY('{{{','.join(map(str, of.tolist()))}}}')" for key, of in ids.items())
    start, end = datetime_of(part.start_ns).isoformat(), datetime_of(part.end_ns).isoformat()
    query = f"SELECT {names} FROM ecmc.{table} WHERE {match} AND start >= '{start}' AND start < '{end}'"
    rows = await copy_out_blocks(
        connection, query, ("i4",) * len(ids) + ("i8",) + ("f8",) * len(columns), (), 0
    )
    at = (*_places(rows, ids), (time_ns_of_pg(rows[len(ids)]) - part.start_ns) // width_ns)
    counts[at] = True
    for name, column in zip(columns, rows[len(ids) + 1 :], strict=True):
        out[name][at] = column
    return Parts(counts, out)


def _places(rows: Sequence[npt.NDArray[Any]], ids: dict[str, Ids]) -> list[npt.NDArray[np.int64]]:
    """Where each row's ids stand among those asked for."""
    places = []
    for column, of in zip(rows, ids.values(), strict=False):
        order = np.argsort(of)
        places.append(order[np.searchsorted(of[order], column)])
    return places
