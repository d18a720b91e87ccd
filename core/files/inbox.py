"""A folder that files of samples are put into, for gateways that can do nothing else.

A file is taken once its size and time stand still for one look. Its rows go to the
database, then it moves to `done/`; a kill in between means that the same rows come
once more, which changes nothing. A file with a faulty row is refused whole and moves
to `faulty/`, with its faults beside it in `<name>.faults.txt`; while the database takes
nothing, whatever the reason, a file stays where it is. Names that begin with a dot or
end in `.part` or `.tmp` are left alone: that is how a file is written under another
name first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from core.clock import rfc3339
from core.errors import EcmcError, Fault, FaultyInput, StoreTrouble
from core.files.by_day import ByDay
from core.files.importer import read_samples
from core.health import Health, Status
from core.plant.model import Plant
from core.samples import AHEAD_NS, PointTable, SampleBatch
from core.store.seam import Conflict, WriteReport

log = logging.getLogger(__name__)

PART = "inbox"
LOOK_EVERY_S = 2.0
WRITE_ROWS = 20_000
MOST_BYTES = 200_000_000
FAULTS_KEPT = 1_000
_UNFINISHED = (".part", ".tmp", ".crdownload")

Stamp = tuple[int, int]  # size, time of the last change


class Inbox:
    """Follows `folder`, which it makes, with `done` and `faulty` inside.

    Args:
        plant: The plan in force.
        write: Returns when a batch is committed.
    """

    def __init__(
        self,
        folder: Path,
        plant: Callable[[], Plant],
        write: Callable[[SampleBatch], Awaitable[WriteReport]],
        health: Health,
    ) -> None:
        self._folder = folder
        self._plant = plant
        self._write = write
        self._health = health
        self._seen: dict[str, Stamp] = {}
        self._stuck: dict[str, Stamp] = {}  # written or refused, but cannot be moved

    async def run(self) -> None:
        """Look again and again until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Take what has stood still since the last look, and say how the folder is."""
        try:
            stamps = await asyncio.to_thread(self._stamps)
            for name in sorted(stamps):
                if self._stuck.get(name) == stamps[name] or self._seen.get(name) != stamps[name]:
                    continue
                if not await self._take(name):
                    self._stuck[name] = stamps[name]
            self._stuck = {name: stamp for name, stamp in self._stuck.items() if stamps.get(name) == stamp}
            self._seen = stamps
            waiting = await asyncio.to_thread(self._faulty)
        except StoreTrouble as why:
            self._health.report(PART, Status.DEGRADED, f"files in {self._folder} wait: {why}")
            return
        except OSError as why:
            self._health.report(PART, Status.DEGRADED, f"{self._folder}: {why.strerror or why}")
            return
        if self._stuck:
            self._health.report(PART, Status.DEGRADED, f"cannot be moved: {', '.join(sorted(self._stuck))}")
        elif waiting:
            few = ", ".join(waiting[:3])
            self._health.report(
                PART, Status.DEGRADED, f"{len(waiting)} files in {self._folder / 'faulty'}: {few}"
            )
        else:
            self._health.report(PART, Status.OK)

    async def _take(self, name: str) -> bool:
        """Store a file's samples or refuse it, and move it; False where it could not be moved."""
        path = self._folder / name
        plant = self._plant()
        with ByDay(PointTable(tuple(plant.point_by_id))) as rows:
            more = 0
            try:
                faults, more = await asyncio.to_thread(self._read, path, plant, rows)
                if not faults:
                    return await self._store(path, rows)
            except (StoreTrouble, OSError):
                raise
            except FaultyInput as why:
                faults = why.faults
            except Exception as why:  # whatever a file holds, it stops nothing
                if not isinstance(why, EcmcError):
                    log.exception("inbox file could not be taken", extra={"file": name})
                faults = [Fault(name, 0, 0, str(why) or type(why).__name__)]
            return await self._refuse(path, faults, more)

    async def _store(self, path: Path, rows: ByDay) -> bool:
        accepted = conflicting = 0
        conflicts: list[Conflict] = []
        for batch in rows.batches(WRITE_ROWS):
            report = await self._write(batch)
            accepted += report.accepted
            conflicting += report.conflict_count
            conflicts += report.conflicts[: FAULTS_KEPT - len(conflicts)]
        said = {"file": path.name, "rows": rows.count, "accepted": accepted, "conflicting": conflicting}
        log.info("inbox file stored", extra=said)
        lines = [
            f"{one.point} {rfc3339(one.time_ns)}: {one.stored!r} stands, {one.offered!r} was offered"
            for one in conflicts
        ]
        return await asyncio.to_thread(_move, path, "done", "conflicts", lines)

    def _read(self, path: Path, plant: Plant, rows: ByDay) -> tuple[list[Fault], int]:
        """The file's rows into `rows`, unless it has faults: the first of them, and how many more."""
        if not path.name.lower().endswith((".csv", ".csv.gz")):
            raise FaultyInput([Fault(path.name, 0, 0, "a .csv or .csv.gz wanted")])
        if (size := path.stat().st_size) > MOST_BYTES:
            raise FaultyInput([Fault(path.name, 0, 0, f"{size} bytes, at most {MOST_BYTES} wanted: cut it")])
        faults: list[Fault] = []
        more = 0

        def hear(one: Fault) -> None:
            nonlocal more
            if len(faults) < FAULTS_KEPT:
                faults.append(one)
            else:
                more += 1

        for batch in read_samples(path, rows.points, plant.zone, hear, latest_ns=time.time_ns() + AHEAD_NS):
            if not faults:
                rows.add(batch)
        return faults, more

    async def _refuse(self, path: Path, faults: Sequence[Fault], more: int) -> bool:
        log.warning("inbox file refused", extra={"file": path.name, "faults": len(faults) + more})
        lines = [f"{path.name}:{one.line}:{one.column}: {one.reason}" for one in faults]
        if more:
            lines.append(f"and {more} more")
        return await asyncio.to_thread(_move, path, "faulty", "faults", lines)

    def _stamps(self) -> dict[str, Stamp]:
        self._folder.mkdir(parents=True, exist_ok=True)
        stamps = {}
        for path in self._folder.iterdir():
            if path.name.startswith(".") or path.name.lower().endswith(_UNFINISHED) or not path.is_file():
                continue
            seen = path.stat()
            stamps[path.name] = seen.st_size, seen.st_mtime_ns
        return stamps

    def _faulty(self) -> list[str]:
        folder = self._folder / "faulty"
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".faults.txt"))


def _move(path: Path, to: str, what: str, lines: Sequence[str]) -> bool:
    """Into the folder beside it, never over another file of that name; what is to be said about it first."""
    folder = path.parent / to
    try:
        folder.mkdir(exist_ok=True)
        target, number = folder / path.name, 1
        while target.exists():
            number += 1
            target = folder / f"{number}-{path.name}"
        if lines:
            (folder / f"{target.name}.{what}.txt").write_text("\n".join(lines) + "\n", "utf-8")
        path.rename(target)
    except OSError as why:
        log.error("inbox file cannot be moved", extra={"file": path.name, "why": str(why)})
        return False
    return True
