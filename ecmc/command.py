"""What the commands that end by themselves do: import, withdraw, recompute."""

from __future__ import annotations

import asyncio
import getpass
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import isnan
from multiprocessing import get_context
from pathlib import Path

from core.bus import LocalBus
from core.clock import SystemClock, parse_rfc3339, rfc3339
from core.compute.history import History
from core.compute.pipeline import Pipeline
from core.compute.workers import Workers, begin_worker
from core.errors import BadRequest, Fault
from core.files.by_day import ByDay
from core.files.importer import read_samples
from core.health import Health
from core.plant.model import Plant
from core.proof.recompute import is_under_way, recompute
from core.proof.restate import restate
from core.proof.sealing import Sealing, Verdict
from core.registers.withdrawal import withdraw
from core.samples import PointTable
from core.seal import Seal
from core.store.claim import EngineClaim, is_dirty_up_to, newest_dirty
from core.store.postgres import PostgresStore
from core.store.seam import Conflict, Correction, WriteReport
from ecmc.opened import opened_store, plant_engine
from ecmc.progress import Progress

SEALS_TOLD = 20
IMPORT_ROWS = 50_000  # rows a transaction


@dataclass(slots=True)
class ImportReport:
    """What became of a file. `faults` counts its faulty rows; any of them and not skipped: nothing was imported."""

    faults: int = 0
    accepted: int = 0
    repeated: int = 0
    corrected: int = 0
    conflict_count: int = 0
    conflicts: tuple[Conflict, ...] = ()

    def add(self, part: WriteReport) -> None:
        self.accepted += part.accepted
        self.repeated += part.repeated
        self.corrected += part.corrected
        self.conflict_count += part.conflict_count
        self.conflicts = (self.conflicts + part.conflicts)[:1000]


async def import_samples(
    plant: Plant,
    file: Path,
    data: Path | None,
    dsn: str | None,
    *,
    correct: bool = False,
    why: str = "",
    skip_faulty: bool = False,
    fault: Callable[[Fault], None] = lambda fault: None,
    progress: Progress = lambda done, of, what: None,
) -> ImportReport:
    """Import a sample file; returns once the results it touches are readable.

    A file with faulty rows is refused whole unless `skip_faulty`. Killed, it is started again: what is in already is
    repeated, which changes nothing.

    Args:
        fault: Hears of every faulty row.
    """
    report = ImportReport()
    clock = SystemClock()
    points = PointTable(tuple(plant.point_by_id))

    def count(one: Fault) -> None:
        report.faults += 1
        fault(one)

    with ByDay(points) as rows:
        for batch in read_samples(
            file, points, plant.zone, count, lambda done, of: progress(done, of, "reading")
        ):
            if report.faults == 0 or skip_faulty:
                rows.add(batch)
        if (report.faults and not skip_faulty) or rows.count == 0:
            return report
        correction = (
            Correction(getpass.getuser(), why or f"import {file.name}", clock.now_ns()) if correct else None
        )
        async with opened_store(plant, data, dsn) as store:
            done = 0
            for batch in rows.batches(IMPORT_ROWS):
                progress(done, rows.count, "writing")
                report.add(await store.write(batch, correction))
                done += len(batch)
            progress(done, rows.count, "computing")
            await settle(plant, store)
    return report


async def withdraw_samples(
    plant: Plant,
    points: Sequence[str],
    start: str,
    end: str,
    why: str,
    data: Path | None,
    dsn: str | None,
) -> list[tuple[str, int]]:
    """Take back the values of points over [start, end); how many of each, once the results are readable."""
    for name in points:
        if name not in plant.point_by_id:
            raise BadRequest(f"the plant has no point {name!r}")
    if not why.strip():
        raise BadRequest("--why is kept on record and cannot be empty")
    start_ns, end_ns = _span_ns(start, end)
    correction = Correction(getpass.getuser(), why, SystemClock().now_ns())
    async with opened_store(plant, data, dsn) as store:
        gone = [
            (name, sum([len(part) async for part in withdraw(store, name, start_ns, end_ns, correction)]))
            for name in dict.fromkeys(points)
        ]
        await settle(plant, store)
    return gone


def _span_ns(start: str, end: str) -> tuple[int, int]:
    try:
        start_ns, end_ns = parse_rfc3339(start), parse_rfc3339(end)
    except ValueError as why:
        raise BadRequest(str(why)) from None
    if end_ns <= start_ns:
        raise BadRequest(f"--to {end} is not after --from {start}")
    return start_ns, end_ns


async def settle(plant: Plant, store: PostgresStore) -> None:
    """Return when all that is dirty now is computed: by the engine that runs on this database, or else here."""
    newest = await newest_dirty(store.pool)
    async with EngineClaim(store.pool) as claim:
        while await is_dirty_up_to(store.pool, newest):
            if await claim.held():
                _, engine = await plant_engine(plant, store)
                await Pipeline(engine, store, LocalBus(), Health(), SystemClock()).drain()
            else:
                await asyncio.sleep(0.05)


async def seal_period(plant: Plant, label: str, why: str, data: Path | None, dsn: str | None) -> Seal:
    """Close a day or month by hand, once all of it is computed."""
    async with opened_store(plant, data, dsn) as store:
        await settle(plant, store)
        return await (await _sealing(plant, store)).close(label, getpass.getuser(), why)


