"""Moving, backing up and bringing back a plant's data: `ecmc migrate`, `backup`, `restore`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from core.errors import DataFolderError
from core.settings import prepare_data_folder
from core.store.embedded import EmbeddedServer
from core.store.move import Moved, Progress, move


async def migrate_store(source: str, target: str, progress: Progress) -> Moved:
    """Move everything of one store into another; each is a DSN or a data folder."""
    async with database(source, must_exist=True) as from_dsn, database(target) as to_dsn:
        return await move(from_dsn, to_dsn, progress)


@asynccontextmanager
async def database(place: str, must_exist: bool = False) -> AsyncIterator[str]:
    """DSN of a place: a DSN itself, or the embedded server of a data folder, run for as long as it is needed."""
    if "://" in place:
        yield place
        return
    folder = Path(place)
    if must_exist and not (folder / "pg").exists():
        raise DataFolderError(f"{folder} is no data folder of ecmc: there is no database in it")
    server = EmbeddedServer(prepare_data_folder(folder))
    dsn = await asyncio.to_thread(server.start)
    try:
        yield dsn
    finally:
        await asyncio.to_thread(server.stop)
