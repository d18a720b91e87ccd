"""What a driver of named tags (OPC UA, MQTT) hands over: raw numbers to samples in the point's unit.

A driver knows its points by slot, 0 … n - 1; here the slot gets its scale, its
offset and its patterns that mean "not available". A bad status takes the
number with it: servers and gateways repeat the last one, and it must not be
added to any energy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, overload

import numpy as np
import numpy.typing as npt

from core import quality
from core.clock import NS_PER_S
from core.plant.model import MqttSource, OpcuaSource, Plant, Point
from core.samples import AHEAD_NS, Flags, Floats, Indices, SampleBatch, Statuses, Times, sample_batch

BEHIND_S: Final = 7 * 86_400


class Delivery:
    """The points of one connection, by slot."""

    def __init__(self, plant: Plant, points: Sequence[Point]) -> None:
        self._table = plant.point_table
        self._index = np.array([plant.point_table.index[point.id] for point in points], dtype=np.int32)
        sources = [point.source for point in points]
        tagged = [s if isinstance(s, OpcuaSource | MqttSource) else OpcuaSource("") for s in sources]
        self._scale = np.array([source.scale for source in tagged])
        self._offset = np.array([source.offset for source in tagged])
        patterns = max((len(point.invalid_values) for point in points), default=0)
        self._invalid = np.full((len(points), patterns), np.nan)
        for slot, point in enumerate(points):
            self._invalid[slot, : len(point.invalid_values)] = point.invalid_values

    def batch(
        self, slot: npt.ArrayLike, time_ns: npt.ArrayLike, raw: npt.ArrayLike, status: npt.ArrayLike
    ) -> SampleBatch:
        """Samples of raw numbers, one row each: scaled, and missing where the source says so.

        Args:
            slot: Shape (n,).
            time_ns: Shape (n,), UTC.
            raw: Shape (n,), NaN where there is no number.
            status: Shape (n,) or one for all, as in core/quality.py.
        """
        at: Indices = np.asarray(slot, dtype=np.int32)
        statuses: Statuses = np.array(np.broadcast_to(np.asarray(status, dtype=np.int16), at.shape))
        value: Floats = np.asarray(raw, dtype=np.float64) * self._scale[at] + self._offset[at]
        missing = ~np.isfinite(value)
        if self._invalid.shape[1]:
            missing |= (value[:, None] == self._invalid[at]).any(axis=1)
        statuses[missing & ~quality.is_bad(statuses)] = quality.BAD_SENSOR_FAILURE
        value[quality.is_bad(statuses)] = np.nan
        return sample_batch(self._table, self._index[at], time_ns, value, statuses)

    def mark(self, slots: npt.ArrayLike, time_ns: int, status: int) -> SampleBatch:
        """One sample without a value at `time_ns` for each slot: a gap begins, a tag is unknown."""
        at = np.asarray(slots, dtype=np.int32)
        return self.batch(at, np.full(at.shape, time_ns), np.full(at.shape, np.nan), status)


@overload
def plausible(time_ns: int, now_ns: int) -> bool: ...
@overload
def plausible(time_ns: Times, now_ns: int) -> Flags: ...
def plausible(time_ns: int | Times, now_ns: int) -> bool | Flags:
    """Whether a source's clock can be believed: at most a week behind, at most a minute ahead."""
    return (time_ns >= now_ns - BEHIND_S * NS_PER_S) & (time_ns <= now_ns + AHEAD_NS)
