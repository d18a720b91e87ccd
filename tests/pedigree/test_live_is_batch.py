"""A recorded load, once in one piece and once as life brings it: the same bits in every result.

Life: batches late by minutes or days, repeated, shuffled, wrong and corrected later,
the engine stepping in between and now and then started anew.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.bus import LocalBus
from core.clock import parse_rfc3339
from core.compute.engine import Engine
from core.compute.pipeline import Pipeline
from core.health import Health, Status
from core.proof.sealing import Sealing
from core.results import HOUR_NS
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.seal import hour_digests
from core.store.postgres import PostgresStore
from core.store.seam import Correction
from simulators.recording import steel

START_NS = parse_rfc3339("2026-03-01T16:00:00Z")
QUARTER_NS = 900 * NS_PER_S
POINTS = (
    "grid.energy",
    "roof.energy",
    "gas.volume",
    "bat.charged",
    "bat.discharged",
    "press.energy",
    "sold.energy",
)


def recorded(days: int) -> SampleBatch:
    """The steel works' load as what the works' registers would have counted."""
    kwh = steel()["energy_kwh"][: days * 96]
    quarter = np.arange(days * 96) % 96
    charge = np.where(quarter < 24, 6.0, 0.0)
    give = np.where((quarter >= 70) & (quarter < 90), 4.0, 0.0)
    roof = np.maximum(0.0, 9.0 * np.sin((quarter - 24) / 48 * np.pi)) * ((quarter >= 24) & (quarter < 72))
    grid = np.maximum(kwh * 1.2 + charge - give - roof, 0.0)
    columns = (grid, roof, kwh * 0.02, charge, give, kwh, np.where(roof > 8, 1.0, 0.0))
    time_ns = START_NS + np.arange(days * 96 + 1) * QUARTER_NS
    value = np.concatenate([np.round(1000.0 + np.concatenate([[0.0], np.cumsum(c)]), 2) for c in columns])
    point = np.repeat(np.arange(len(POINTS)), time_ns.size)
    return sample_batch(PointTable(POINTS), point, np.tile(time_ns, len(POINTS)), value)


async def digests(store: PostgresStore, days: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for day in range(days + 1):
        for part in await store.stored(START_NS + day * 24 * HOUR_NS, START_NS + (day + 1) * 24 * HOUR_NS):
            found |= hour_digests(part)
    return found


async def lived(works: Any, whole: SampleBatch, seed: int, engine_of: Any) -> None:
    """Bring the readings as life does."""
    dice = random.Random(seed)
    order = np.argsort(whole.time_ns, kind="stable")
    batches: list[np.ndarray] = []
    at = 0
    while at < order.size:
        size = dice.randint(20, 400)
        batches.append(order[at : at + size])
        at += size
    arrival: list[tuple[float, int, bool]] = []
    for number in range(len(batches)):
        delay = dice.choice([0.0, 0.0, 0.0, 0.3, 2.0, 30.0])
        arrival.append((number + delay, number, False))
        if dice.random() < 0.2:
            arrival.append((number + delay + dice.uniform(0, 40), number, False))  # brought again
    wrong = set(dice.sample(range(len(batches)), max(1, len(batches) // 15)))
    arrival += [(len(batches) + dice.uniform(0, 30), number, True) for number in wrong]
    for _, number, correcting in sorted(arrival):
        batch = whole.take(batches[number])
        if number in wrong and not correcting:
            batch = replace(batch, value=np.round(batch.value + 3.0, 2))
        works.clock.time_ns = max(works.clock.time_ns, int(batch.time_ns.max()) + 60 * NS_PER_S)
        correction = Correction("mai", "read off the display", works.clock.now_ns()) if correcting else None
        await works.store.write(batch, correction)
        if dice.random() < 0.5:
            await works.pipeline.step(everything=dice.random() < 0.5)
        if dice.random() < 0.1:  # a kill forgets everything but the database
            works.pipeline = Pipeline(engine_of(works.plant), works.store, LocalBus(), Health(), works.clock)
    await works.pipeline.drain()


async def same(works: Any, database: str, whole: SampleBatch, days: int, seed: int, engine_of: Any) -> None:
    works.clock.time_ns = START_NS
    await lived(works, whole, seed, engine_of)
    other = await PostgresStore.open(database, works.plant)
    await other.write(whole)
    await Pipeline(engine_of(works.plant), other, LocalBus(), Health(), works.clock).drain()

    live, batch = await digests(works.store, days), await digests(other, days)
    await other.close()
    assert len(batch) >= days * 24
    assert [hour for hour in sorted(live.keys() | batch.keys()) if live.get(hour) != batch.get(hour)] == []


async def test_ten_recorded_days_in_any_order(works: Any, databases: Any, engine_of: Any) -> None:
    fresh = await asyncio.to_thread(databases.new)
    await same(works, fresh, recorded(10), 10, 1, engine_of)


async def test_ten_recorded_days_with_silent_meters_in_any_order(
    works: Any, databases: Any, engine_of: Any, plant_folder: Path
) -> None:
    works = await by_weekdays(works, databases, plant_folder)
    fresh = await asyncio.to_thread(databases.new)

    await same(works, fresh, fallen_silent(recorded(10)), 10, 2, engine_of)

    await works.store.close()


@pytest.mark.soak
@pytest.mark.timeout(5400)
async def test_the_recorded_year_in_any_order(works: Any, databases: Any, engine_of: Any) -> None:
    fresh = await asyncio.to_thread(databases.new)
    await same(works, fresh, recorded(365), 365, 11, engine_of)


def fallen_silent(whole: SampleBatch) -> SampleBatch:
    """The record with two loads silent for good from the eighth day on, and a gap of the third before."""
    day = (whole.time_ns - START_NS) / (24 * HOUR_NS)
    name = np.array(POINTS)[whole.point]
    gone = (day > 7.3) & np.isin(name, ("press.energy", "sold.energy"))
    gap = (day > 7.1) & (day < 7.6) & (name == "roof.energy")
    return whole.take(~(gone | gap))


async def by_weekdays(works: Any, databases: Any, plant_folder: Path) -> Any:
    """The works without its battery, gaps spread as the weekdays carried them, in a database of their own."""
    for file in (
        plant_folder / "plant.yaml",
        plant_folder / "points.csv",
    ):  # a stock would have it all computed again
        lines = [line for line in file.read_text("utf-8").splitlines() if "bat" not in line]
        file.write_text("\n".join(lines) + "\n", "utf-8")
    with (plant_folder / "plant.yaml").open("a", encoding="utf-8") as folder:
        folder.write("gap_spread: weekday\n")
    return await type(works).open(await asyncio.to_thread(databases.new), plant_folder, works.clock)


async def test_a_silence_filled_by_weeks_that_come_later_or_are_put_right(
    works: Any, databases: Any, engine_of: Any, plant_folder: Path
) -> None:
    works = await by_weekdays(works, databases, plant_folder)
    whole = fallen_silent(recorded(9))
    day = (whole.time_ns - START_NS) // (24 * HOUR_NS)
    works.clock.time_ns = int(whole.time_ns.max()) + 60 * NS_PER_S
    wrong = replace(
        whole, value=np.where((day == 1) & (whole.time_ns % HOUR_NS == 0), whole.value + 0.5, whole.value)
    )
    for days, batch in (((7, 8, 9), whole), ((2, 3, 4, 5, 6), whole), ((1,), wrong), ((0,), whole)):
        await works.store.write(batch.take(np.isin(day, days)))
        await works.pipeline.drain()
    sealing = Sealing(works.store, works.pipeline.history, works.clock)
    works.clock.time_ns += 3 * HOUR_NS
    await sealing.close("2026-03-10", "mai", "report")  # a silent day, filled by what the third of March says
    correction = Correction("mai", "read off the display", works.clock.now_ns())
    await works.store.write(whole.take(day == 1), correction)
    await works.pipeline.drain()
    again = await sealing.close("2026-03-10", "mai", "report")
    held = await sealing.verify()
    other = await PostgresStore.open(await asyncio.to_thread(databases.new), works.plant)
    await other.write(whole)
    await Pipeline(engine_of(works.plant), other, LocalBus(), Health(), works.clock).drain()

    lived, batch = await digests(works.store, 9), await digests(other, 9)
    stored = (await other.stored(START_NS + 8 * 24 * HOUR_NS, START_NS + 9 * 24 * HOUR_NS))[0]
    await other.close()
    await works.store.close()
    assert np.isfinite(stored.energy.energy_kwh[stored.edges.index("e-press")]).all()
    assert [hour for hour in sorted(lived.keys() | batch.keys()) if lived.get(hour) != batch.get(hour)] == []
    assert (again.revision, held.difference, held.replayed) == (2, None, 2)


async def test_what_cannot_be_computed_is_said_waits_in_the_ledger_and_ends_nothing_else(
    works: Any, readings: Any, engine_of: Any
) -> None:
    class Stumbling(Engine):
        fails = True

        def compute(self, *asked: Any) -> Any:
            if self.fails:
                raise ValueError("edge 'e-grid' carries what nobody thought of")
            return super().compute(*asked)

    class Told(Health):
        news = asyncio.Event()

        def report(self, part: str, status: Status, detail: str = "") -> None:
            super().report(part, status, detail)
            self.news.set()

    engine = Stumbling(works.plant, engine_of(works.plant).library)
    health = Told()
    pipeline = Pipeline(engine, works.store, LocalBus(), health, works.clock)
    await works.write(readings(START_NS, START_NS + HOUR_NS))

    async def may_compute() -> bool:
        return True

    async def until(status: Status) -> str:
        async with asyncio.timeout(10):
            while (part := health.parts.get("engine")) is None or part.status is not status:
                health.news.clear()
                await health.news.wait()
        return part.detail

    running = asyncio.create_task(pipeline.run(may_compute))
    said = await until(Status.DOWN)
    waiting = await works.store.dirty()
    engine.fails = False
    await until(Status.OK)
    running.cancel()

    assert "what nobody thought of" in said
    assert waiting
    assert await works.store.dirty() == []
