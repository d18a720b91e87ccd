"""Samples out of a file people keep: `point,time,value[,quality]` as CSV, gzip, XLSX or Parquet.

The file is read in blocks and judged to its end before anything of it is
written, so a faulty one can be refused whole with every fault at its line and
column. What is good waits in `core.files.by_day`, in little memory.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, Final
from zoneinfo import ZoneInfo

import numpy as np

from core import quality
from core.clock import time_ns_of
from core.errors import Fault, FaultyInput
from core.samples import PointTable, SampleBatch, sample_batch

Cells = Sequence[Any]  # one row of the file
Told = Callable[[int, int], None]  # read so far, of how much

_COLUMNS: Final = ("point", "time", "value", "quality")
_MISSING: Final = frozenset({None, "", "null", "NULL", "None", "nan", "NaN"})
_STATUS: Final = {"": quality.GOOD} | {word.value: code for word, code in quality.STATUS_OF_QUALITY.items()}
_BLOCK_ROWS: Final = 20_000
_TIMES_KNOWN: Final = 50_000
_YEARS: Final = range(1678, 2262)  # whole ones that 64 bits of nanoseconds can say


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of a file as they stand there; the first is line `line`."""

    line: int
    rows: Sequence[Cells]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the columns are, by place in a row."""

    point: int
    time: int
    value: int
    quality: int | None

    @property
    def width(self) -> int:
        return max(self.point, self.time, self.value) + 1


def read_samples(
    path: Path,
    points: PointTable,
    zone: ZoneInfo,
    fault: Callable[[Fault], None],
    told: Told = lambda done, of: None,
    latest_ns: int | None = None,
) -> Iterator[SampleBatch]:
    """The good rows of a file, block by block in file order; `fault` hears of the others.

    A CSV is UTF-8 with or without BOM, or GB18030, and may be packed with gzip. Of an XLSX the first sheet is read,
    its date cells as the time of `zone`. A missing value (`null` or empty) is NaN and, unless its quality says
    otherwise, bad. Of what comes as it happens, no row may lie after `latest_ns`.

    Raises:
        FaultyInput: The file cannot be read or its header is not the one wanted.
    """
    name = str(path)
    try:
        with path.open("rb") as file:
            magic = file.read(8)
        size = path.stat().st_size
    except OSError as why:
        raise _unreadable(name, why.strerror or str(why)) from None
    judge = _Judge(name, points, fault, latest_ns)
    try:
        if magic.startswith(b"PK\x03\x04"):
            yield from judge.read(_xlsx(path, told), zone)
        elif magic.startswith(b"PAR1"):
            yield from judge.read(_parquet(path, told), None)
        elif magic.startswith(b"\xd0\xcf\x11\xe0"):
            raise _unreadable(name, "an old .xls: save it as .xlsx or CSV")
        else:
            encoding = _encoding(path, magic)
            yield from judge.read(_csv(path, magic, encoding, size, told), None)
    except UnicodeDecodeError:
        raise _unreadable(name, "neither UTF-8 nor GB18030 text") from None
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as why:
        raise _unreadable(name, str(why)) from None


def _unreadable(name: str, why: str) -> FaultyInput:
    return FaultyInput([Fault(name, 0, 0, f"cannot be read: {why}")])


# Rows out of files ---------------------------------------------------------


def _opened(file: IO[bytes], magic: bytes) -> IO[bytes]:
    return gzip.GzipFile(fileobj=file) if magic.startswith(b"\x1f\x8b") else file  # type: ignore[return-value]


def _encoding(path: Path, magic: bytes) -> str:
    """UTF-8 where the whole file is; what is not can only be GB18030."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        unpacked = _opened(file, magic)
        try:
            while piece := unpacked.read(1 << 20):
                utf8.decode(piece)
            utf8.decode(b"", final=True)
        except UnicodeDecodeError:
            return "gb18030"
    return "utf-8-sig"


