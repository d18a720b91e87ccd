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
        self._always = np.isnan(deadband)
        self._deadband = np.where(self._always, 0.0, deadband)
        self._value = np.full(deadband.size, np.nan)
        self._status = np.zeros(deadband.size, dtype=np.int16)
        self._time_ns = np.full(deadband.size, -(1 << 62), dtype=np.int64)

    def due(self, point: Indices, time_ns: Times, value: Floats, status: Statuses) -> Flags:
        """Which samples to send, shape (n,); they are remembered as sent. Each point at most once."""
        moved = np.abs(value - self._value[point]) > self._deadband[point]
        send: Flags = (
            self._always[point]
            | moved
            | (status != self._status[point])
            | (time_ns - self._time_ns[point] >= HEARTBEAT_NS)
        )
        sent = point[send]
        self._value[sent] = value[send]
        self._status[sent] = status[send]
        self._time_ns[sent] = time_ns[send]
        return send

    def last_status(self, point: Indices) -> Statuses:
        """The status each point was last sent with; good where nothing was sent yet."""
        return self._status[point]
