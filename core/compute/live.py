"""What flows now: power and carbon rate per node, second by second, as an estimate.

The newest power of each edge is traced through the network as if it held for a
base interval, with the same tracer and the same factors the closed intervals
use. It is never written to the results: when that closes, the registers speak.
"""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from core.bus import LiveNode, LiveUpdate
from core.compute.engine import Engine, Newest
from core.quality import is_bad
from core.samples import Floats, PointTable, SampleBatch, Times
from core.store.seam import Stocks


class Live:
    """Newest value per point; `update` makes a live picture of them."""

    def __init__(self, engine: Engine) -> None:
        self._slot: dict[str, int] = {}
        self._newest = _nothing(0)
        self.adopt(engine)

    def adopt(self, engine: Engine) -> None:
        """Picture this engine's plant from here on; points it keeps keep their values."""
        newest = _nothing(len(engine.live_points))
        kept = [(i, self._slot[point]) for i, point in enumerate(engine.live_points) if point in self._slot]
        if kept:
            now, then = np.array(kept).T
            for name in Newest.__slots__:
                getattr(newest, name)[now] = getattr(self._newest, name)[then]
        self._engine = engine
        self._slot = {point: i for i, point in enumerate(engine.live_points)}
        self._slots_of: WeakKeyDictionary[PointTable, npt.NDArray[np.int64]] = WeakKeyDictionary()
        self._newest = newest

    def observe(self, batch: SampleBatch) -> None:
        """Keep the newest good value of every point the live picture needs, and when it last changed."""
        slots = self._slots_of.get(batch.points)
        if slots is None:
            slots = np.array([self._slot.get(name, -1) for name in batch.points.names], dtype=np.int64)
            self._slots_of[batch.points] = slots
        if slots.size == 0:
            return
        slot = slots[batch.point]
        rows = np.flatnonzero((slot >= 0) & ~is_bad(batch.status) & np.isfinite(batch.value))
        rows = rows[np.lexsort((batch.time_ns[rows], slot[rows]))]
        slot, time_ns, value = slot[rows], batch.time_ns[rows], batch.value[rows]
        first = np.flatnonzero(np.diff(slot, prepend=-1))
        turn = np.arange(slot.size) - np.repeat(first, np.diff(np.append(first, slot.size)))
        for number in range(
            int(turn.max(initial=-1)) + 1
        ):  # one value a point at a time, mostly there is only one
            mine = turn == number
            self._take(slot[mine], time_ns[mine], value[mine])

    def _take(self, slot: npt.NDArray[np.int64], time_ns: Times, value: Floats) -> None:
        newest = self._newest
        newer = time_ns > newest.time_ns[slot]
        slot, time_ns, value = slot[newer], time_ns[newer], value[newer]
        newest.time_ns[slot] = time_ns
        changed = value != newest.value[slot]
        slot, time_ns, value = slot[changed], time_ns[changed], value[changed]
        newest.before_ns[slot], newest.before[slot] = newest.since_ns[slot], newest.value[slot]
        newest.since_ns[slot], newest.value[slot] = time_ns, value

    def update(self, now_ns: int, stocks: Stocks | None) -> LiveUpdate:
        """The picture at `now_ns`; None in it where nothing recent is known."""
        if not self._engine.edge_names:  # a plant of points alone
            return LiveUpdate(now_ns, (), {})
        power_kw = self._engine.live_power_kw(now_ns, self._newest)
        flow = self._engine.live_flow(now_ns, power_kw, stocks)
        columns = (_known(flow.power_kw), _known(flow.kg_per_h), _known(flow.intensity))
        nodes = tuple(map(LiveNode, flow.nodes, *columns))
        return LiveUpdate(
            now_ns, nodes, dict(zip(self._engine.edge_names, _known(flow.edge_kw), strict=True))
        )


def _nothing(points: int) -> Newest:
    def never() -> Times:
        return np.zeros(points, dtype=np.int64)

    def unknown() -> Floats:
        return np.full(points, math.nan)

    return Newest(never(), unknown(), never(), never(), unknown())


def _known(column: Floats) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in column.tolist()]
