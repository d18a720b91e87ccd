"""The schema, brought up to date: Alembic revisions whose bodies are SQL files.

A migration is one transaction: it is there whole or not at all. Everything of
ours lives in the schemas `ecmc` and `board`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg

from core.errors import StoreRefused
from core.store.claim import CLAIM
from core.store.refusal import refusals

if TYPE_CHECKING:
    from sqlalchemy import Connection

OLDEST_SERVER = 150000  # date_bin, security of views, MERGE
_LOCK = 0x65636D6D  # one migration at a time
_FOLDER = Path(__file__).parent
REVISIONS = sorted(path.name.split("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*.py"))
HEAD = REVISIONS[-1]
_UNFINISHED = "ecmc migrate under way from "


async def migrate(dsn: str, to: str = HEAD, finished: bool = True) -> None:
    """Bring the database to this version's schema, or an older one's; quick where it already is.

    Args:
        finished: Refuse a database that `ecmc migrate` has not filled yet.

    Raises:
        StoreRefused: Wrong password, missing rights, a server too old, foreign or newer tables in the way, or an ecmc
            of an older version that computes on it.
        StoreUnavailable: The server does not answer.
    """
    with refusals():
        revision = await _revision(dsn, finished)
        if revision is not None and revision >= to:
            return
        # Imported here: a start that finds its schema up to date need not wait a second for them.
        from sqlalchemy.engine import make_url
        from sqlalchemy.ext.asyncio import create_async_engine
        from sqlalchemy.pool import NullPool

        url = make_url(dsn.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, poolclass=NullPool, connect_args={"timeout": 10})
        try:
            async with engine.begin() as connection:
                await connection.run_sync(_upgrade, to)
        finally:
            await engine.dispose()


async def unfinished(dsn: str) -> str | None:
    """Of whose data a database is still being filled; None for any other database."""
    with refusals():
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            return await _unfinished(connection)
        finally:
            await connection.close()


async def set_unfinished(connection: asyncpg.Connection[Any], whose: str | None) -> None:
    """Mark a database as still being filled, or with None as whole."""
    mark = None if whose is None else _UNFINISHED + whose
    statement = await connection.fetchval("SELECT format('COMMENT ON SCHEMA ecmc IS %L', $1::text)", mark)
    await connection.execute(statement)


async def _unfinished(connection: asyncpg.Connection[Any]) -> str | None:
    mark: str | None = await connection.fetchval(
        "SELECT obj_description(to_regnamespace('ecmc'), 'pg_namespace')"
    )
    return mark.removeprefix(_UNFINISHED) if mark is not None and mark.startswith(_UNFINISHED) else None


def run_sql(connection: Connection, name: str) -> None:
    """Run a file of statements in the connection's transaction."""
    statements = (_FOLDER / "sql" / name).read_text(encoding="utf-8")
    run_statements(connection, statements)


def run_statements(connection: Connection, statements: str) -> None:
    """Several statements at once, which a prepared one cannot hold."""
    adapted: Any = connection.connection.dbapi_connection
    connection.exec_driver_sql("SELECT 1")  # the adapter opens its transaction with the first statement
    adapted.run_async(lambda raw: raw.execute(statements))


async def _revision(dsn: str, finished: bool) -> str | None:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        _check_server(connection)
        if finished and await _unfinished(connection) is not None:
            raise StoreRefused("the database is being filled by ecmc migrate: run that again to finish it")
        if await connection.fetchval("SELECT to_regclass('ecmc.alembic_version')") is None:
            await _check_room(connection)
            return None
        revision: str | None = await connection.fetchval("SELECT version_num FROM ecmc.alembic_version")
    finally:
        await connection.close()
    if revision is not None and revision not in REVISIONS:
        raise StoreRefused(
            f"the database is at schema {revision}, this ecmc knows up to {HEAD}: use a newer ecmc"
        )
    return revision


def _check_server(connection: asyncpg.Connection[Any]) -> None:
    version = connection.get_server_version()
    if version.major * 10000 < OLDEST_SERVER:
        raise StoreRefused(
            f"the server is PostgreSQL {version.major}.{version.minor}, {OLDEST_SERVER // 10000} or newer is wanted"
        )


async def _check_room(connection: asyncpg.Connection[Any]) -> None:
    """A schema of our name that is not ours is left alone."""
    foreign = await connection.fetchval(
        "SELECT min(n.nspname || '.' || c.relname) FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace"
        " WHERE n.nspname IN ('ecmc', 'board')"
    )
    if foreign is not None:
        raise StoreRefused(
            f"{foreign} is in the way: the schemas ecmc and board have to be ours; nothing was changed"
        )


def _upgrade(connection: Connection, to: str) -> None:
    from alembic import command
    from alembic.config import Config

    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
    if connection.exec_driver_sql("SELECT to_regclass('ecmc.alembic_version')").scalar() is not None:
        revision = connection.exec_driver_sql("SELECT version_num FROM ecmc.alembic_version").scalar()
        if revision is not None and revision >= to:  # somebody else was faster
            return
        if not connection.exec_driver_sql(f"SELECT pg_try_advisory_xact_lock({CLAIM})").scalar():
            raise StoreRefused(
                f"an ecmc of an older version (schema {revision}, this one wants {to}) computes on this database: stop"
                " it first, then start the new one"
            )
    for schema in ("ecmc", "board"):
        connection.exec_driver_sql(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, to)
