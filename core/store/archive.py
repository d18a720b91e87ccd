"""Closed months of samples as Parquet, beside the database: for DuckDB and Polars, and for us when raw is gone.

`month=2026-03/samples.parquet` holds a month (UTC) of every point, in the order
of (point, time). A month is written once all of it is closed (see
`core.proof.sealing`), and again when something came late for it; samples leave the
database only when their month is here. Together, the database before the file
where both have a key, they are all there ever was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final, cast

import asyncpg
import numpy as np

from core.clock import datetime_of, parse_rfc3339, rfc3339, time_ns_of
from core.errors import StoreUnavailable
from core.quality import quality_of
from core.samples import Times
from core.store.copy import copy_out, time_ns_of_pg
from core.store.part import settle
from core.store.refusal import refusals
from core.store.seals import kept_from
from core.store.table import Connection, months_between
from core.store.writer import Rows

log = logging.getLogger(__name__)

_WRITTEN: Final = b"ecmc_written"
_GROUP_ROWS: Final = 500_000


class Archive:
    """The months under one folder. They are kept up and read for as long as the folder is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def months(self) -> dict[int, Path]:
        """Files by the start of their month, UTC nanoseconds, oldest first."""
        if not self.folder.is_dir():
            return {}
        found = sorted(self.folder.glob("month=????-??/samples.parquet"))
        return {parse_rfc3339(f"{path.parent.name[6:]}-01T00:00:00Z"): path for path in found}

    def reaches(self, start_ns: int, end_ns: int) -> bool:
        """Whether any month lies in [start, end)."""
        return any(month < end_ns and _next_month(month) > start_ns for month in self.months())

    def since(self) -> int | None:
        """From when on all samples there ever were stand here or in the database; None without any file."""
        return min(self.months(), default=None)

    def begin(self) -> None:
        """From now on months are kept: for as long as the folder is there."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def is_kept(self) -> bool:
        return self.folder.exists()

    async def keep_up(self, pool: asyncpg.Pool[Any]) -> int:
        """Write the closed months that are missing or out of date, beginning with the first that is still whole.

        Returns:
            Until when all samples are in files, UTC nanoseconds: nothing younger may be dropped.

        Raises:
            StoreUnavailable: The database does not answer, or a file can neither be read nor written.
        """
        with refusals(), _damage(self.folder):
            async with pool.acquire() as lent:
                due = await self._due(cast("Connection", lent))
            for month in due:
                rows = await self._write(pool, month)
                log.info("month of samples archived: %s, %d rows", rfc3339(month)[:7], rows)
        months = self.months()
        until_ns = min(months, default=0)
        while until_ns in months:
            until_ns = _next_month(until_ns)
        return until_ns

    async def _due(self, connection: Connection) -> list[int]:
        closed = await connection.fetchval(
            "SELECT closed_until FROM ecmc.seal_horizon WHERE closed_until > '-infinity'"
        )
        first = await connection.fetchval("SELECT min(first_time) FROM ecmc.latest")
        if closed is None or first is None or first >= closed:
            return []
        points = await connection.fetch("SELECT id FROM ecmc.point")
        whole_ns = await kept_from(connection, [row["id"] for row in points]) or 0
        there = self.months()
        due: list[int] = []
        for start, end in months_between(first, closed):
            month = time_ns_of(start)
            if end > closed:
                continue
            if month not in there:
                # What has left the database since the month before was filed is in its file.
                follows = (before := _month_of(month - 1)) in there or before in due
                if follows or month >= whole_ns:
                    due.append(month)
            elif await connection.fetchval(
                "SELECT EXISTS (SELECT FROM ecmc.late_sample WHERE time >= $1 AND time < $2 AND at > $3)",
                start,
                end,
                _written(there[month]),
            ):
                due.append(month)
        return due

    async def _write(self, pool: asyncpg.Pool[Any], month: int) -> int:
        import pyarrow.parquet as pq

        path = self.folder / f"month={rfc3339(month)[:7]}" / "samples.parquet"
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        before = await asyncio.to_thread(pq.ParquetFile, path) if path.exists() else None
        rows = 0
        try:
            async with pool.acquire() as guard, pool.acquire() as lent:
                connection = cast("Connection", lent)
                # Whoever writes old samples holds the horizon until the commit. So none is on its way when the
                # snapshot is taken, and what comes after it is noted with a later time.
                async with guard.transaction():
                    written = await guard.fetchval(
                        "SELECT clock_timestamp() FROM ecmc.seal_horizon FOR UPDATE"
                    )
                    snapshot = connection.transaction(isolation="repeatable_read", readonly=True)
                    await snapshot.start()
                    points = await connection.fetch("SELECT id, name FROM ecmc.point ORDER BY name")
                try:
                    schema = _schema().with_metadata({_WRITTEN: written.isoformat().encode()})
                    with pq.ParquetWriter(draft, schema, compression="zstd") as out:
                        parts: list[Any] = []
                        for row in points:
                            found = await _month_of_point(connection, row["id"], month)
                            if before is not None:
                                found = await asyncio.to_thread(_with_filed, found, before, row["name"])
                            parts.append(_table(row["name"], found))
                            if sum(map(len, parts)) >= _GROUP_ROWS or row is points[-1]:
                                rows += await asyncio.to_thread(_put, out, parts)
                                parts = []
                finally:
                    await snapshot.rollback()
            await asyncio.to_thread(settle, draft, path)
        finally:
            draft.unlink(missing_ok=True)
        return rows

    def rows(self, points: Mapping[str, int], start_ns: int, end_ns: int) -> Rows:
        """Filed samples of [start, end) that are not bad, by the number given to their point; blocks.

        Raises:
            StoreUnavailable: A file cannot be read.
        """
        with _damage(self.folder):
            return self._rows(points, start_ns, end_ns)

    def _rows(self, points: Mapping[str, int], start_ns: int, end_ns: int) -> Rows:
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        filters = [
            ("point", "in", list(points)),
            ("time", ">=", datetime_of(start_ns)),
            ("time", "<", datetime_of(end_ns)),
            ("status", ">=", 0),
        ]
        tables = [
            pq.read_table(path, columns=["point", "time", "value", "status"], filters=filters)
            for month, path in self.months().items()
            if month < end_ns and _next_month(month) > start_ns
        ]
        if not tables or not points:
            return _none()
        table = pa.concat_tables(tables)
        place = pc.index_in(table["point"], pa.array(list(points), pa.string())).to_numpy()
        number = np.array(list(points.values()), dtype=np.int32)[place]
        return Rows(number, _times(table["time"]), table["value"].to_numpy(), table["status"].to_numpy())


def _month_of(time_ns: int) -> int:
    return time_ns_of(datetime_of(time_ns).replace(day=1, hour=0, minute=0, second=0, microsecond=0))


def _next_month(month: int) -> int:
    return _month_of(month + 31 * 86_400 * 10**9)


async def _month_of_point(connection: Connection, point: int, month: int) -> Rows:
    start, end = datetime_of(month).isoformat(), datetime_of(_next_month(month)).isoformat()
    query = (
        f"SELECT point_id, time, value, status FROM ecmc.sample WHERE point_id = {point}"
        f" AND time >= '{start}' AND time < '{end}' ORDER BY time"
    )
    ids, time, value, status = await copy_out(connection, query, ("i4", "i8", "f8", "i2"))
    return Rows(ids, time_ns_of_pg(time), value, status)


def _with_filed(found: Rows, before: Any, name: str) -> Rows:
    """A point's month with what an older file still has of it; the database's word counts."""
    import pyarrow.compute as pc

    numbers = [
        number
        for number in range(before.num_row_groups)
        if (of := before.metadata.row_group(number).column(0).statistics) is None or of.min <= name <= of.max
    ]
    table = before.read_row_groups(numbers, columns=["point", "time", "value", "status"])
    table = table.filter(pc.equal(table["point"], name))
    if len(table) == 0:
        return found
    filed = Rows(
        np.zeros(len(table), dtype=np.int32),
        _times(table["time"]),
        table["value"].to_numpy(),
        table["status"].to_numpy(),
    )
    mine = np.zeros(len(found), dtype=np.int32)
    return merged(Rows(mine, found.time_ns, found.value, found.status), filed)


def merged(first: Rows, second: Rows) -> Rows:
    """Both, sorted by (point, time); the first's word where both have a key."""
    point = np.concatenate([first.point, second.point])
    time_ns = np.concatenate([first.time_ns, second.time_ns])
    after = np.repeat(np.array([0, 1], dtype=np.int8), [len(first), len(second)])
    order = np.lexsort((after, time_ns, point))
    point, time_ns = point[order], time_ns[order]
    is_new = np.ones(order.size, dtype=np.bool_)
    is_new[1:] = (point[1:] != point[:-1]) | (time_ns[1:] != time_ns[:-1])
    value = np.concatenate([first.value, second.value])[order]
    status = np.concatenate([first.status, second.status])[order]
    return Rows(point[is_new], time_ns[is_new], value[is_new], status[is_new])


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("point", pa.string()),
            ("time", pa.timestamp("us", "UTC")),
            ("value", pa.float64()),
            ("quality", pa.string()),
            ("status", pa.int16()),
        ]
    )


