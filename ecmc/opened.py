"""A plant's database, opened for one command or one run, and the engine that goes with what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from core.carbon.factors import FactorLibrary
from core.compute.engine import Engine
from core.errors import StoreUnavailable
from core.plant.model import Plant
from core.registers.shelf import Registers
from core.settings import default_data_folder
from core.store.embedded import EmbeddedServer, running_dsn
from core.store.postgres import PostgresStore
from core.store.room import Room
from ecmc.folder import archive_in, data_folder


@asynccontextmanager
async def opened_store(plant: Plant, data: Path | None, dsn: str | None) -> AsyncIterator[PostgresStore]:
    """A migrated store for one command: on the server given, the one that runs on the data folder, or our own."""
    async with plant_database(plant, data, dsn) as found:
        store = await PostgresStore.open(found, plant)
        folder = data or default_data_folder(plant.id)
        store.archive = archive_in(folder)
        store.room = Room(folder) if dsn is None else None
        try:
            yield store
        finally:
            await store.close()


@asynccontextmanager
async def plant_database(plant: Plant, data: Path | None, dsn: str | None) -> AsyncIterator[str]:
    """DSN of the server given, the one that runs on the data folder, or our own for as long as it is needed."""
    if dsn is not None:
        yield dsn
        return
    folder = data_folder(plant, data)
    running = running_dsn(folder)
    if running is not None:
        yield running
        return
    async with own_server(folder) as started:
        yield started


@asynccontextmanager
async def own_server(folder: Path) -> AsyncIterator[str]:
    """DSN of the embedded server of a data folder, run for as long as it is needed."""
    server = EmbeddedServer(folder)
    dsn = await asyncio.to_thread(server.start)
    try:
        yield dsn
    except StoreUnavailable as why:
        reason = await asyncio.to_thread(server.last_words)
        raise StoreUnavailable(f"the database of {folder} died: {reason}" if reason else str(why)) from None
    finally:
        await asyncio.to_thread(server.stop)


async def plant_engine(plant: Plant, store: PostgresStore) -> tuple[Registers, Engine]:
    """The engine with the factors people added to this database, and the registers they stand in."""
    tables = await asyncio.to_thread(FactorLibrary.for_plant, plant.folder)
    registers = Registers(store.pool, plant, tables)
    library, events = await registers.load(), await registers.meter_events.known()
    return registers, await asyncio.to_thread(Engine, plant, library, events)
