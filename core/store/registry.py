"""Names and the small numbers that stand for them in every table; a number is never given to another name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import asyncpg
import numpy as np
import numpy.typing as npt

from core.plant.model import Label, Plant, PointMeter
from core.results import SITE, Flow
from core.samples import PointTable
from core.store import model

Ids = npt.NDArray[np.int32]
_LOCK = 0x65636D66


class Registry:
    """The ids of one database, kept in memory; names another process registered are looked up when first met."""

    def __init__(self) -> None:
        self._ids: dict[str, dict[str, int]] = {"point": {}, "edge": {}, "node": {}}
        self._point_names: dict[int, str] = {}
        self._flows: dict[Flow, int] = {}
        self._tables: WeakKeyDictionary[PointTable, Ids] = WeakKeyDictionary()

    async def adopt(
        self, connection: asyncpg.Connection[Any], plant: Plant, at_ns: int | None = None
    ) -> None:
        """Register everything the plant names, keep its revision, and from when on it holds."""
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            feeding = {
                point
                for edge in plant.edges
                if isinstance(edge.meter, PointMeter)
                for point in (edge.meter.point, edge.meter.power_point)
            }
            await _upsert(
                connection,
                "point",
                ("name", "device", "quantity", "unit", "kind", "feeds"),
                [
                    (p.id, p.device, p.quantity, p.unit, p.kind.value, p.id in feeding or p.source is None)
                    for p in plant.points
                ],
            )
            await _upsert(
                connection,
                "edge",
                ("name", "source", "target", "carrier"),
                [(e.id, e.source, e.target, e.carrier) for e in plant.edges],
            )
            site = (SITE, SITE, None, None, plant.name.zh, plant.name.en)
            await _upsert(
                connection,
                "node",
                ("name", "kind", "carrier", "area", "name_zh", "name_en"),
                [
                    *(
                        (n.id, n.kind.value, n.carrier, n.area, *_both(n.name, n.id))
                        for n in plant.nodes
                        if n.id != SITE
                    ),
                    site,
                ],
            )
            await model.adopt(connection, plant, at_ns)
        await self._load(connection)

    async def ids(self, connection: asyncpg.Connection[Any], kind: str, names: Sequence[str]) -> Ids:
        """Ids of names, -1 where there is none."""
        ids = self._ids[kind]
        if any(name not in ids for name in names):
            await self._load(connection)
            ids = self._ids[kind]
        return np.array([ids.get(name, -1) for name in names], dtype=np.int32)

    async def ids_of_table(self, connection: asyncpg.Connection[Any], table: PointTable) -> Ids:
        """Point ids by the table's index, -1 for unknown points; found once a table."""
        ids = self._tables.get(table)
        if ids is None:
            ids = await self.ids(connection, "point", table.names)
            if np.all(ids >= 0):
                self._tables[table] = ids
        return ids

    async def point_names(self, connection: asyncpg.Connection[Any], ids: Iterable[int]) -> list[str]:
        wanted = list(ids)
        if any(i not in self._point_names for i in wanted):
            await self._load(connection)
        return [self._point_names[i] for i in wanted]

    async def flow_ids(self, connection: asyncpg.Connection[Any], flows: Sequence[Flow]) -> Ids:
        """Ids of flows, registered where new."""
        if any(flow not in self._flows for flow in flows):
            async with connection.transaction():
                await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
                await self._load(connection)
                for flow in flows:
                    if flow not in self._flows:
                        await connection.execute(
                            "INSERT INTO ecmc.flow (scope, basis, method_set) VALUES ($1, $2, $3)",
                            flow.scope,
                            flow.basis,
                            flow.method_set,
                        )
            await self._load(connection)
        return np.array([self._flows[flow] for flow in flows], dtype=np.int32)

    async def flows(
        self, connection: asyncpg.Connection[Any], basis: str, method_set: str
    ) -> dict[Flow, int]:
        """All scopes of a basis and method set."""
        found = self._flows_of(basis, method_set)
        if not found:
            await self._load(connection)
            found = self._flows_of(basis, method_set)
        return found

    def _flows_of(self, basis: str, method_set: str) -> dict[Flow, int]:
        return {
            flow: i
            for flow, i in sorted(self._flows.items())
            if flow.basis == basis and flow.method_set == method_set
        }

    async def _load(self, connection: asyncpg.Connection[Any]) -> None:
        for kind in self._ids:
            rows = await connection.fetch(f"SELECT name, id FROM ecmc.{kind}")
            self._ids[kind] = {row["name"]: row["id"] for row in rows}
        self._point_names = {i: name for name, i in self._ids["point"].items()}
        rows = await connection.fetch("SELECT scope, basis, method_set, id FROM ecmc.flow")
        self._flows = {Flow(row["scope"], row["basis"], row["method_set"]): row["id"] for row in rows}


async def _upsert(
    connection: asyncpg.Connection[Any],
    table: str,
    columns: Sequence[str],
    rows: Sequence[tuple[object, ...]],
) -> None:
    """Insert new names, update what changed of known ones; ids stay."""
    known = {row["name"] for row in await connection.fetch(f"SELECT name FROM ecmc.{table}")}
    places = ", ".join(f"${i + 1}" for i in range(len(columns)))
    insert = f"INSERT INTO ecmc.{table} ({', '.join(columns)}) VALUES ({places})"
    await connection.executemany(insert, [row for row in rows if row[0] not in known])
    changes = ", ".join(f"{name} = ${i + 2}" for i, name in enumerate(columns[1:]))
    now = ", ".join(columns[1:])
    given = ", ".join(f"${i + 2}" for i in range(len(columns) - 1))
    update = f"UPDATE ecmc.{table} SET {changes} WHERE name = $1 AND ({now}) IS DISTINCT FROM ({given})"
    await connection.executemany(update, [row for row in rows if row[0] in known])


def _both(label: Label | None, name: str) -> tuple[str, str]:
    return (label.zh, label.en) if label is not None else (name, name)
