"""Samples by the day, in little memory whatever comes in: what a day's file is too many for waits on disk.

An import is written in the order of time, so that the database touches a short
stretch of time at once and whoever computes along sees each day once, in
whatever order the file has its rows. Rows of one day keep the order they came in.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from core.samples import NS_PER_S, PointTable, SampleBatch

_ROW: Final = np.dtype([("time_ns", "i8"), ("value", "f8"), ("point", "i4"), ("status", "i2")])
_DAY_NS: Final = 86_400 * NS_PER_S
_ROWS_IN_MEMORY: Final = 1_000_000


class ByDay:
    """`add` in any order, then take `batches` in the order of time, once."""

    def __init__(self, points: PointTable, rows_in_memory: int = _ROWS_IN_MEMORY) -> None:
        self.points = points
        self._limit = rows_in_memory
        self._in_memory = 0
        self._days: dict[int, list[npt.NDArray[Any]]] = {}
        self._folder: Path | None = None
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, batch: SampleBatch) -> None:
        """Samples of the one point table."""
        rows = np.empty(len(batch), dtype=_ROW)
        rows["time_ns"], rows["value"] = batch.time_ns, batch.value
        rows["point"], rows["status"] = batch.point, batch.status
        self.count += rows.size
        day = rows["time_ns"] // _DAY_NS
        order = np.argsort(day, kind="stable")
        starts = np.flatnonzero(np.diff(day[order], prepend=np.iinfo(np.int64).min))
        for part in np.split(rows[order], starts[1:]):
            if part.size:
                self._days.setdefault(int(part["time_ns"][0] // _DAY_NS), []).append(part)
        self._in_memory += rows.size
        if self._in_memory > self._limit:
            self._put_away()

    def batches(self, rows: int) -> Iterator[SampleBatch]:
        """About as many samples each, sorted by time; what is taken is forgotten."""
        waiting: list[npt.NDArray[Any]] = []
        count = 0
        for day in sorted({*self._days, *self._put_away_days()}):
            part = self._day(day)
            part = part[np.argsort(part["time_ns"], kind="stable")]
            for start in range(0, part.size, rows):
                waiting.append(part[start : start + rows])
                count += waiting[-1].size
                if count >= rows:
                    yield self._batch(waiting)
                    waiting, count = [], 0
        if waiting:
            yield self._batch(waiting)

    def _put_away(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="ecmc-import-"))
        for day, parts in self._days.items():
            with (self._folder / str(day)).open("ab") as file:
                for part in parts:
                    part.tofile(file)
        self._days.clear()
        self._in_memory = 0

    def _put_away_days(self) -> list[int]:
        return [] if self._folder is None else [int(path.name) for path in self._folder.iterdir()]

    def _day(self, day: int) -> npt.NDArray[Any]:
        parts = self._days.pop(day, [])
        if self._folder is not None and (path := self._folder / str(day)).exists():
            parts.insert(0, np.fromfile(path, dtype=_ROW))
            path.unlink()
        return np.concatenate(parts)

    def _batch(self, parts: list[npt.NDArray[Any]]) -> SampleBatch:
        rows = np.concatenate(parts)
        return SampleBatch(
            self.points,
            np.ascontiguousarray(rows["point"]),
            np.ascontiguousarray(rows["time_ns"]),
            np.ascontiguousarray(rows["value"]),
            np.ascontiguousarray(rows["status"]),
        )
