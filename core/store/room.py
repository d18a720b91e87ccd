"""How much the disk under the data folder still takes, and what gives way before it takes nothing any more.

A database whose disk is full stops, and with it everything. So raw samples stop
first, while there is room left to compute and to be asked: the spool keeps them
until there is room again, and stops itself at half of what they left. Long
before, it is said: when little is left, and when what is left will not last.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

from core.errors import StoreUnavailable

SHORT_SHARE: Final = 0.05  # of the disk; raw samples stop below it, or below
SHORT_BYTES: Final = 2_000_000_000
LEAST_BYTES: Final = 64_000_000  # the database's log grows in steps of 16 MiB
EARLY: Final = 3.0  # times that: said, and old samples that prove nothing go
AGAIN: Final = 1.25  # times that: raw samples go on
LASTS_S: Final = 48 * 3600.0  # what is left shall last that long at the pace of the last hours
_PACE_OVER_S: Final = 6 * 3600.0  # a shorter look sees checkpoints and vacuums, no pace
_LOOK_EVERY_S: Final = 1.0


class Level(IntEnum):
    PLENTY = 0
    EARLY = 1  # it will be short
    SHORT = 2  # no raw samples


@dataclass(frozen=True, slots=True)
class Usage:
    total: int
    free: int


def usage_of(folder: Path) -> Usage:
    found = shutil.disk_usage(folder)
    return Usage(found.total, found.free)


class Room:
    """The disk of one folder.

    Args:
        usage: Asked for bytes, in all and free.
        clock_s: Monotonic.
    """

    def __init__(
        self,
        folder: Path,
        usage: Callable[[Path], Usage] = usage_of,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self._usage = usage
        self._clock_s = clock_s
        self._seen = usage(folder)
        self._looked_s = clock_s()
        self._past: deque[tuple[float, int]] = deque([(self._looked_s, self._seen.free)])
        self.short_bytes = int(max(LEAST_BYTES, min(SHORT_BYTES, SHORT_SHARE * self._seen.total)))
        self._is_short = self._seen.free < self.short_bytes

    @property
    def total_bytes(self) -> int:
        return self._seen.total

    @property
    def free_bytes(self) -> int:
        return self._seen.free

    def look(self) -> Level:
        """How it stands now; asks the disk at most once a second."""
        now_s = self._clock_s()
        if now_s - self._looked_s >= _LOOK_EVERY_S:
            self._seen, self._looked_s = self._usage(self.folder), now_s
            if now_s - self._past[-1][0] >= _PACE_OVER_S / 36:
                self._past.append((now_s, self._seen.free))
                while now_s - self._past[1][0] >= _PACE_OVER_S:
                    self._past.popleft()
        wanted = self.short_bytes * (AGAIN if self._is_short else 1.0)
        self._is_short = self._seen.free < wanted
        if self._is_short:
            return Level.SHORT
        left_s = self.lasts_s()
        return Level.EARLY if self.is_scarce or (left_s is not None and left_s < LASTS_S) else Level.PLENTY

    @property
    def is_scarce(self) -> bool:
        """Little is left, however long it may last."""
        return self._seen.free < EARLY * self.short_bytes

    def lasts_s(self) -> float | None:
        """How long until raw samples stop at the pace of the last hours; None where nothing says they will."""
        since_s, free_then = self._past[0]
        over_s = self._looked_s - since_s
        used = free_then - self._seen.free
        if over_s < _PACE_OVER_S or used <= 0:
            return None
        return max(0.0, self._seen.free - self.short_bytes) / used * over_s

    def admit(self) -> None:
        """Raises StoreUnavailable where raw samples have to wait."""
        if self.look() is Level.SHORT:
            raise StoreUnavailable(self.words())

    def words(self) -> str:
        """How it stands, for people."""
        left = f"{_gb(self._seen.free)} free on the disk of {self.folder}"
        if self._is_short:
            again = _gb(int(self.short_bytes * AGAIN))
            return f"{left}: samples wait until there are {again}; figures go on"
        left_s = self.lasts_s()
        if left_s is not None and left_s < LASTS_S:
            left += f", enough for {left_s / 3600:.0f} h at the pace of the last hours"
        if self.is_scarce or left_s is not None:
            left += f"; below {_gb(self.short_bytes)} samples wait"
        return left


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
