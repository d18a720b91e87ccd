"""Moving, backing up and bringing back a plant's data: `ecmc migrate`, `backup`, `restore`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ecmc.loop import run_work
from ecmc.option import DataFolder, Dsn, PlantFolder
from ecmc.progress import progress_bar

if TYPE_CHECKING:
    from core.store.backup import Manifest
    from core.store.move import Moved

app = typer.Typer()


@app.command()
def migrate(
    source: Annotated[str, typer.Option("--from", help="Data folder or DSN the data are in.")],
    target: Annotated[str, typer.Option("--to", help="New data folder, or DSN of an empty database.")],
) -> None:
    """Move all data to another database, comparing every table; started again after a kill, it goes on."""
    from core.store.move import move

    async def work() -> Moved:
        with progress_bar() as progress:
            async with _database(source, must_exist=True) as from_dsn, _database(target) as to_dsn:
                return await move(from_dsn, to_dsn, progress)

    moved = run_work(work())
    for table, rows in sorted(moved.rows.items()):
        if rows:
            typer.echo(f"{table}: {rows} rows, compared")
    typer.echo(f"moved: {moved.copied} chunks copied, {moved.same} were there already, all equal by SHA-256")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File to write.")],
    plant: PlantFolder,
    raw: Annotated[bool, typer.Option("--raw", help="With the samples, not only what came of them.")] = False,
    data: DataFolder = None,
    dsn: Dsn = None,
) -> None:
    """Registry, registers and results as one file, of one moment, while everything goes on running."""
    from core.clock import SystemClock
    from core.store.backup import back_up
    from ecmc.folder import read_plant
    from ecmc.opened import plant_database

    async def work() -> Manifest:
        with progress_bar() as progress:
            async with plant_database(read_plant(plant), data, dsn) as found:
                return await back_up(found, file, raw, SystemClock().now_ns(), progress)

    made = run_work(work())
    typer.echo(f"{file}: {len(made.tables)} tables, {sum(made.rows().values())} rows as of {made.made}")


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    plant: PlantFolder,
    data: DataFolder = None,
    dsn: Dsn = None,
) -> None:
    """Fill an empty database or a new data folder from a backup: all of it, or nothing."""
    from core.store.backup import read_manifest
    from core.store.backup import restore as restore_from
    from ecmc.folder import read_plant
    from ecmc.opened import plant_database

    known = read_plant(plant)
    read_manifest(file)  # before a folder is made for it

    async def work() -> Manifest:
        with progress_bar() as progress:
            async with plant_database(known, data, dsn) as found:
                return await restore_from(found, file, known.id, progress)

    held = run_work(work())
    typer.echo(
        f"restored {sum(held.rows().values())} rows of {held.made}" + ("" if held.samples else ", no samples")
    )


@asynccontextmanager
async def _database(place: str, must_exist: bool = False) -> AsyncIterator[str]:
    """DSN of a place: a DSN itself, or a data folder's server."""
    from core.errors import DataFolderError
    from core.settings import prepare_data_folder
    from ecmc.opened import own_server

    if "://" in place:
        yield place
        return
    folder = Path(place)
    if must_exist and not (folder / "pg").exists():
        raise DataFolderError(f"{folder} is no data folder of ecmc: there is no database in it")
    async with own_server(prepare_data_folder(folder)) as dsn:
        yield dsn