async def verify_plant(plant: Plant, link: str | None, data: Path | None, dsn: str | None) -> Verdict:
    """Check every seal of a plant against its stored figures and its readings."""
    async with opened_store(plant, data, dsn) as store:
        return await (await _sealing(plant, store)).verify(link)


async def _sealing(plant: Plant, store: PostgresStore) -> Sealing:
    _, engine = await plant_engine(plant, store)
    return Sealing(store, History(engine, store), SystemClock())


async def recompute_window(
    plant: Plant,
    start: str,
    end: str,
    known_at: str | None,
    data: Path | None,
    dsn: str | None,
    *,
    current_model: bool = False,
    progress: Callable[[int, int], None] = lambda done_ns, whole_ns: None,
) -> list[str]:
    """Compute [start, end) again; a line for each figure that changed with what changed it, and a last one that counts."""
    start_ns, end_ns = _span_ns(start, end)
    known_at_ns = _moment_ns(known_at)
    with _pool() as pool:
        async with opened_store(plant, data, dsn) as store:
            _, engine = await plant_engine(plant, store)
            kept_ns = await store.computable_from(engine.points)
            if kept_ns is not None and start_ns < kept_ns:
                raise BadRequest(
                    f"readings before {rfc3339(kept_ns)} are no longer kept: what was computed from them stands"
                )
            if not await is_under_way(store, start_ns, end_ns, known_at_ns, current_model):
                await settle(plant, store)  # what is new already is no change that this makes
            seals: list[Seal] = []

            async def finish() -> None:
                await settle(plant, store)  # storages may hand the change on to later hours
                seals.extend([seal async for seal in (await _sealing(plant, store)).close_changed()])

            made = await recompute(
                Pipeline(engine, store, LocalBus(), Health(), SystemClock(), Workers(pool)),
                store,
                start_ns,
                end_ns,
                now_ns=SystemClock().now_ns(),
                known_at_ns=known_at_ns,
                current_model=current_model,
                who=getpass.getuser(),
                progress=progress,
                finish=finish,
            )
    lines = [
        f"{name}: {figure.before!r} -> {figure.after!r} ("
        + ", ".join(f"{cause} {part:+.6g}" for cause, part in figure.by.items())
        + ")"
        for name, figure in made.figures.items()
    ]
    resumed = []
    if made.resumed_ns is not None:
        before = (
            "what changed before was not kept by the ecmc that began it"
            if made.has_forgotten
            else "what changed before is counted"
        )
        resumed = [f"went on at {rfc3339(made.resumed_ns)}, where it was broken off: {before}"]
    return [
        *lines,
        *resumed,
        *_revised(seals),
        f"{len(lines)} of {made.seen} figures changed over {rfc3339(made.start_ns)} .. {rfc3339(made.end_ns)}",
    ]


async def restate_window(
    plant: Plant,
    start: str,
    end: str,
    known_at: str | None,
    folder: Path,
    method_sets: Sequence[str] | None,
    bucket: str,
    data: Path | None,
    dsn: str | None,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Write the emissions of the months that [start, end) touches as Parquet; what differs from the stored, by line."""
    start_ns, end_ns = _span_ns(start, end)
    known_at_ns = _moment_ns(known_at)
    with _pool() as pool:
        async with opened_store(plant, data, dsn) as store:
            await settle(plant, store)
            _, engine = await plant_engine(plant, store)
            made = await restate(
                store,
                History(engine, store),
                Workers(pool),
                folder,
                start_ns,
                end_ns,
                now_ns=SystemClock().now_ns(),
                known_at_ns=known_at_ns,
                method_sets=method_sets,
                bucket=bucket,
                progress=progress,
            )
    lines = [
        f"emissions site scope {flow.scope} {flow.basis} {flow.method_set} kgCO2e: "
        + ("not stored, " if isnan(stored) else f"{stored:.9g} stored, ")
        + ("unknown here" if isnan(kg) else f"{kg:.9g} here")
        for flow, (stored, kg) in made.site.items()
    ]
    stood = f", {made.kept} of them stood already" if made.kept else ""
    return [
        *lines,
        f"{made.folder}: {made.rows} rows in {made.parts} parts{stood}, by factors known at "
        f"{rfc3339(made.known_at_ns)}; nothing stored was changed",
    ]


def _revised(seals: Sequence[Seal]) -> list[str]:
    lines = [f"{seal.period} {seal.label} revision {seal.revision} sealed: {seal.why}" for seal in seals]
    if len(lines) <= SEALS_TOLD:
        return lines
    return [*lines[:SEALS_TOLD], f"and {len(lines) - SEALS_TOLD} more closed days and months"]


def _moment_ns(moment: str | None) -> int | None:
    try:
        return None if moment is None else parse_rfc3339(moment)
    except ValueError as why:
        raise BadRequest(str(why)) from None


def _pool() -> ProcessPoolExecutor:
    """Processes on this machine that end with this one, however it ends."""
    return ProcessPoolExecutor(os.cpu_count(), get_context("spawn"), begin_worker)
