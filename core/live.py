"""What flows now: power and carbon rate per node, second by second, as an estimate.

The newest power of each edge is traced through the network as if it held for an
hour, with the same tracer and the same factors the closed intervals use. It is
never written to the results: when the base interval closes, the registers speak.
"""

from __future__ import annotations

import math

import numpy as np

from core.bus import LiveNode, LiveUpdate
from core.engine import Engine
from core.quality import is_bad
from core.samples import Floats, SampleBatch
from core.store.seam import Stocks


class Live:
    """Newest power per point; `update` makes a live picture of them."""

    def __init__(self, engine: Engine) -> None:
        self._slot: dict[str, int] = {}
        self._time_ns = self._before_ns = np.zeros(0, dtype=np.int64)
        self._value = self._before = np.zeros(0)
        self.adopt(engine)

    def adopt(self, engine: Engine) -> None:
        """Picture this engine's plant from here on; points it keeps keep their values."""
        n = len(engine.live_points)
        time_ns, before_ns = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        value, before = np.full(n, math.nan), np.full(n, math.nan)
        for i, point in enumerate(engine.live_points):
            old = self._slot.get(point)
            if old is not None:
                time_ns[i], before_ns[i] = self._time_ns[old], self._before_ns[old]
                value[i], before[i] = self._value[old], self._before[old]
        self._engine = engine
        self._slot = {point: i for i, point in enumerate(engine.live_points)}
        self._time_ns, self._before_ns, self._value, self._before = time_ns, before_ns, value, before

    def observe(self, batch: SampleBatch) -> None:
        """Keep the newest two good values of every point the live picture needs."""
        slots = np.array([self._slot.get(name, -1) for name in batch.points.names], dtype=np.int64)
        if slots.size == 0:
            return
        slot = slots[batch.point]
        rows = np.flatnonzero((slot >= 0) & ~is_bad(batch.status) & np.isfinite(batch.value))
        for row in rows[np.argsort(batch.time_ns[rows], kind="stable")].tolist():
            at, time_ns = slot[row], batch.time_ns[row]
            if time_ns > self._time_ns[at]:
                self._before_ns[at], self._before[at] = self._time_ns[at], self._value[at]
                self._time_ns[at], self._value[at] = time_ns, batch.value[row]

    def update(self, now_ns: int, stocks: Stocks | None) -> LiveUpdate:
        """The picture at `now_ns`; None in it where nothing recent is known."""
        power_kw = self._engine.live_power_kw(
            now_ns, self._time_ns, self._value, self._before_ns, self._before
        )
        if not power_kw:  # a plant of points alone
            return LiveUpdate(now_ns, (), {})
        flow = self._engine.live_flow(now_ns, power_kw, stocks)
        nodes = tuple(
            LiveNode(name, _known(kw), _known(kg), _known(ratio))
            for name, kw, kg, ratio in zip(
                flow.nodes, flow.power_kw, flow.kg_per_h, flow.intensity, strict=True
            )
        )
        edges_kw = {name: _known(kw) for name, kw in zip(self._engine.edge_names, flow.edge_kw, strict=True)}
        return LiveUpdate(now_ns, nodes, edges_kw)


def _known(value: float | Floats) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None
