"""The store on PostgreSQL, with or without TimescaleDB: what `core.store.seam.Store` promises.

This class only passes on: it takes a connection from the pool, turns names into
ids, and calls the module that knows (writer, reader, result, bucket). Every
error of the database leaves as StoreUnavailable or StoreRefused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeAlias, cast
from zoneinfo import ZoneInfo

import asyncpg
import numpy as np
import numpy.typing as npt
from asyncpg import exceptions as pg

from core.clock import datetime_of, time_ns_of
from core.errors import BadRequest
from core.plant.model import Plant
from core.results import Flow, Mark, WindowResult
from core.samples import NS_PER_S, Floats, Indices, PointTable, SampleBatch, empty_batch
from core.seal import Seal
from core.store import bucket as buckets
from core.store import late, model, reader, result, seals, series, writer
from core.store.archive import Archive
from core.store.bucket import EMISSION, ENERGY, NODE, Family, Sums
from core.store.gauge import refresh_gauges
from core.store.refusal import refusals
from core.store.registry import Registry
from core.store.room import Room
from core.store.seam import (
    Bucket,
    Computed,
    Conflict,
    CorrectedSample,
    Correction,
    DirtyRange,
    LatestColumns,
    Pin,
    Run,
    RunSpan,
    Series,
    Stocks,
    Validity,
    WriteReport,
)
from core.store.series import Tier, Week, tier_of
from core.store.window import read_window, revision_at
from migrations import migrate

Connection: TypeAlias = "asyncpg.Connection[Any]"

_CONNECTIONS = 12
_COMMAND_TIMEOUT_S = 120.0
_DEADLOCK_TRIES = 5
# A plan made for the times asked for reads their weeks only; one made for all times would open every week.
_SESSION = {
    "search_path": "ecmc, public",
    "plan_cache_mode": "force_custom_plan",
    "timezone": "UTC",
    "jit": "off",
}


class PostgresStore:
    """One plant's data in one database. `open` brings the schema up to date and registers the plant."""

    def __init__(self, pool: asyncpg.Pool[Any], tier: Tier) -> None:
        self.pool = pool
        self.tier = tier
        self._registry = Registry()
        self._writer = writer.Writer(tier)
        self._zone = ZoneInfo("UTC")
        self._shifts: tuple[int, ...] = ()
        self._base_interval_s = 60
        self.archive: Archive | None = None  # closed months in files, where the plant keeps any
        self.room: Room | None = None  # of the database's disk, where that is ours to watch

    @classmethod
    async def open(cls, dsn: str, plant: Plant, at_ns: int | None = None) -> Self:
        """Connect, migrate, adopt (at a time, where it is not now).

        Raises:
            StoreUnavailable: The server does not answer.
            StoreRefused: It does, and says no: password, rights, version, foreign tables.
        """
        await migrate(dsn)
        with refusals():
            pool = await asyncpg.create_pool(
                dsn,
                min_size=1,
                max_size=_CONNECTIONS,
                timeout=10,
                command_timeout=_COMMAND_TIMEOUT_S,
                server_settings=_SESSION,
                init=writer.prepare,
                reset=_left,
            )
            async with pool.acquire() as connection:
                tier = await tier_of(cast("Connection", connection))
        store = cls(pool, tier)
        await store.adopt(plant, at_ns=at_ns)
        return store

    async def close(self) -> None:
        await self.pool.close()

    async def ready(self) -> None:
        async with self._connection() as connection:
            await connection.fetchval("SELECT 1", timeout=5)

    async def adopt(self, plant: Plant, fingerprint_known: bool = False, at_ns: int | None = None) -> None:
        if not fingerprint_known:
            async with self._connection() as connection:
                await self._registry.adopt(connection, plant, at_ns)
        self._zone = plant.zone
        self._shifts = tuple(shift.begin_min for shift in plant.shifts)
        self._base_interval_s = plant.base_interval_s

    # samples ---------------------------------------------------------------
    async def write(self, batch: SampleBatch, correction: Correction | None = None) -> WriteReport:
        if self.room is not None:
            self.room.admit()
        async with self._connection() as connection:
            ids = await self._registry.ids_of_table(connection, batch.points)
            point = ids[batch.point]
            known = point >= 0
            unknown: tuple[str, ...] = ()
            time_ns, value, status = batch.time_ns, batch.value, batch.status
            if not known.all():
                unknown = tuple(batch.points.names[i] for i in np.unique(batch.point[~known]).tolist())
                point, time_ns, value, status = point[known], time_ns[known], value[known], status[known]
            rows, settled = writer.settled(point, time_ns, value, status)
            if len(rows) == 0:
                return WriteReport(unknown_points=unknown)
            outcome = await self._written(connection, rows, correction)
            disputes = (*settled.disputes, *outcome.disputes)[:1000]
            names = await self._registry.point_names(connection, (d.point for d in disputes))
        return WriteReport(
            accepted=outcome.inserted + outcome.replaced + outcome.corrected,
            repeated=settled.repeated + outcome.repeated,
            replaced=outcome.replaced,
            corrected=outcome.corrected,
            conflicts=tuple(
                Conflict(name, d.time_ns, d.stored, d.stored_status, d.offered, d.offered_status)
                for name, d in zip(names, disputes, strict=True)
            ),
            conflict_count=settled.dispute_count + outcome.dispute_count,
            unknown_points=unknown,
        )

    async def _written(
        self, connection: Connection, rows: writer.Rows, correction: Correction | None
    ) -> writer.Outcome:
        for left in reversed(range(_DEADLOCK_TRIES)):
            try:
                return await self._writer.write(connection, rows, correction)
            except pg.DeadlockDetectedError:  # two batches with the same late rows; nothing of ours is in
                if left == 0:
                    raise
        raise AssertionError("unreachable")

    async def latest(self, points: Sequence[str] | None = None) -> LatestColumns:
        async with self._connection() as connection:
            ids = None if points is None else await self._registry.ids(connection, "point", points)
            rows = await reader.newest(connection, None if ids is None else ids.tolist())
            names = await self._registry.point_names(connection, rows.point.tolist())
        return LatestColumns(tuple(names), rows.time_ns, rows.value, rows.status)

    async def samples(
        self, point: str, start_ns: int, end_ns: int, limit: int, after_ns: int | None = None
    ) -> SampleBatch:
        async with self._connection() as connection:
            number = (await self._registry.ids(connection, "point", [point]))[0]
            if number < 0:
                raise BadRequest(f"unknown point {point!r}")
            if after_ns is not None:
                start_ns = max(start_ns, after_ns + 1000)
            rows = await reader.page(connection, int(number), start_ns, end_ns, limit)
        table = PointTable((point,))
        return SampleBatch(table, np.zeros(len(rows), dtype=np.int32), rows.time_ns, rows.value, rows.status)

    async def readings(
        self,
        points: Sequence[str],
        start_ns: int,
        end_ns: int,
        step_spread_ns: int,
        as_of_ns: int | None = None,
    ) -> SampleBatch:
        table = PointTable(tuple(points))
        if not points:
            return empty_batch(table)
        async with self._connection() as connection:
            ids = await self._registry.ids(connection, "point", points)
            known = ids[ids >= 0]
            names = {name: i for name, i in zip(points, ids.tolist(), strict=True) if i >= 0}
            if as_of_ns is None:
                rows = await reader.readings(
                    connection, names, start_ns, end_ns, step_spread_ns, self.archive
                )
            else:
                then = late.as_of(connection, self.tier, known.tolist(), start_ns, end_ns, as_of_ns)
                async with then as is_as_now:  # files hold what is known now
                    files = self.archive if is_as_now else None
                    rows = await reader.readings(connection, names, start_ns, end_ns, step_spread_ns, files)
        place = np.full(int(ids.max(initial=0)) + 1, -1, dtype=np.int32)
        place[known] = np.flatnonzero(ids >= 0)
        index = place[rows.point]
        order = np.argsort(
            index, kind="stable"
        )  # rows come by id; in the order of the names asked for they leave
        return SampleBatch(table, index[order], rows.time_ns[order], rows.value[order], rows.status[order])

    async def span(self, points: Sequence[str] | None = None) -> tuple[int, int] | None:
        async with self._connection() as connection:
            ids = None if points is None else await self._registry.ids(connection, "point", points)
            row = await connection.fetchrow(
                "SELECT min(first_time), max(time) FROM ecmc.latest WHERE $1::int[] IS NULL OR point_id = ANY($1)",
                None if ids is None else ids.tolist(),
            )
        if row is None or row[0] is None:
            return None
        return time_ns_of(row[0]), time_ns_of(row[1])

    # ledger ----------------------------------------------------------------
    async def dirty(self, limit: int = 1000) -> list[DirtyRange]:
        async with self._connection() as connection:
            rows = await connection.fetch("SELECT * FROM ecmc.dirty_range ORDER BY id LIMIT $1", limit)
            return [
                DirtyRange(
                    row["id"],
                    time_ns_of(row["start_time"]),
                    time_ns_of(row["end_time"]),
                    None
                    if row["point_ids"] is None
                    else tuple(await self._registry.point_names(connection, row["point_ids"])),
                    row["reason"],
                )
                for row in rows
            ]

    async def mark_dirty(self, start_ns: int, end_ns: int, points: Sequence[str] | None, reason: str) -> None:
        async with self._connection() as connection:
            ids = None
            if points is not None:
                found = await self._registry.ids(connection, "point", points)
                ids = found[found >= 0].tolist()
            await writer.mark(connection, start_ns, end_ns, ids, reason)

    async def forget_dirty(self, ids: Sequence[int]) -> None:
        async with self._connection() as connection:
            await connection.execute("DELETE FROM ecmc.dirty_range WHERE id = ANY($1)", list(ids))

    # results ---------------------------------------------------------------
    async def write_window(self, result_: WindowResult, run: Run, done: Sequence[int] = ()) -> None:
        async with self._connection() as connection:
            await result.write(
                connection,
                result_,
                run,
                await self._ids(connection, "edge", result_.edges),
                await self._ids(connection, "node", result_.nodes),
                await self._registry.flow_ids(connection, result_.flows),
                await self._ids(connection, "node", result_.storages),
                done,
            )

    async def stocks(self, at_ns: int, storages: Sequence[str], flows: Sequence[Flow]) -> Stocks | None:
        async with self._connection() as connection:
            found = await result.stocks_at(
                connection,
                at_ns,
                await self._ids(connection, "node", storages),
                await self._registry.flow_ids(connection, flows),
            )
        return None if found is None else Stocks(tuple(storages), tuple(flows), *found)

    async def computed(self, start_ns: int, end_ns: int) -> Computed:
        async with self._connection() as connection:
            return await result.computed(connection, start_ns, end_ns)

    async def has_run(self, hour_ns: int) -> bool:
        async with self._connection() as connection:
            return await result.has_run(connection, hour_ns)

    # pedigree --------------------------------------------------------------
    async def validities(self) -> list[Validity]:
        async with self._connection() as connection:
            return await model.validities(connection)

    async def restate(self, fingerprint: str, start_ns: int, end_ns: int, who: str, why: str) -> None:
        async with self._connection() as connection, connection.transaction():
            await model.restate(connection, fingerprint, start_ns, end_ns, who, why)

    async def documents(self, fingerprint: str) -> bytes | None:
        async with self._connection() as connection:
            return await model.documents(connection, fingerprint)

    async def window(
        self,
        start_ns: int,
        end_ns: int,
        edges: Sequence[str],
        nodes: Sequence[str],
        flows: Sequence[Flow],
        storages: Sequence[str] = (),
        closed_at_ns: int | None = None,
    ) -> WindowResult:
        async with self._connection() as connection:
            return await read_window(
                connection,
                start_ns,
                end_ns,
                (edges, await self._ids(connection, "edge", edges)),
                (nodes, await self._ids(connection, "node", nodes)),
                (flows, await self._registry.flow_ids(connection, flows)),
                (storages, await self._ids(connection, "node", storages)),
                await revision_at(connection, start_ns, end_ns, closed_at_ns),
            )

    async def runs(self, start_ns: int, end_ns: int, closed_at_ns: int | None = None) -> list[RunSpan]:
        async with self._connection() as connection:
            closed = await revision_at(connection, start_ns, end_ns, closed_at_ns)
            return await result.runs(connection, start_ns, end_ns, closed)

    async def corrections(
        self, points: Sequence[str], start_ns: int, end_ns: int, limit: int
    ) -> list[CorrectedSample]:
        async with self._connection() as connection:
            ids = await self._registry.ids(connection, "point", points)
            rows = await reader.corrections(connection, ids[ids >= 0].tolist(), start_ns, end_ns, limit)
            names = await self._registry.point_names(connection, (row["point_id"] for row in rows))
        return [
            CorrectedSample(
                name,
                time_ns_of(row["time"]),
                row["old_value"],
                row["new_value"],
                row["who"],
                row["why"],
                time_ns_of(row["at"]),
            )
            for name, row in zip(names, rows, strict=True)
        ]

    # seals -----------------------------------------------------------------
    async def seal_chain(self) -> list[Seal]:
        async with self._connection() as connection:
            return await seals.chain(connection)

    async def seals(self, start_ns: int, end_ns: int, period: str | None = None) -> list[Seal]:
        async with self._connection() as connection:
            return await seals.seals(connection, start_ns, end_ns, period)

    async def open_days(self, zone: str, before_ns: int) -> list[str]:
        async with self._connection() as connection:
            return await seals.open_days(connection, zone, before_ns)

    async def reopened_days(self) -> list[tuple[str, str]]:
        async with self._connection() as connection:
            return await seals.reopened(connection)

    async def close_day(
        self,
        label: str,
        start_ns: int,
        end_ns: int,
        describe: Callable[[set[str]], dict[str, object]],
        who: str,
        why: str,
    ) -> Seal | None:
        async with self._connection() as connection:
            return await seals.close_day(connection, label, start_ns, end_ns, describe, who, why)

    async def close_month(self, label: str, start_ns: int, end_ns: int, who: str, why: str) -> Seal | None:
        async with self._connection() as connection:
            return await seals.close_month(connection, label, start_ns, end_ns, who, why)

    async def stored(self, start_ns: int, end_ns: int, revision: int | None = None) -> list[WindowResult]:
        async with self._connection() as connection:
            return await seals.stored(connection, start_ns, end_ns, revision)

    async def silent_hours(self, start_ns: int, end_ns: int) -> list[int]:
        async with self._connection() as connection:
            rows = await connection.fetch(
                "SELECT DISTINCT hour FROM ecmc.energy_block WHERE hour >= $1 AND hour < $2"
                " AND mark <> array_fill(0::int2, ARRAY[cardinality(mark)])"  # nearly all are: told five times faster
                " AND EXISTS (SELECT FROM unnest(mark) AS m WHERE m & $3::int2 <> 0) ORDER BY hour",
                datetime_of(start_ns),
                datetime_of(end_ns),
                int(Mark.SILENT),
            )
            return [time_ns_of(row["hour"]) for row in rows]

    async def pins(self, start_ns: int, end_ns: int, closed_at_ns: int | None = None) -> list[Pin]:
        async with self._connection() as connection:
            closed = await revision_at(connection, start_ns, end_ns, closed_at_ns)
            return await seals.pins(connection, start_ns, end_ns, closed)

    async def kept_from(self, points: Sequence[str]) -> int | None:
        async with self._connection() as connection:
            ids = await self._registry.ids(connection, "point", points)
            return await seals.kept_from(connection, ids[ids >= 0].tolist())

    async def computable_from(self, points: Sequence[str]) -> int | None:
        kept_ns = await self.kept_from(points)
        if kept_ns is None or self.archive is None:
            return kept_ns
        filed_ns, span = self.archive.since(), await self.span()
        if filed_ns is None or span is None:
            return kept_ns
        return None if filed_ns <= span[0] else min(kept_ns, filed_ns)

    async def rollup_difference(self, part: WindowResult) -> str | None:
        async with self._connection() as connection:
            return await seals.rollup_difference(connection, part)

    # series ----------------------------------------------------------------
    async def energy(self, edge: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket) -> Series:
        async with self._connection() as connection:
            ids = await self._ids(connection, "edge", edge)
            sums = await self._sums(connection, ENERGY, (ids.tolist(),), start_ns, end_ns, bucket)
        energy_kwh = sums.columns["energy_kwh"]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(energy_kwh == 0, 0.0, sums.columns["estimated_kwh"] / energy_kwh)
        return Series(
            _names(sums, ids, edge),
            sums.start_ns,
            {
                "energy_kwh": energy_kwh,
                "coverage": _share(sums.columns["covered_s"], sums.inside_s),
                "estimated_share": share,
            },
        )

    async def emissions(
        self, node: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket, basis: str, method_set: str
    ) -> Series:
        async with self._connection() as connection:
            ids = await self._ids(connection, "node", node)
            flows = await self._registry.flows(connection, basis, method_set)
            wanted = (ids.tolist(), list(flows.values()))
            sums = await self._sums(connection, EMISSION, wanted, start_ns, end_ns, bucket)
            backing = await self._sums(connection, NODE, (ids.tolist(),), start_ns, end_ns, bucket)
        flow_ids = np.array(list(flows.values()), dtype=np.int32)
        return Series(
            _names(sums, ids, node),
            sums.start_ns,
            {
                "emissions_kgco2e": sums.columns["emissions_kg"],
                "coverage": _share(_beside(sums, backing, "covered_s", absent=0.0), sums.inside_s),
            },
            _places(sums.keys[:, 1], flow_ids),
            tuple(flows),
        )

    async def intensity(
        self, node: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket, basis: str, method_set: str
    ) -> Series:
        async with self._connection() as connection:
            ids = await self._ids(connection, "node", node)
            flows = await self._registry.flows(connection, basis, method_set)
            wanted = (ids.tolist(), list(flows.values()))
            carbon = await self._sums(connection, EMISSION, wanted, start_ns, end_ns, bucket)
            energy = await self._sums(connection, NODE, (ids.tolist(),), start_ns, end_ns, bucket)
        through_kg = _beside(energy, carbon, "through_kg", absent=np.nan)
        through_kwh = energy.columns["through_kwh"]
        with np.errstate(invalid="ignore", divide="ignore"):
            intensity = np.where(through_kwh > 0, through_kg / through_kwh, np.nan)
        return Series(_names(energy, ids, node), energy.start_ns, {"intensity_kgco2e_per_kwh": intensity})

    async def balance(self, node: Sequence[str], start_ns: int, end_ns: int, bucket: Bucket) -> Series:
        async with self._connection() as connection:
            ids = await self._ids(connection, "node", node)
            sums = await self._sums(connection, NODE, (ids.tolist(),), start_ns, end_ns, bucket)
        columns = {name: sums.columns[name] for name in ("in_kwh", "out_kwh", "residual_kwh")}
        return Series(_names(sums, ids, node), sums.start_ns, columns)

    async def _sums(
        self,
        connection: Connection,
        family: Family,
        ids: tuple[list[int], ...],
        start_ns: int,
        end_ns: int,
        bucket: Bucket,
    ) -> Sums:
        base_ns = self._base_interval_s * NS_PER_S
        start_ns, end_ns = -(-start_ns // base_ns) * base_ns, end_ns // base_ns * base_ns
        if start_ns >= end_ns:
            end_ns = start_ns
        return await buckets.sums(connection, family, ids, start_ns, end_ns, bucket, self._zone, self._shifts)

    # upkeep ----------------------------------------------------------------
    async def compress(self, older_than_ns: int) -> int:
        """Compress raw samples older than that, where the server can; returns the chunks newly compressed."""
        async with self._connection() as connection:
            return await series.compress(connection, self.tier, older_than_ns)

    async def refresh_gauges(self) -> int:
        """Roll up the gauges that changed since the last time; returns the ranges done."""
        async with self._connection() as connection:
            return await refresh_gauges(connection)

    async def retain(self, older_than_ns: int) -> int:
        """Drop the weeks of raw samples that are older whole; returns how many."""
        async with self._connection() as connection:
            self._writer.space.forget()
            return await series.retain(connection, self.tier, older_than_ns)

    async def weeks(self, older_than_ns: int) -> list[Week]:
        """The weeks of raw samples that are older whole, oldest first."""
        async with self._connection() as connection:
            return [w for w in await series.weeks_of(connection, self.tier) if w.end_ns <= older_than_ns]

    async def thin(self, week: Week) -> int:
        """Drop a week's samples of points that feed no edge; returns the rows dropped."""
        async with self._connection() as connection:
            return await series.thin(connection, self.tier, week)

    async def raw_bytes(self) -> int:
        """What raw samples take on the database's disk."""
        async with self._connection() as connection:
            return await series.raw_bytes(connection, self.tier)

    # -----------------------------------------------------------------------
    async def _ids(self, connection: Connection, kind: str, names: Sequence[str]) -> npt.NDArray[np.int32]:
        ids = await self._registry.ids(connection, kind, names)
        if (ids < 0).any():
            raise BadRequest(f"unknown {kind} {names[int(np.flatnonzero(ids < 0)[0])]!r}")
        return ids

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        with refusals():
            async with self.pool.acquire(timeout=30) as connection:
                yield cast("Connection", connection)


async def _left(_: Connection) -> None:
    """What a connection leaves behind: nothing that outlives its transactions, which are over by then.

    Whoever sets more, or takes a lock for longer, undoes it or closes the connection.
    """


def _names(sums: Sums, ids: npt.NDArray[np.int32], names: Sequence[str]) -> tuple[str, ...]:
    found: list[str] = np.array(names, dtype=object)[_places(sums.keys[:, 0], ids)].tolist()
    return tuple(found)


def _places(ids: npt.NDArray[np.int64], among: npt.NDArray[np.int32]) -> Indices:
    order = np.argsort(among)
    return order[np.searchsorted(among[order], ids)].astype(np.int32)


def _share(covered_s: Floats, inside_s: Floats) -> Floats:
    return np.clip(covered_s / inside_s, 0.0, 1.0)


def _beside(rows: Sums, other: Sums, column: str, absent: float) -> Floats:
    """The column of `other` for each (first key, bucket) of `rows`, added up over its further keys."""
    if len(other.start_ns) == 0:
        return np.full(len(rows.start_ns), absent)
    size, places = 1, np.zeros(len(other.start_ns) + len(rows.start_ns), dtype=np.int64)
    for theirs, ours in ((other.keys[:, 0], rows.keys[:, 0]), (other.start_ns, rows.start_ns)):
        found, place = np.unique(np.concatenate([theirs, ours]), return_inverse=True)
        places, size = places * found.size + place, size * found.size
    at, wanted = np.split(places, [len(other.start_ns)])
    total = np.bincount(at, weights=other.columns[column], minlength=size)
    there = np.bincount(at, minlength=size) > 0
    return np.where(there, total, absent)[wanted]
