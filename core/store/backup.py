"""A database as one file, and back: registry, registers, results; samples where asked for.

The file is a zip: a member for each chunk of rows, as PostgreSQL's binary COPY
writes them, and `manifest.json` with every table's columns, every member's rows
and SHA-256. All of it is read in one snapshot, while everything goes on
running. Restoring is one transaction: the whole file, or nothing.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Final

import asyncpg
import msgspec

from core.clock import rfc3339, time_ns_of
from core.errors import Fault, FaultyInput, StoreRefused
from core.store import table as tables
from core.store.move import refuse_data
from core.store.refusal import refusals
from core.store.series import Space, tier_of, week_of
from core.store.table import RAW, Chunk, Connection, Sum, Table
from migrations import REVISIONS, migrate

Progress = Callable[[int, int, str], None]  # chunks done, of how many, which one is next

_FORMAT: Final = 1
_MANIFEST: Final = "manifest.json"
# Without readings their ledgers say nothing, but `latest` says until when there were any.
_LEFT_OUT: Final = RAW - {"latest_block"}
_PIECE_BYTES: Final = 1 << 19


class Member(msgspec.Struct, frozen=True):
    """One chunk of rows in the file."""

    file: str
    rows: int
    sha256: str
    start: str | None = None
    end: str | None = None


class TableCopy(msgspec.Struct, frozen=True):
    name: str
    columns: tuple[str, ...]
    members: tuple[Member, ...]


class Manifest(msgspec.Struct, frozen=True):
    """What the file holds. Tables come in an order in which they can be filled."""

    format: int
    schema: str
    plant: str
    made: str
    samples: bool
    tables: tuple[TableCopy, ...]
    counters: dict[str, int]
    horizon: dict[str, str] = {}

    def rows(self) -> dict[str, int]:
        return {table.name: sum(member.rows for member in table.members) for table in self.tables}


async def back_up(dsn: str, file: Path, samples: bool, now_ns: int, progress: Progress) -> Manifest:
    """Write a backup; the file is there when it is whole, and not before.

    Raises:
        StoreRefused: There is no plant in the database.
        FaultyInput: The file cannot be written.
    """
    await migrate(dsn)
    draft = file.with_name(file.name + ".part")
    with refusals():
        connection = await asyncpg.connect(dsn, timeout=10, server_settings=_SESSION)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                    manifest = await _written(connection, archive, samples, now_ns, progress)
            draft.replace(file)
        except OSError as why:
            raise FaultyInput([Fault(str(file), 0, 0, f"cannot be written: {why.strerror or why}")]) from None
        finally:
            draft.unlink(missing_ok=True)
            await connection.close()
    return manifest


_SESSION = {"timezone": "UTC", "jit": "off", "work_mem": "64MB"}


async def _written(
    connection: Connection, archive: zipfile.ZipFile, samples: bool, now_ns: int, progress: Progress
) -> Manifest:
    plant = await connection.fetchval("SELECT plant FROM ecmc.plant_revision ORDER BY adopted DESC LIMIT 1")
    if plant is None:
        raise StoreRefused("the database holds no plant's data: nothing to back up")
    kept = [t for t in await tables.tables_of(connection) if samples or t.name not in _LEFT_OUT]
    chunks = {table.name: await tables.chunks_of(connection, table) for table in kept}
    of = sum(map(len, chunks.values()))
    done = 0
    copies: list[TableCopy] = []
    for table in kept:
        members: list[Member] = []
        for number, chunk in enumerate(chunks[table.name]):
            progress(done, of, str(chunk))
            done += 1
            name = f"{table.name}/{number:05d}.copy"
            total = await _pack(connection, archive, name, chunk)
            members.append(Member(name, total.rows, total.sha256, _text(chunk.start), _text(chunk.end)))
        copies.append(TableCopy(table.name, table.columns, tuple(members)))
    manifest = Manifest(
        _FORMAT,
        await connection.fetchval("SELECT version_num FROM ecmc.alembic_version"),
        plant,
        rfc3339(now_ns),
        samples,
        tuple(copies),
        await tables.counters(connection, kept),
        await tables.horizon(connection),
    )
    body = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    archive.writestr(_MANIFEST, body)
    archive.writestr(_MANIFEST + ".sha256", hashlib.sha256(body).hexdigest())
    return manifest


async def _pack(connection: Connection, archive: zipfile.ZipFile, name: str, chunk: Chunk) -> Sum:
    with archive.open(name, "w", force_zip64=True) as member:

        async def write(data: bytes) -> None:
            member.write(data)

        return await tables.read_out(connection, chunk, write)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def read_manifest(file: Path) -> Manifest:
    """What a backup says it holds.

    Raises:
        FaultyInput: It is no backup of ours, damaged, or made by a newer ecmc.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            body = archive.read(_MANIFEST)
            if archive.read(_MANIFEST + ".sha256").decode() != hashlib.sha256(body).hexdigest():
                raise _faulty(file, "the manifest is damaged: its SHA-256 is another")
    except (OSError, KeyError, zipfile.BadZipFile) as why:
        raise _faulty(file, f"not a whole backup of ecmc: {why}") from None
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except msgspec.MsgspecError as why:
        raise _faulty(file, f"the manifest cannot be understood: {why}") from None
    if manifest.format != _FORMAT or manifest.schema not in REVISIONS:
        raise _faulty(
            file,
            f"made by a newer ecmc (format {manifest.format}, schema {manifest.schema}; known up to"
            f" {_FORMAT}, {REVISIONS[-1]})",
        )
    return manifest


