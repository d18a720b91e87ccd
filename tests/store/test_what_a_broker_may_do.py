"""Feeds as a durable broker would be: several sources, everything at least once, in no certain order, late by days.

What is stored is what was sent, and nothing is acknowledged that is not committed.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

import numpy as np
import pytest

from collector.supervise import Backoff, forward
from core.clock import parse_rfc3339
from core.errors import StoreUnavailable
from core.health import Health
from core.plant.model import Plant
from core.samples import NS_PER_S, PointTable, SampleBatch, sample_batch
from core.store.postgres import PostgresStore
from core.store.seam import WriteReport

START_NS = parse_rfc3339("2026-10-01T00:00:00Z")
TABLE = PointTable(("p0", "p1", "p2"))


@dataclass(frozen=True)
class Place:
    row: int
    batch: int


class Broker:
    """A `Feed` that hands out any batch not acknowledged yet, and now and then one that was."""

    def __init__(self, source: str, batches: list[SampleBatch], seed: int) -> None:
        self.source = source
        self._batches = batches
        self._dice = random.Random(seed)
        self.acked: set[int] = set()
        self.lost_rows = ""
        self.oldest_ns: int | None = None

    @property
    def depth_rows(self) -> int:
        return sum(len(b) for n, b in enumerate(self._batches) if n not in self.acked)

    async def append(self, batch: SampleBatch) -> None:
        self._batches.append(batch)

    async def read(self, max_rows: int, linger_s: float = 0.0) -> tuple[SampleBatch, Place]:
        if not self.depth_rows:
            await asyncio.Event().wait()  # nothing more comes
        waiting = [n for n in range(len(self._batches)) if n not in self.acked]
        n = self._dice.choice(waiting if self._dice.random() < 0.7 else range(len(self._batches)))
        return self._batches[n], Place(sum(map(len, self._batches[: n + 1])), n)

    async def ack(self, position: Place) -> None:
        self.acked.add(position.batch)


def sent(point: int, dice: random.Random) -> list[SampleBatch]:
    """Some hours of seconds of one point, cut anyhow; some batches days late."""
    batches, at_s = [], 0
    for _ in range(25):
        size = dice.randrange(1, 200)
        late_s = dice.choice([0, 0, 0, 86_400 * 9])
        second = np.arange(at_s, at_s + size) - late_s
        value = second * 0.5 + point
        batches.append(sample_batch(TABLE, np.full(size, point), START_NS + second * NS_PER_S, value))
        at_s += size
    return batches


async def test_repeated_reordered_and_late_deliveries_of_several_sources_are_stored_once(
    database: str, plant: Plant
) -> None:
    dice = random.Random(4)
    brokers = [Broker(f"site-{n}", sent(n, dice), seed=n) for n in range(3)]
    store = await PostgresStore.open(database, plant)
    committed: set[int] = set()

    async def write(batch: SampleBatch) -> WriteReport:
        if dice.random() < 0.2:
            raise StoreUnavailable("away for a moment")
        report = await store.write(batch)
        committed.add(id(batch))
        return report

    backoff = [Backoff(base_s=0.001, cap_s=0.002) for _ in brokers]
    tasks = [
        asyncio.create_task(forward(b, write, Health(), back))
        for b, back in zip(brokers, backoff, strict=True)
    ]
    async with asyncio.timeout(60):
        while any(broker.depth_rows for broker in brokers):
            await asyncio.sleep(0.01)
            for broker in brokers:
                assert {id(broker._batches[n]) for n in broker.acked} <= committed
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

    rows = await store.pool.fetch(
        "SELECT p.name, extract(epoch FROM s.time)::bigint AS second, s.value FROM ecmc.sample AS s"
        " JOIN ecmc.point AS p ON p.id = s.point_id"
    )
    await store.close()
    wanted = {
        (TABLE.names[point], at // NS_PER_S): value
        for broker in brokers
        for batch in broker._batches
        for point, at, value in zip(
            batch.point.tolist(), batch.time_ns.tolist(), batch.value.tolist(), strict=True
        )
    }
    assert {(row["name"], row["second"]): row["value"] for row in rows} == pytest.approx(wanted)
    assert len(rows) == len(wanted)
