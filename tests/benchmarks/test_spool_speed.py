"""How fast batches reach the disk for good: printed (`pytest -s`), never failed by time.

The peer is a plain file that takes the same bytes with the same syncs, on the same disk, in turn with the spool.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import numpy as np
import uvloop

from collector.segment import SegmentWriter
from collector.spool import Spool
from core.samples import PointTable, SampleBatch, sample_batch

TASKS, ROWS, ROUNDS = 64, 1_000, 40
TABLE = PointTable(tuple(f"meter-{i}.active_power_total" for i in range(ROWS)))


def batches() -> list[SampleBatch]:
    chance = np.random.default_rng(1)
    return [
        sample_batch(TABLE, np.arange(ROWS), np.arange(ROWS) * 1_000 + task, chance.normal(size=ROWS))
        for task in range(TASKS)
    ]


async def appended(folder: Path) -> tuple[float, float, list[int], list[float]]:
    """Seconds, CPU seconds, bytes of every sync, and when each was done."""
    sizes: list[int] = []
    synced_s: list[float] = []
    write = SegmentWriter.write

    def noted(self: SegmentWriter, group: list[SampleBatch]) -> None:
        before = self.size
        write(self, group)
        sizes.append(self.size - before)
        synced_s.append(time.monotonic())

    SegmentWriter.write = noted  # type: ignore[method-assign]
    try:
        async with Spool(folder) as spool:

            async def connection(batch: SampleBatch) -> None:
                for _ in range(ROUNDS):
                    await spool.append(batch)

            cpu_s, began_s = time.process_time(), time.monotonic()
            await asyncio.gather(*(connection(batch) for batch in batches()))
            return time.monotonic() - began_s, time.process_time() - cpu_s, sizes, synced_s
    finally:
        SegmentWriter.write = write  # type: ignore[method-assign]


def plain(file: Path, sizes: list[int]) -> float:
    """Seconds to write as many bytes with as many syncs to one file."""
    data = os.urandom(max(sizes))
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        began_s = time.monotonic()
        for size in sizes:
            os.write(fd, data[:size])
            os.fdatasync(fd)
        return time.monotonic() - began_s
    finally:
        os.close(fd)


def test_appending_against_a_plain_file_with_the_same_syncs(tmp_path: Path) -> None:
    values = TASKS * ROWS * ROUNDS
    best = (float("inf"), float("inf"), float("inf"), 0.0, 0)
    for number in range(4):
        took_s, cpu_s, sizes, synced_s = uvloop.run(appended(tmp_path / f"spool-{number}"))
        plain_s = plain(tmp_path / "plain", sizes)
        apart_s = max(np.diff(synced_s)) if len(synced_s) > 1 else 0.0
        best = min(best, (took_s, cpu_s, plain_s, apart_s, len(sizes)))
    took_s, cpu_s, plain_s, apart_s, syncs = best
    print(
        f"\nspool: {values / took_s / 1e6:.2f} M values/s, {cpu_s / values * 1e9:.0f} ns CPU a value, "
        f"{syncs} syncs at most {apart_s * 1e3:.0f} ms apart; plain file {values / plain_s / 1e6:.2f} M values/s, "
        f"ratio {plain_s / took_s:.2f}"
    )