async def restore(dsn: str, file: Path, plant: str, progress: Progress) -> Manifest:
    """Fill an empty database from a backup, in one transaction.

    Raises:
        StoreRefused: The database holds data.
        FaultyInput: The file is damaged, or another plant's; nothing was written.
    """
    manifest = read_manifest(file)
    if manifest.plant != plant:
        raise _faulty(file, f"a backup of plant {manifest.plant!r}, not of {plant!r}")
    await migrate(dsn, to=manifest.schema)  # the tables as they were, then what later versions did to them
    with refusals():
        connection = await asyncpg.connect(dsn, timeout=10, server_settings=_SESSION)
        try:
            async with connection.transaction():
                await connection.execute("SELECT pg_advisory_xact_lock(1701014884)")  # one restore at a time
                await refuse_data(connection)
                with zipfile.ZipFile(file) as archive:
                    await _filled(connection, archive, manifest, file, progress)
                await tables.set_counters(connection, manifest.counters)
                await tables.set_horizon(connection, manifest.horizon)
        except zipfile.BadZipFile as why:
            raise _faulty(file, f"{why}; nothing was restored") from None
        finally:
            await connection.close()
    await migrate(dsn)
    if not manifest.samples:
        await _without_samples(dsn)
    return manifest


_HORIZON = """
UPDATE ecmc.seal_horizon SET thinned_until = newest.time, dropped_until = newest.time
FROM (SELECT max(time) AS time FROM ecmc.latest) AS newest WHERE newest.time IS NOT NULL
"""


async def _without_samples(dsn: str) -> None:
    """The samples behind the figures are gone: what comes late adds to them and does not take their place.

    The newest of each point is known all the same, and a register counts on from there.
    """
    with refusals():
        connection = await asyncpg.connect(dsn, timeout=10, server_settings=_SESSION)
        try:
            times = await connection.fetch("SELECT DISTINCT time FROM ecmc.latest")
            await Space(await tier_of(connection)).ensure(
                connection, {week_of(time_ns_of(row["time"])) for row in times}
            )
            async with connection.transaction():
                await connection.execute(_HORIZON)
                await connection.execute(
                    "INSERT INTO ecmc.sample (time, value, point_id, status)"
                    " SELECT time, value, point_id, status FROM ecmc.latest ORDER BY point_id"
                )
        finally:
            await connection.close()


async def _filled(
    connection: Connection, archive: zipfile.ZipFile, manifest: Manifest, file: Path, progress: Progress
) -> None:
    tier = await tier_of(connection)
    here = {table.name: table for table in await tables.tables_of(connection)}
    of = sum(len(copy.members) for copy in manifest.tables)
    done = 0
    for copy in manifest.tables:
        table = here.get(copy.name)
        if table is None or not set(copy.columns) <= set(table.columns):
            raise _faulty(file, f"table {copy.name} with columns {', '.join(copy.columns)} has no place here")
        for member in copy.members:
            progress(done, of, copy.name)
            done += 1
            await tables.make_room(connection, tier, Chunk(table, _moment(member.start), _moment(member.end)))
            await _unpack(connection, archive, table, copy, member, file)


async def _unpack(
    connection: Connection,
    archive: zipfile.ZipFile,
    table: Table,
    copy: TableCopy,
    member: Member,
    file: Path,
) -> None:
    digest = hashlib.sha256()

    async def pieces() -> AsyncIterator[bytes]:
        with archive.open(member.file) as packed:
            while piece := packed.read(_PIECE_BYTES):
                digest.update(piece)
                yield piece

    rows = await tables.write_in(connection, table, pieces(), copy.columns)
    if (rows, digest.hexdigest()) != (member.rows, member.sha256):
        raise _faulty(
            file,
            f"{member.file}: {member.rows} rows with SHA-256 {member.sha256[:12]} wanted, {rows} with"
            f" {digest.hexdigest()[:12]} found; nothing was restored",
        )


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _faulty(file: Path, reason: str) -> FaultyInput:
    return FaultyInput([Fault(str(file), 0, 0, reason)])