def _table(name: str, rows: Rows) -> Any:
    import pyarrow as pa

    word = {code: quality_of(code).value for code in set(rows.status.tolist())}
    columns = [
        pa.array([name] * len(rows), pa.string()),
        pa.array(rows.time_ns // 1000, pa.timestamp("us", "UTC")),
        pa.array(rows.value, from_pandas=True),  # a missing value is null to others
        pa.array([word[code] for code in rows.status.tolist()], pa.string()),
        pa.array(rows.status),
    ]
    return pa.table(columns, schema=_schema())


def _put(out: Any, parts: Sequence[Any]) -> int:
    import pyarrow as pa

    table = pa.concat_tables(parts)
    if len(table):
        out.write_table(table, row_group_size=len(table))
    return len(table)


@contextmanager
def _damage(folder: Path) -> Iterator[None]:
    """What is wrong with files, as something that can be mended while everything else goes on."""
    try:
        import pyarrow as pa
    except ImportError:
        raise StoreUnavailable(f"{folder} needs pyarrow: pip install 'ecmc[parquet]'") from None
    try:
        yield
    except (OSError, pa.ArrowException) as why:
        raise StoreUnavailable(f"{folder}: {why}; mend it, or put its files back from a copy") from None


def _written(path: Path) -> datetime:
    import pyarrow.parquet as pq

    return datetime.fromisoformat(pq.read_schema(path).metadata[_WRITTEN].decode())


def _times(column: Any) -> Times:
    import pyarrow as pa

    us: Times = column.cast(pa.int64()).to_numpy()
    return us * 1000


def _none() -> Rows:
    return Rows(
        np.array([], dtype=np.int32),
        np.array([], dtype=np.int64),
        np.array([], dtype=np.float64),
        np.array([], dtype=np.int16),
    )
