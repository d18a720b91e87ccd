"""PostgreSQL's binary COPY format, built and read by numpy: one array expression for a whole batch.

Every field of a row is its length and its bytes, big end first. Where no field
can be NULL all rows have one size, so a structured dtype is the format.
A two-dimensional column travels as a PostgreSQL array a row; one of times, counted
as `pg_time` does, says so by being viewed as `datetime64[us]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import numpy as np
import numpy.typing as npt

from core.samples import NS_PER_US, Times

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00" + b"\x00" * 8
_TRAILER = b"\xff\xff"
_CHUNK_BYTES = 1 << 17
_EPOCH_US = 946_684_800_000_000  # PostgreSQL counts from 2000
_ARRAY_HEAD = np.dtype([("dims", ">i4"), ("nulls", ">i4"), ("oid", ">i4"), ("n", ">i4"), ("from", ">i4")])
_OID = {"i2": 21, "i4": 23, "i8": 20, "f8": 701, "M8[us]": 1184}

Columns = Sequence[npt.NDArray[Any]]


def pg_time(time_ns: Times) -> npt.NDArray[np.int64]:
    """UTC nanoseconds as a timestamptz travels: microseconds since 2000."""
    return time_ns // NS_PER_US - _EPOCH_US


def time_ns_of_pg(microseconds: npt.NDArray[Any]) -> Times:
    return (microseconds.astype(np.int64) + _EPOCH_US) * NS_PER_US


def binary_rows(columns: Columns) -> npt.NDArray[np.void]:
    """Rows of the COPY format from columns of shape (n,) or (n, k), of int16, int32, int64, float64 or times."""
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    for i, column in enumerate(columns):
        kind = column.dtype.str[1:]
        fields.append((f"size{i}", ">i4"))
        if column.ndim == 1:
            fields.append((f"value{i}", f">{kind}"))
        else:
            element = np.dtype([("size", ">i4"), ("value", f">{kind}")])
            array = np.dtype([("head", _ARRAY_HEAD), ("elements", element, (column.shape[1],))])
            fields.append((f"value{i}", array))
    rows = np.empty(columns[0].shape[0], dtype=np.dtype(fields))
    rows["fields"] = len(columns)
    for i, column in enumerate(columns):
        rows[f"size{i}"] = rows.dtype[f"value{i}"].itemsize
        value = rows[f"value{i}"]
        if column.ndim == 1:
            value[...] = column
        else:
            value["head"] = np.array(
                (1, 0, _OID[column.dtype.str[1:]], column.shape[1], 1), dtype=_ARRAY_HEAD
            )
            value["elements"]["size"] = column.dtype.itemsize
            value["elements"]["value"] = column
    return rows


async def copy_in(
    connection: asyncpg.Connection[Any],
    table: str,
    names: Sequence[str],
    columns: Columns,
    schema: str | None,
) -> None:
    """COPY columns into a table, in the transaction the connection is in."""
    if columns[0].shape[0]:
        await copy_rows_in(connection, table, names, binary_rows(columns), schema)


async def copy_rows_in(
    connection: asyncpg.Connection[Any],
    table: str,
    names: Sequence[str],
    rows: npt.NDArray[np.void],
    schema: str | None,
) -> None:
    """The same of rows that `binary_rows` made."""
    if len(rows) == 0:
        return
    await connection.copy_to_table(
        table, source=_stream(rows), columns=list(names), schema_name=schema, format="binary"
    )


async def _stream(rows: npt.NDArray[np.void]) -> AsyncIterator[bytes]:
    """In as few pieces as may be: each is a message, and a turn of the loop."""
    step = max(1, _CHUNK_BYTES // rows.dtype.itemsize)
    head = _SIGNATURE
    for start in range(0, rows.shape[0], step):
        tail = _TRAILER if start + step >= rows.shape[0] else b""
        yield b"".join((head, rows[start : start + step].tobytes(), tail))
        head = b""


async def copy_out(
    connection: asyncpg.Connection[Any], query: str, kinds: Sequence[str]
) -> list[npt.NDArray[Any]]:
    """Columns of a query without parameters and without NULLs; `kinds` of them as numpy writes them: i2 i4 i8 f8."""
    return await copy_out_blocks(connection, query, kinds, (), 0)


async def copy_out_blocks(
    connection: asyncpg.Connection[Any],
    query: str,
    kinds: Sequence[str],
    arrays: Sequence[str],
    length: int,
) -> list[npt.NDArray[Any]]:
    """The same for a query whose last columns are arrays of `length` elements without NULLs; shape (n, length)."""
    fields: list[tuple[str, Any]] = [("fields", ">i2")]
    for i, kind in enumerate(kinds):
        fields += [(f"size{i}", ">i4"), (f"value{i}", f">{kind}")]
    for i, kind in enumerate(arrays, start=len(kinds)):
        element = np.dtype([("size", ">i4"), ("value", f">{kind}")])
        array = np.dtype([("head", _ARRAY_HEAD), ("elements", element, (length,))])
        fields += [(f"size{i}", ">i4"), (f"value{i}", array)]
    rows = np.frombuffer(await _body(connection, query), dtype=np.dtype(fields))
    scalars = [rows[f"value{i}"].astype(kind) for i, kind in enumerate(kinds)]
    return scalars + [
        rows[f"value{i}"]["elements"]["value"].astype(kind) for i, kind in enumerate(arrays, start=len(kinds))
    ]


async def copy_out_rows(
    connection: asyncpg.Connection[Any], query: str, dtype: np.dtype[np.void]
) -> npt.NDArray[np.void] | None:
    """Rows of a query in the form `binary_rows` gave others; None where they are not of that form."""
    body = await _body(connection, query)
    if len(body) % dtype.itemsize:
        return None
    rows = np.frombuffer(body, dtype=dtype)
    columns = (len(dtype.names or ()) - 1) // 2
    as_wanted = (rows["fields"] == columns).all()
    for i in range(columns):
        as_wanted &= (rows[f"size{i}"] == dtype[f"value{i}"].itemsize).all()
    return rows if as_wanted else None


async def _body(connection: asyncpg.Connection[Any], query: str) -> memoryview:
    parts: list[bytes] = []

    async def keep(data: bytes) -> None:
        parts.append(data)

    await connection.copy_from_query(query, output=keep, format="binary")
    return memoryview(b"".join(parts))[len(_SIGNATURE) : -len(_TRAILER)]
