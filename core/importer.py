"""Samples out of a file people keep: `point,time,value[,quality]`, plain or gzip.

The whole file is read and judged before anything is written, so a faulty file
can be refused whole with every fault at its line.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np

from core import quality
from core.clock import time_ns_of
from core.errors import Fault, FaultyInput
from core.samples import PointTable, SampleBatch, sample_batch

_COLUMNS = ("point", "time", "value", "quality")
_MISSING = {"", "null", "NULL", "None", "nan", "NaN"}


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A file's good rows in file order and its faults."""

    batch: SampleBatch
    faults: tuple[Fault, ...]

    def chunks(self, rows: int) -> Iterator[SampleBatch]:
        for start in range(0, len(self.batch), rows):
            yield self.batch.take(np.arange(start, min(start + rows, len(self.batch))))


def read_sample_file(path: Path, known_points: Collection[str]) -> SampleFile:
    """Read `point,time,value[,quality]` from a .csv or .csv.gz (UTF-8 with or without BOM, or GB18030).

    A missing value (`null` or empty) is NaN and, unless its quality says otherwise, bad.

    Raises:
        FaultyInput: The file cannot be read or its header is not the one wanted.
    """
    name = str(path)
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError) as why:
        raise FaultyInput([Fault(name, 0, 0, f"cannot be read: {why}")]) from None
    lines = csv.reader(io.StringIO(_text(raw, name), newline=""))
    header = [column.strip().lower() for column in next(lines, [])]
    wanted = ",".join(_COLUMNS[:3])
    if not set(_COLUMNS[:3]) <= set(header):
        raise FaultyInput([Fault(name, 1, 1, f"header {wanted}[,quality] wanted, got {','.join(header)!r}")])
    at = {column: header.index(column) for column in _COLUMNS if column in header}
    return _read_rows(name, lines, at, known_points)


def _text(raw: bytes, name: str) -> str:
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise FaultyInput([Fault(name, 0, 0, "neither UTF-8 nor GB18030 text")])


def _read_rows(
    name: str, lines: Iterator[list[str]], at: dict[str, int], known_points: Collection[str]
) -> SampleFile:
    table: dict[str, int] = {}
    known = frozenset(known_points)
    point: list[int] = []
    time_ns: list[int] = []
    value: list[float] = []
    status: list[int] = []
    faults: list[Fault] = []
    at_point, at_time, at_value, at_quality = at["point"], at["time"], at["value"], at.get("quality")
    width = max(at_point, at_time, at_value) + 1
    for line, row in enumerate(lines, start=2):
        if not row or not any(row):
            continue
        if len(row) < width:
            faults.append(Fault(name, line, 1, f"{width} fields wanted, {len(row)} found"))
            continue
        point_name = row[at_point].strip()
        if point_name not in known:
            faults.append(Fault(name, line, at_point + 1, f"unknown point {point_name!r}"))
            continue
        try:
            moment_ns = time_ns_of(datetime.fromisoformat(row[at_time].strip()))
        except ValueError:
            reason = f"an RFC 3339 time with its zone wanted, got {row[at_time].strip()!r}"
            faults.append(Fault(name, line, at_time + 1, reason))
            continue
        number_text = row[at_value].strip()
        try:
            number = math.nan if number_text in _MISSING else float(number_text)
        except ValueError:
            faults.append(Fault(name, line, at_value + 1, f"a number wanted, got {number_text!r}"))
            continue
        if math.isinf(number):
            faults.append(Fault(name, line, at_value + 1, f"a finite number wanted, got {number_text!r}"))
            continue
        word = row[at_quality].strip().lower() if at_quality is not None and at_quality < len(row) else ""
        code = _status(word, number)
        if code is None:
            faults.append(
                Fault(name, line, (at_quality or 0) + 1, f"good, uncertain or bad wanted, got {word!r}")
            )
            continue
        point.append(table.setdefault(point_name, len(table)))
        time_ns.append(moment_ns)
        value.append(number)
        status.append(code)
    batch = sample_batch(PointTable(tuple(table)), point, time_ns, value, np.array(status, dtype=np.int16))
    return SampleFile(batch, tuple(faults))


def _status(word: str, number: float) -> int | None:
    if word == "":
        return quality.BAD if math.isnan(number) else quality.GOOD
    try:
        given = quality.Quality(word)
    except ValueError:
        return None
    if math.isnan(number) and given is quality.Quality.GOOD:
        return quality.BAD  # a missing value is never a good one
    return quality.STATUS_OF_QUALITY[given]
