"""Readings that only some windows need: of the weeks before, where a meter is silent, and of the hour before it.

Which windows those are is only known when they have been computed. So a window is computed with a `Lookback` that has
nothing and notes what it is asked for, and where it was asked, once more with the readings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from core.quality import is_bad
from core.samples import NS_PER_S, SampleBatch

WEEK_NS: Final = 7 * 86_400 * NS_PER_S
WEEKS: Final = (1, 2, 3, 4)  # whose mean is what an edge usually carries


@dataclass(frozen=True, slots=True)
class Wanted:
    """Readings of [start_ns, end_ns) that many weeks before, with their context."""

    points: tuple[str, ...]
    start_ns: int
    end_ns: int
    weeks: int


class Lookback:
    """What was found of earlier readings, by weeks back, and what is asked for.

    Args:
        found: None: nothing was looked for yet.
    """

    def __init__(self, found: Mapping[int, SampleBatch] | None = None) -> None:
        self._found = None if found is None else {weeks: Columns(batch) for weeks, batch in found.items()}
        self._asked: dict[tuple[int, str], tuple[int, int]] = {}

    def columns(self, points: Sequence[str], start_ns: int, end_ns: int, weeks: int) -> Columns | None:
        """Readings of the points, `weeks` before [start, end); None as long as nothing was looked for."""
        if self._found is not None:
            return self._found.get(weeks)
        for point in points:
            before = self._asked.get((weeks, point), (start_ns, end_ns))
            self._asked[weeks, point] = min(before[0], start_ns), max(before[1], end_ns)
        return None

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """What was asked for, each point once a week."""
        together: dict[tuple[int, tuple[int, int]], list[str]] = {}
        for (weeks, point), span in self._asked.items():
            together.setdefault((weeks, span), []).append(point)
        return tuple(Wanted(tuple(points), *span, weeks) for (weeks, span), points in together.items())


class Columns:
    """Sorted good readings, to be taken by point."""

    def __init__(self, batch: SampleBatch) -> None:
        keep = ~is_bad(batch.status) & np.isfinite(batch.value)
        batch = batch if keep.all() else batch.take(keep)
        order = np.lexsort((batch.time_ns, batch.point))
        if not np.array_equal(order, np.arange(order.size)):
            batch = batch.take(order)
        self._batch = batch
        self._starts = np.searchsorted(batch.point, np.arange(len(batch.points) + 1))

    def counts(self, points: Sequence[str]) -> np.ndarray:
        """How many readings each of these points has, shape (P,)."""
        index = self._batch.points.index
        rows = np.array([index.get(point, -1) for point in points], dtype=np.int64)
        return np.where(rows < 0, 0, np.append(np.diff(self._starts), 0)[rows])

    def of(self, points: Sequence[str]) -> tuple[SampleBatch, np.ndarray]:
        """Readings of these points one after another, and where each begins, shape (P + 1,)."""
        rows = []
        starts = [0]
        for point in points:
            i = self._batch.points.index.get(point)
            span = np.arange(0) if i is None else np.arange(self._starts[i], self._starts[i + 1])
            rows.append(span)
            starts.append(starts[-1] + span.size)
        taken = self._batch.take(np.concatenate(rows) if rows else np.arange(0))
        return taken, np.array(starts, dtype=np.int64)
