"""Figures as a file for people and programs: CSV, gzip, XLSX, Parquet, written block by block.

A file is there when it is whole: until then it carries `.part` at its end. What
is unknown is an empty cell. Samples come in the columns `ecmc import` reads.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from core.clock import datetime_of, rfc3339
from core.errors import BadRequest, Fault, FaultyInput
from core.samples import NS_PER_S, Times

FORMATS: Final = ("csv", "csv.gz", "xlsx", "parquet")
_XLSX_ROWS: Final = 1_048_576

# Columns by name: times as int64 UTC nanoseconds, numbers as arrays with NaN for unknown, text as a sequence.
Block: TypeAlias = "Mapping[str, npt.NDArray[Any] | Sequence[str]]"
TIMES: Final = frozenset({"time", "start"})


class Sheet(Protocol):
    def add(self, block: Block) -> None:
        """More rows; at least one block has to come, be it empty."""

    def close(self) -> None: ...


def format_of(file: Path, given: str | None) -> str:
    """The form asked for, or the one the file's name says.

    Raises:
        BadRequest: It is none of `FORMATS`.
    """
    found = given or next(
        (form for form in reversed(FORMATS) if file.name.lower().endswith(f".{form}")), None
    )
    if found not in FORMATS:
        wanted = ", ".join(FORMATS)
        raise BadRequest(f"{given or file.name}: one of {wanted} wanted, as the file's ending or by --format")
    return found


@contextmanager
def sheet(file: Path, form: str, columns: Sequence[str], zone: ZoneInfo) -> Iterator[Sheet]:
    """Something to add blocks to; the file is in place when this is left without an error.

    Raises:
        FaultyInput: The file cannot be written, or the form cannot be had.
    """
    draft = file.with_name(file.name + ".part")
    made: Sheet | None = None
    try:
        made = _made(draft, form, columns, zone)
        yield made
        made.close()
        draft.replace(file)
    except OSError as why:
        raise FaultyInput([Fault(str(file), 0, 0, f"cannot be written: {why.strerror or why}")]) from None
    finally:
        draft.unlink(missing_ok=True)


def _made(draft: Path, form: str, columns: Sequence[str], zone: ZoneInfo) -> Sheet:
    if form == "xlsx":
        return _Xlsx(draft, columns, zone)
    if form == "parquet":
        return _Parquet(draft)
    return _Csv(draft, columns, is_packed=form == "csv.gz")


class _Csv:
    def __init__(self, draft: Path, columns: Sequence[str], is_packed: bool) -> None:
        packed = gzip.GzipFile(draft, "wb", compresslevel=5) if is_packed else None
        self._text = io.TextIOWrapper(packed or io.FileIO(draft, "wb"), "utf-8", newline="")
        self._out = csv.writer(self._text, lineterminator="\n")
        self._out.writerow(columns)

    def add(self, block: Block) -> None:
        cells = [_times_text(c) if name in TIMES else _cells(c, "") for name, c in block.items()]
        self._out.writerows(zip(*cells, strict=True))

    def close(self) -> None:
        self._text.close()


class _Xlsx:
    """One sheet; `local_time` at the end is a real date in the plant's zone, for people to calculate with."""

    def __init__(self, draft: Path, columns: Sequence[str], zone: ZoneInfo) -> None:
        import openpyxl

        self._draft = draft
        self._zone = zone
        self._book = openpyxl.Workbook(write_only=True)
        self._sheet = self._book.create_sheet("ecmc")
        self._sheet.append([*columns, "local_time"])
        self._rows = 1

    def add(self, block: Block) -> None:
        times = next(np.asarray(column) for name, column in block.items() if name in TIMES)
        self._rows += times.size
        if self._rows > _XLSX_ROWS:
            raise BadRequest(f"a sheet holds {_XLSX_ROWS - 1} rows and these are more: choose CSV or Parquet")
        local = [datetime_of(t).astimezone(self._zone).replace(tzinfo=None) for t in times.tolist()]
        cells = [_times_text(c) if name in TIMES else _cells(c, None) for name, c in block.items()]
        for row in zip(*cells, local, strict=True):
            self._sheet.append(row)

    def close(self) -> None:
        self._book.save(self._draft)


class _Parquet:
    def __init__(self, draft: Path) -> None:
        try:
            import pyarrow.parquet as pq
        except ImportError:
            raise BadRequest("Parquet needs pyarrow: pip install 'ecmc[parquet]'") from None
        self._pq = pq
        self._draft = draft
        self._writer: Any = None

    def add(self, block: Block) -> None:
        table = arrow_table(block)
        if self._writer is None:
            self._writer = self._pq.ParquetWriter(self._draft, table.schema, compression="zstd")
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


def arrow_table(block: Block) -> Any:
    """A block as a pyarrow table: times as UTC timestamps in microseconds, unknown numbers as null."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name, column in block.items():
        if name in TIMES:
            columns[name] = pa.array(np.asarray(column) // 1000, pa.timestamp("us", "UTC"))
        elif isinstance(column, np.ndarray):
            columns[name] = pa.array(column, from_pandas=True)
        else:
            columns[name] = pa.array(column, pa.string())
    return pa.table(columns)


def _cells(column: npt.NDArray[Any] | Sequence[str], unknown: object) -> Sequence[object]:
    if not isinstance(column, np.ndarray):
        return column
    if column.dtype.kind != "f" or not np.isnan(column).any():
        return list(column.tolist())
    return [unknown if number != number else number for number in column.tolist()]


def _times_text(column: npt.NDArray[Any] | Sequence[str]) -> list[str]:
    times: Times = np.asarray(column, dtype=np.int64)
    if (times % NS_PER_S).any():
        return [rfc3339(t) for t in times.tolist()]
    seconds = (times // NS_PER_S).astype("datetime64[s]")
    return list(np.datetime_as_string(seconds, timezone="UTC").tolist())
