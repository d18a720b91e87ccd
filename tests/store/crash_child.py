"""A whole `ecmc run` whose one device is a pipe: batches come on stdin, a line back says that one is kept.

Everything else is what a plant runs: spool, forwarding, database server, engine. Only the waits are short, so that a
test need not sit them out.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from collector.driver import DeviceState
from collector.supervise import Backoff, forward
from core.plant.model import Connection, Plant
from core.samples import SampleBatch, sample_batch
from ecmc import compose
from ecmc.folder import read_plant


class PipeDriver:
    """Hands over what comes on stdin, a JSON line a batch: [number, points, times_ns, values]."""

    def __init__(self, plant: Plant, connection: Connection, **_: object) -> None:
        self.name = connection.id
        self._table = plant.point_table
        self._lines: asyncio.StreamReader | None = None
        self._number = -1

    async def __aenter__(self) -> Self:
        if self._lines is None:
            self._lines = asyncio.StreamReader(limit=1 << 24)
            protocol = asyncio.StreamReaderProtocol(self._lines)
            await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        return self

    async def read(self) -> SampleBatch:
        assert self._lines is not None
        line = await self._lines.readline()
        if not line:
            await asyncio.sleep(3600)
        self._number, points, time_ns, value = json.loads(line)
        point = [self._table.index[name] for name in points]
        return sample_batch(self._table, point, np.array(time_ns, dtype=np.int64), value)

    async def stored(self) -> None:
        os.write(sys.stdout.fileno(), f"{self._number}\n".encode())

    def devices(self) -> Mapping[str, DeviceState]:
        return {}

    async def __aexit__(self, *exc: object) -> None: ...


def main() -> None:
    plant_folder, data = map(Path, sys.argv[1:3])
    dsn = sys.argv[3] if len(sys.argv) > 3 else None
    compose.make_driver = PipeDriver  # type: ignore[assignment]
    compose.WATCH_EVERY_S = 0.1
    compose.forward = partial(forward, backoff=Backoff(base_s=0.02, cap_s=0.2))  # type: ignore[assignment]
    plant = read_plant(plant_folder)
    while (
        True
    ):  # a killed server's children may still hold its memory: a service manager would start us again
        try:
            asyncio.run(compose.run_plant(plant, data, dsn, "127.0.0.1", 0))
            return
        except OSError as why:
            print(why, file=sys.stderr)
            time.sleep(0.1)


if __name__ == "__main__":
    main()