def _csv(path: Path, magic: bytes, encoding: str, size: int, told: Told) -> Iterator[Block]:
    with path.open("rb") as file, io.TextIOWrapper(_opened(file, magic), encoding, newline="") as text:
        lines = csv.reader(text)
        line = 1
        while True:
            try:
                rows = list(islice(lines, _BLOCK_ROWS))
            except csv.Error as why:
                raise FaultyInput([Fault(str(path), lines.line_num, 1, f"no CSV: {why}")]) from None
            if not rows:
                return
            yield Block(line, rows)
            line += len(rows)
            told(file.tell(), size)


def _xlsx(path: Path, told: Told) -> Iterator[Block]:
    import openpyxl

    with path.open("rb") as file:  # by its name openpyxl would go by the suffix
        try:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
        except KeyError as why:  # a zip, but no workbook
            raise _unreadable(str(path), f"no workbook: {why}") from None
        sheet = book.worksheets[0]
        rows = sheet.iter_rows(values_only=True)
        line = 1
        while block := list(islice(rows, _BLOCK_ROWS)):
            yield Block(line, block)
            line += len(block)
            told(line, max(line, sheet.max_row or 0))


def _parquet(path: Path, told: Told) -> Iterator[Block]:
    """The column names, then rows; a row's line is its number, from 1."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise _unreadable(str(path), "Parquet needs pyarrow: pip install 'ecmc[parquet]'") from None
    try:
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name.lower() in _COLUMNS]
        yield Block(0, [names])
        line, of = 1, file.metadata.num_rows
        for batch in file.iter_batches(_BLOCK_ROWS, columns=names):
            columns = []
            for column in batch.columns:
                if pa.types.is_timestamp(column.type):
                    column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
                columns.append(column.to_pylist())
            yield Block(line, list(zip(*columns, strict=True)))
            line += batch.num_rows
            told(line, of)
    except pa.ArrowException as why:
        raise _unreadable(str(path), str(why)) from None


# Judging rows ----------------------------------------------------------------


class _Judge:
    """Rows to columns; a block in which anything is unusual is gone through row by row."""

    def __init__(
        self, name: str, points: PointTable, fault: Callable[[Fault], None], latest_ns: int | None
    ) -> None:
        self._latest_ns = latest_ns
        self._name = name
        self._points = points
        self._fault = fault
        self._times: dict[object, int] = {}
        self._zone: ZoneInfo | None = None

    def read(self, blocks: Iterable[Block], zone: ZoneInfo | None) -> Iterator[SampleBatch]:
        self._zone = zone  # of times without their own; None: they need one
        layout: _Layout | None = None
        for block in blocks:
            if layout is None:
                layout = self._layout(block)
                block = Block(block.line + 1, block.rows[1:])
            if block.rows:
                yield self._batch(layout, block)
        if layout is None:
            raise FaultyInput([Fault(self._name, 1, 1, "an empty file")])

    def _layout(self, block: Block) -> _Layout:
        header = [str(cell or "").strip().lower() for cell in block.rows[0]]
        if not set(_COLUMNS[:3]) <= set(header):
            wanted = ",".join(_COLUMNS[:3])
            reason = f"header {wanted}[,quality] wanted, got {','.join(header)!r}"
            raise FaultyInput([Fault(self._name, max(1, block.line), 1, reason)])
        at = {column: header.index(column) for column in _COLUMNS if column in header}
        return _Layout(at["point"], at["time"], at["value"], at.get("quality"))

    def _batch(self, layout: _Layout, block: Block) -> SampleBatch:
        try:
            point = [self._points.index[cell] for cell in map(itemgetter(layout.point), block.rows)]
            time_ns = self._times_ns(list(map(itemgetter(layout.time), block.rows)))
            value = np.array(
                [
                    math.nan if cell in _MISSING else float(cell)
                    for cell in map(itemgetter(layout.value), block.rows)
                ]
            )
            status = np.zeros(value.size, dtype=np.int16)
            if layout.quality is not None:
                status[:] = [_STATUS[cell] for cell in map(itemgetter(layout.quality), block.rows)]
            if np.isinf(value).any():
                raise ValueError
        except (KeyError, ValueError, IndexError, TypeError, OverflowError):
            return self._one_by_one(layout, block)
        # A missing value is never a good one.
        status[np.isnan(value) & (status == quality.GOOD)] = quality.BAD
        return sample_batch(self._points, point, time_ns, value, status)

    def _times_ns(self, cells: list[Any]) -> list[int]:
        try:
            return [self._times[cell] for cell in cells]
        except KeyError:
            if len(self._times) > _TIMES_KNOWN:
                self._times.clear()
            for cell in set(cells).difference(self._times):
                self._times[cell] = self._time_ns(cell)
            return [self._times[cell] for cell in cells]

    def _time_ns(self, cell: object) -> int:
        """UTC nanoseconds of a cell; ValueError with the reason where it is none."""
        if isinstance(cell, str):
            try:
                moment = datetime.fromisoformat(cell.strip())
            except ValueError:
                raise ValueError(_no_time(cell.strip())) from None
            if moment.tzinfo is None:
                raise ValueError(_no_time(cell.strip()))
        elif isinstance(cell, datetime):
            moment = cell if cell.tzinfo is not None else self._local(cell)
        else:
            raise ValueError(_no_time(cell))
        if moment.year not in _YEARS:
            raise ValueError(f"a time from {_YEARS[0]} to {_YEARS[-1]} wanted, got {moment.isoformat()}")
        time_ns = time_ns_of(moment)
        if self._latest_ns is not None and time_ns > self._latest_ns:
            raise ValueError(f"{moment.isoformat()} lies ahead")
        return time_ns

    def _local(self, moment: datetime) -> datetime:
        if self._zone is None:
            raise ValueError(_no_time(moment.isoformat()))
        local = moment.replace(tzinfo=self._zone)
        if local.utcoffset() != local.replace(fold=1).utcoffset():
            raise ValueError(f"{moment} is twice or never in {self._zone.key}: write it as RFC 3339 text")
        return local

    def _one_by_one(self, layout: _Layout, block: Block) -> SampleBatch:
        good: list[tuple[int, int, float, int]] = []
        for line, row in enumerate(block.rows, start=block.line):
            if not row or all(cell in (None, "") for cell in row):
                continue
            found = self._row(layout, row)
            if isinstance(found, tuple):
                good.append(found)
            else:
                self._fault(Fault(self._name, line, found.column, found.reason))
        point, time_ns, value, status = zip(*good, strict=True) if good else ((), (), (), ())
        return sample_batch(self._points, point, time_ns, value, np.array(status, dtype=np.int16))

    def _row(self, layout: _Layout, row: Cells) -> tuple[int, int, float, int] | _Wrong:
        if len(row) < layout.width:
            return _Wrong(1, f"{layout.width} fields wanted, {len(row)} found")
        name = str(row[layout.point] or "").strip()
        point = self._points.index.get(name)
        if point is None:
            return _Wrong(layout.point + 1, f"unknown point {name!r}")
        try:
            time_ns = self._time_ns(row[layout.time])
        except ValueError as why:
            return _Wrong(layout.time + 1, str(why))
        cell = row[layout.value]
        text = cell.strip() if isinstance(cell, str) else cell
        try:
            value = math.nan if text in _MISSING else float(text)
        except (ValueError, TypeError, OverflowError):
            return _Wrong(layout.value + 1, f"a number wanted, got {text!r}")
        if math.isinf(value):
            return _Wrong(layout.value + 1, f"a finite number wanted, got {text!r}")
        has_quality = layout.quality is not None and layout.quality < len(row)
        word = (
            str(row[layout.quality] or "").strip().lower()
            if has_quality and layout.quality is not None
            else ""
        )
        status = _STATUS.get(word)
        if status is None:
            return _Wrong((layout.quality or 0) + 1, f"good, uncertain or bad wanted, got {word!r}")
        return point, time_ns, value, quality.BAD if math.isnan(value) and status == quality.GOOD else status


@dataclass(frozen=True, slots=True)
class _Wrong:
    column: int
    reason: str


def _no_time(cell: object) -> str:
    return f"an RFC 3339 time with its zone wanted, got {cell!r}"
