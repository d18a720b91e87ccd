"""A plant's database, opened for one command or one run, and the engine that goes with what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from core.carbon.factors import FactorLibrary
from core.engine import Engine
from core.plant.model import Plant
from core.registers.shelf import Registers
from core.store.embedded import EmbeddedServer, running_dsn
from core.store.postgres import PostgresStore
from ecmc.folder import data_folder


@asynccontextmanager
async def opened_store(plant: Plant, data: Path | None, dsn: str | None) -> AsyncIterator[PostgresStore]:
    """A migrated store for one command: on the server given, the one that runs on the data folder, or our own."""
    async with AsyncExitStack() as stack:
        if dsn is None:
            folder = data_folder(plant, data)
            dsn = running_dsn(folder)
            if dsn is None:
                server = EmbeddedServer(folder)
                dsn = await asyncio.to_thread(server.start)
                stack.callback(server.stop)
        store = await PostgresStore.open(dsn, plant)
        stack.push_async_callback(store.close)
        yield store


async def plant_engine(plant: Plant, store: PostgresStore) -> tuple[Registers, Engine]:
    """The engine with the factors people added to this database, and the registers they stand in."""
    tables = await asyncio.to_thread(FactorLibrary.for_plant, plant.folder)
    registers = Registers(store.pool, plant, tables)
    library, events = await registers.load(), await registers.meter_events.known()
    return registers, await asyncio.to_thread(Engine, plant, library, events)
