"""Readings in columns: four parallel arrays, never one object per value.

A batch names its points through a shared `PointTable`, so it means the same to
whoever reads it later: after a restart, after the plant folder changed, in
another process. Times are UTC nanoseconds in whole microseconds, which is what
the database keeps; a missing value is NaN with a status that says why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.int64]  # UTC, nanoseconds since 1970
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]
Statuses = npt.NDArray[np.int16]  # core/quality.py
Flags = npt.NDArray[np.bool_]

NS_PER_S = 1_000_000_000
NS_PER_US = 1_000
AHEAD_NS = 60 * NS_PER_S  # how far a clock that is not ours may be ahead


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PointTable:
    """The names a batch's point indices stand for; compared by identity, shared by many batches."""

    names: tuple[str, ...]
    index: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        index = {name: i for i, name in enumerate(self.names)}
        if len(index) != len(self.names):
            raise ValueError("a point table names each point once")
        object.__setattr__(self, "index", index)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True, eq=False)
class SampleBatch:
    """Samples in any order, repeated keys allowed.

    Attributes:
        points: What `point` indexes into.
        point: Shape (n,), int32.
        time_ns: Shape (n,), int64, UTC, whole microseconds.
        value: Shape (n,), float64 in the point's unit; NaN where there is none.
        status: Shape (n,), int16, see core/quality.py.
    """

    points: PointTable
    point: Indices
    time_ns: Times
    value: Floats
    status: Statuses

    def __post_init__(self) -> None:
        n = self.point.size
        if not (self.time_ns.size == self.value.size == self.status.size == n):
            raise ValueError("the columns of a batch have one length")

    def __len__(self) -> int:
        return int(self.point.size)

    def names(self) -> list[str]:
        """Each sample's point name; for answers to people, not for the hot path."""
        return [self.points.names[i] for i in self.point.tolist()]

    def take(self, rows: npt.NDArray[np.intp] | Flags) -> SampleBatch:
        return SampleBatch(
            self.points, self.point[rows], self.time_ns[rows], self.value[rows], self.status[rows]
        )


def sample_batch(
    points: PointTable,
    point: npt.ArrayLike,
    time_ns: npt.ArrayLike,
    value: npt.ArrayLike,
    status: npt.ArrayLike = 0,
) -> SampleBatch:
    """A batch from anything array-like: dtypes set, times cut to microseconds, status spread."""
    point_column = np.ascontiguousarray(point, dtype=np.int32)
    time_column = np.ascontiguousarray(time_ns, dtype=np.int64)
    time_column = time_column - time_column % NS_PER_US
    value_column = np.ascontiguousarray(value, dtype=np.float64)
    status_column = np.ascontiguousarray(
        np.broadcast_to(np.asarray(status, dtype=np.int16), point_column.shape)
    )
    return SampleBatch(points, point_column, time_column, value_column, status_column)


def batch_of_rows(rows: Iterable[tuple[str, int, float, int]]) -> SampleBatch:
    """A batch from (point name, time_ns, value, status) rows; for HTTP and tests."""
    columns = list(rows)
    table = PointTable(tuple(dict.fromkeys(row[0] for row in columns)))
    return sample_batch(
        table,
        [table.index[row[0]] for row in columns],
        [row[1] for row in columns],
        [row[2] for row in columns],
        np.array([row[3] for row in columns], dtype=np.int16),
    )


def concatenate(batches: Sequence[SampleBatch]) -> SampleBatch:
    """One batch of several, in order; their tables are merged by name where they differ."""
    if not batches:
        raise ValueError("nothing to concatenate")
    if len(batches) == 1:
        return batches[0]
    first = batches[0].points
    if all(batch.points is first for batch in batches):
        table = first
        points = [batch.point for batch in batches]
    else:
        table = PointTable(tuple(dict.fromkeys(name for batch in batches for name in batch.points.names)))
        points = []
        for batch in batches:
            onto = np.array([table.index[name] for name in batch.points.names], dtype=np.int32)
            points.append(onto[batch.point])
    return SampleBatch(
        table,
        np.concatenate(points),
        np.concatenate([batch.time_ns for batch in batches]),
        np.concatenate([batch.value for batch in batches]),
        np.concatenate([batch.status for batch in batches]),
    )


def empty_batch(points: PointTable | None = None) -> SampleBatch:
    return sample_batch(points or PointTable(()), [], [], [], np.array([], dtype=np.int16))
