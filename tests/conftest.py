"""Fixtures many subjects share: a real database, new and empty for each test."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from core.store.embedded import EmbeddedServer
from migrations import migrate

MEMORY = "/dev/shm"  # databases of tests are many and short-lived: kept off the disk where memory is plenty


def _has_room(folder: str) -> bool:
    return os.path.isdir(folder) and shutil.disk_usage(folder).free > 4 << 30


def reachable_folder(prefix: str) -> Path:
    """A temporary folder the database's unprivileged user can reach (pytest's own are closed to others)."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if _has_room(MEMORY) else None))
    os.chmod(folder, 0o755)
    return folder


@pytest.fixture(scope="session")
def reachable() -> Callable[[str], Path]:
    """`reachable_folder`, for tests that run a server of their own."""
    return reachable_folder


@pytest.fixture(scope="session")
def embedded_dsn() -> Iterator[str]:
    """DSN of one embedded server for the whole session."""
    folder = reachable_folder("ecmc-test-")
    server = EmbeddedServer(folder / "data")
    try:
        dsn = server.start()
        asyncio.run(_without_sync(dsn))
        yield dsn
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _without_sync(dsn: str) -> None:
    """These databases live for one test; a power cut may take them."""
    connection = await asyncpg.connect(dsn)
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        await connection.execute(f"ALTER SYSTEM SET {setting} = off")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


class Databases:
    """Makes databases with the schema in them, by copying one that has been migrated."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._numbers = count()
        self._template: str | None = None

    def new(self) -> str:
        """DSN of a new database at the newest schema."""
        return asyncio.run(self._new())

    def copy(self, dsn: str) -> str:
        """DSN of a copy of one of these databases, to which nothing may be connected."""
        return self._of(asyncio.run(self._create(dsn.rsplit("/", 1)[1])))

    def drop(self, dsn: str) -> None:
        """Take a database away where its server outlives the tests."""
        asyncio.run(self._execute(f"DROP DATABASE {dsn.rsplit('/', 1)[1]} WITH (FORCE)"))

    def drop_template(self) -> None:
        if self._template is not None:
            self.drop(self._of(self._template))

    async def _new(self) -> str:
        if self._template is None:
            self._template = await self._create("template0")
            await migrate(self._of(self._template))
            # TimescaleDB's scheduler would come in, and a database somebody is in cannot be copied.
            await self._execute(f"ALTER DATABASE {self._template} ALLOW_CONNECTIONS false")
        return self._of(await self._create(self._template))

    async def _create(self, template: str) -> str:
        name = f"ecmc_test_{os.getpid()}_{next(self._numbers)}"
        others = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}'"
        await self._execute(others, f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    async def _execute(self, *statements: str) -> None:
        connection = await asyncpg.connect(self._dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    def _of(self, name: str) -> str:
        return self._dsn.rsplit("/", 1)[0] + "/" + name


@pytest.fixture(scope="session")
def databases(embedded_dsn: str) -> Databases:
    return Databases(embedded_dsn)


@pytest.fixture
def database(databases: Databases) -> str:
    """DSN of an empty ecmc database of this test's own, on the embedded server."""
    return databases.new()
