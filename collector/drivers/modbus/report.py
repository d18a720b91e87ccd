"""What is worth sending: every value, or with a deadband only what moved.

A change of status is always sent, and so is a value that has been kept back for
the heartbeat's time, so that "unchanged" never looks like "missing".
"""

from __future__ import annotations

import numpy as np

from core.samples import NS_PER_S, Flags, Floats, Indices, Statuses, Times

HEARTBEAT_NS = 60 * NS_PER_S


class Report:
    """Remembers what was last sent of each point of a plant."""

    def __init__(self, deadband: Floats) -> None:
        """`deadband`: shape (points,), in each point's unit; NaN sends every value."""
        self._deadband = deadband
        self._some_held_back = not np.isnan(deadband).all()
        self._value = np.full(deadband.size, np.nan)
        self._status = np.zeros(deadband.size, dtype=np.int16)
        self._time_ns = np.full(deadband.size, -(1 << 62), dtype=np.int64)

    def due(
        self, point: Indices, time_ns: Times, value: Floats, status: Statuses
    ) -> tuple[Indices, Times, Floats, Statuses]:
        """Those of the samples to send; they are remembered as sent. Each point at most once."""
        if self._some_held_back:
            deadband = self._deadband[point]
            send: Flags = (
                np.isnan(deadband)
                | (np.abs(value - self._value[point]) > deadband)
                | (status != self._status[point])
                | (time_ns - self._time_ns[point] >= HEARTBEAT_NS)
            )
            point, time_ns, value, status = point[send], time_ns[send], value[send], status[send]
            self._value[point] = value
            self._time_ns[point] = time_ns
        self._status[point] = status
        return point, time_ns, value, status

    def last_status(self, point: Indices) -> Statuses:
        """The status each point was last sent with; good where nothing was sent yet."""
        return self._status[point]
