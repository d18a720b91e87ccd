"""What is worth sending: every value, or with a deadband only what moved.

A change of status is always sent, and so is a value that has been kept back for
the heartbeat's time, so that "unchanged" never looks like "missing", and the
first reading of a counter in every quarter of an hour, so that no energy
account begins with an old one.
"""

from __future__ import annotations

from typing import Final, Self

import numpy as np

from core.plant.model import Kind, Plant
from core.samples import NS_PER_S, Flags, Floats, Indices, Statuses, Times

HEARTBEAT_S: Final = 60.0
QUARTER_NS: Final = 900 * NS_PER_S  # quarters of UTC are those of every zone


class Report:
    """Remembers what was last sent of each point of a plant."""

    def __init__(
        self, deadband: Floats, counts: Flags | None = None, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        """
        Args:
            deadband: Shape (points,), in each point's unit; NaN sends every value.
            counts: Shape (points,): which are counters; None for none.
            heartbeat_s: No value is kept back for longer.
        """
        self._deadband = deadband
        self._counts = np.zeros(deadband.size, dtype=np.bool_) if counts is None else counts
        self._heartbeat_ns = round(heartbeat_s * NS_PER_S)
        self._some_held_back = not np.isnan(deadband).all()
        self._value = np.full(deadband.size, np.nan)
        self._status = np.zeros(deadband.size, dtype=np.int16)
        self._time_ns = np.full(deadband.size, -(1 << 62), dtype=np.int64)

    @classmethod
    def of(cls, plant: Plant) -> Self:
        """By the plant's points; its heartbeat is never longer than a third of what the plant takes for a gap."""
        gap_s = plant.gap_after_s or 3.0 * plant.base_interval_s
        return cls(
            np.array([np.nan if point.deadband is None else point.deadband for point in plant.points]),
            np.array([point.kind is Kind.COUNTER for point in plant.points], dtype=np.bool_),
            min(HEARTBEAT_S, gap_s / 3),
        )

    def due(
        self, point: Indices, time_ns: Times, value: Floats, status: Statuses
    ) -> tuple[Indices, Times, Floats, Statuses]:
        """Those of the samples to send; they are remembered as sent. Each point at most once."""
        if self._some_held_back:
            deadband, last_ns = self._deadband[point], self._time_ns[point]
            send: Flags = (
                np.isnan(deadband)
                | (np.abs(value - self._value[point]) > deadband)
                | (status != self._status[point])
                | (
                    np.abs(time_ns - last_ns) >= self._heartbeat_ns
                )  # a clock set back is no reason to fall silent
                | (self._counts[point] & (time_ns // QUARTER_NS != last_ns // QUARTER_NS))
            )
            point, time_ns, value, status = point[send], time_ns[send], value[send], status[send]
            self._value[point] = value
            self._time_ns[point] = time_ns
        self._status[point] = status
        return point, time_ns, value, status

    def last_status(self, point: Indices) -> Statuses:
        """The status each point was last sent with; good where nothing was sent yet."""
        return self._status[point]
