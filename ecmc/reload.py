"""The plant folder, watched: a change is taken over whole while everything runs, or refused whole.

The folder is looked at every two seconds and read once it has stood still for
one look, for an editor saves its files one after the other. A faulty folder
changes nothing: the plan in force runs on, and the health says what is wrong
until the folder is right again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from core.errors import EcmcError, FaultyInput, StoreTrouble
from core.health import Health, Status
from core.plant.model import Plant
from ecmc.folder import read_plant

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
PART = "plant"
_FAULTS_SAID = 5

Stamp = Mapping[str, tuple[int, int]]


class PlantWatch:
    """Follows one plant folder.

    Args:
        adopt: Takes a checked plant over, or raises having changed nothing.
    """

    def __init__(self, plant: Plant, health: Health, adopt: Callable[[Plant], Awaitable[None]]) -> None:
        self._folder = Path(plant.folder)
        self._plant = plant
        self._health = health
        self._adopt = adopt

    async def run(self) -> None:
        """Look until cancelled."""
        self._health.report(PART, Status.OK)
        taken: Stamp | None = None  # what was read last, right or wrong; None: to be read
        before = await asyncio.to_thread(_stamp, self._folder)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = await asyncio.to_thread(_stamp, self._folder)
            if now == before and now != taken:
                try:
                    await self._take()
                    taken = now
                except StoreTrouble as why:
                    self._refuse(f"the changed folder waits for the database: {why}")
            before = now

    async def _take(self) -> None:
        try:
            plant = await asyncio.to_thread(read_plant, self._folder)
            if plant.fingerprint != self._plant.fingerprint:
                if plant.id != self._plant.id:
                    raise EcmcError(
                        f"the folder now describes plant {plant.id!r}, this is {self._plant.id!r}: "
                        "another plant has its own folders and its own ecmc"
                    )
                await self._adopt(plant)
                self._plant = plant
                log.info("plant folder changed: taken over")
        except StoreTrouble:
            raise
        except FaultyInput as why:
            more = len(why.faults) - _FAULTS_SAID
            said = "; ".join(map(str, why.faults[:_FAULTS_SAID])) + (f"; and {more} more" if more > 0 else "")
            self._refuse(f"the changed folder is refused, the plan before runs on: {said}")
        except Exception as why:  # whatever a folder holds, it stops nothing
            if not isinstance(why, EcmcError | OSError):
                log.exception("the changed folder could not be taken over")
            self._refuse(f"the changed folder is refused, the plan before runs on: {why}")
        else:
            self._health.report(PART, Status.OK)

    def _refuse(self, why: str) -> None:
        part = self._health.parts.get(PART)
        if part is None or part.detail != why:
            log.warning(why)
        self._health.report(PART, Status.DEGRADED, why)


def _stamp(folder: Path) -> Stamp:
    """Size and time of change of every file of the folder; what vanishes meanwhile is left out."""
    stamp: dict[str, tuple[int, int]] = {}
    for file in folder.rglob("*"):
        try:
            state = file.stat()
        except OSError:
            continue
        if file.is_file():
            stamp[str(file)] = state.st_mtime_ns, state.st_size
    return stamp
