"""How each part is doing, said in one place: `/v1/health` and the log read it.

A part reports changes; the same report twice says nothing new and logs nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from enum import StrEnum

log = logging.getLogger(__name__)


class Status(StrEnum):
    OK = "ok"
    DEGRADED = "degraded"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Part:
    status: Status
    detail: str = ""


class Health:
    def __init__(self) -> None:
        self._parts: dict[str, Part] = {}

    def report(self, part: str, status: Status, detail: str = "") -> None:
        """Set a part's state; logs once when the status changes."""
        before = self._parts.get(part)
        self._parts[part] = Part(status, detail)
        if before is None or before.status is status:
            return
        level = logging.INFO if status is Status.OK else logging.WARNING
        log.log(level, "%s is %s: %s", part, status.value, detail or "-")

    def forget(self, part: str) -> None:
        self._parts.pop(part, None)

    @property
    def parts(self) -> dict[str, Part]:
        return dict(self._parts)

    @property
    def status(self) -> Status:
        """The whole: down when the store or engine is down, degraded when any part is not ok."""
        if not self._parts:
            return Status.DOWN
        if any(self._parts.get(name, Part(Status.OK)).status is Status.DOWN for name in ("store", "engine")):
            return Status.DOWN
        if all(part.status is Status.OK for part in self._parts.values()):
            return Status.OK
        return Status.DEGRADED
