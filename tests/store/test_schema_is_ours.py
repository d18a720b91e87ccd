"""Migrations: whole or not at all, and a clear line where they may not."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

import migrations
from core.errors import StoreRefused, StoreUnavailable
from core.store.claim import CLAIM
from migrations import migrate


def execute(dsn: str, *statements: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def fetch(dsn: str, query: str) -> list[Any]:
    async def run() -> list[Any]:
        connection = await asyncpg.connect(dsn)
        try:
            return [row[0] for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(run())


@pytest.fixture
def empty(databases: Any) -> str:
    """DSN of a database without any schema of ours."""
    dsn: str = databases.new()
    execute(dsn, "DROP SCHEMA ecmc CASCADE", "DROP SCHEMA board CASCADE")
    return dsn


def test_the_newest_revision_is_the_one_the_quick_check_knows() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations._FOLDER))

    assert ScriptDirectory.from_config(config).get_current_head() == migrations.HEAD


def test_migrating_twice_at_once_makes_one_schema(empty: str) -> None:
    async def both() -> None:
        await asyncio.gather(migrate(empty), migrate(empty))

    asyncio.run(both())

    assert fetch(empty, "SELECT version_num FROM ecmc.alembic_version") == [migrations.HEAD]


def test_under_an_older_ecmc_that_computes_the_schema_stays(empty: str) -> None:
    """Waiting for it would be for ever, and changing the tables beneath it worse."""

    async def beside_a_running_one() -> None:
        await migrate(empty, to="0001")
        running = await asyncpg.connect(empty)
        await running.execute(f"SELECT pg_advisory_lock({CLAIM})")
        try:
            with pytest.raises(StoreRefused, match=r"an ecmc of an older version .* computes"):
                await asyncio.wait_for(migrate(empty), 30)
        finally:
            await running.close()
        assert await asyncio.to_thread(fetch, empty, "SELECT version_num FROM ecmc.alembic_version") == [
            "0001"
        ]
        await migrate(empty)

    asyncio.run(beside_a_running_one())

    assert fetch(empty, "SELECT version_num FROM ecmc.alembic_version") == [migrations.HEAD]


def test_a_foreign_table_in_the_way_is_named_and_left_alone(empty: str) -> None:
    execute(empty, "CREATE SCHEMA ecmc", "CREATE TABLE ecmc.sample (mine int)")

    with pytest.raises(StoreRefused, match=r"ecmc\.sample is in the way"):
        asyncio.run(migrate(empty))

    assert fetch(empty, "SELECT relname FROM pg_class WHERE relnamespace = 'ecmc'::regnamespace") == [
        "sample"
    ]


def test_a_role_without_the_right_gets_one_line_and_nothing_is_half_made(empty: str) -> None:
    execute(empty, "DROP ROLE IF EXISTS poor", "CREATE ROLE poor LOGIN PASSWORD 'poor'")
    address = empty.split("@")[1]

    with pytest.raises(StoreRefused, match="lacks a right: permission denied for database"):
        asyncio.run(migrate(f"postgresql://poor:poor@{address}"))

    assert fetch(empty, "SELECT nspname FROM pg_namespace WHERE nspname IN ('ecmc', 'board')") == []
    execute(empty, "DROP ROLE poor")


def test_a_wrong_password_is_refused_and_a_silent_server_is_away(empty: str) -> None:
    with pytest.raises(StoreRefused, match="does not let us in"):
        asyncio.run(migrate(f"postgresql://ecmc:wrong@{empty.split('@')[1]}"))

    with pytest.raises(StoreUnavailable, match="does not answer"):
        asyncio.run(migrate("postgresql://ecmc:x@127.0.0.1:1/ecmc"))


def test_a_server_too_old_is_refused_by_its_version_and_nothing_is_made(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "OLDEST_SERVER", 990000)

    with pytest.raises(StoreRefused, match=r"the server is PostgreSQL \d+\.\d+, 99 or newer is wanted"):
        asyncio.run(migrate(empty))

    assert fetch(empty, "SELECT nspname FROM pg_namespace WHERE nspname IN ('ecmc', 'board')") == []


def test_a_newer_schema_is_left_to_a_newer_ecmc(database: str) -> None:
    execute(database, "UPDATE ecmc.alembic_version SET version_num = '9999'")

    with pytest.raises(StoreRefused, match="schema 9999"):
        asyncio.run(migrate(database))


def test_a_reader_of_boards_sees_the_boards_and_no_table(database: str) -> None:
    execute(
        database,
        "DROP ROLE IF EXISTS viewer",
        "CREATE ROLE viewer LOGIN PASSWORD 'viewer'",
        "SELECT ecmc.grant_boards('viewer')",
    )
    as_viewer = f"postgresql://viewer:viewer@{database.split('@')[1]}"

    assert fetch(as_viewer, "SELECT count(*) FROM board.latest") == [0]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        fetch(as_viewer, "SELECT count(*) FROM ecmc.latest")
    execute(database, "DROP OWNED BY viewer", "DROP ROLE viewer")


def test_time_bucket_cuts_days_and_months_in_the_zone(database: str) -> None:
    cut = "SELECT ecmc.time_bucket({width}, timestamptz '{at}', '{zone}')::text"

    got = [
        fetch(database, cut.format(width=f"interval '{width}'", at=at, zone=zone))[0]
        for width, at, zone in (
            ("1 day", "2026-10-25 20:30:00+00", "Europe/Berlin"),
            ("1 month", "2026-10-31 16:00:00+00", "Asia/Shanghai"),
            ("1 year", "1999-12-31 15:59:59+00", "Asia/Shanghai"),
            ("7 days", "2026-11-22 15:00:00+00", "UTC"),
        )
    ]

    assert got == [
        "2026-10-24 22:00:00+00",  # a day of 25 hours
        "2026-10-31 16:00:00+00",
        "1998-12-31 16:00:00+00",
        "2026-11-16 00:00:00+00",
    ]


def test_newest_values_written_by_an_older_ecmc_are_taken_along(empty: str) -> None:
    asyncio.run(migrate(empty, to="0005"))
    execute(
        empty,
        "INSERT INTO ecmc.point (name, quantity, unit, kind) SELECT 'p' || i, 'q', 'kW', 'gauge'"
        " FROM generate_series(1, 130) AS i",
        "INSERT INTO ecmc.latest SELECT id, timestamptz '2026-10-02Z' + id * interval '1 s', id * 0.5, id % 3,"
        " '2026-10-01Z' FROM ecmc.point WHERE id <> 70",
    )
    before = fetch(empty, "SELECT latest::text FROM ecmc.latest ORDER BY point_id")

    asyncio.run(migrate(empty))

    assert len(before) == 129
    assert fetch(empty, "SELECT latest::text FROM ecmc.latest ORDER BY point_id") == before
    assert fetch(empty, "SELECT point FROM board.latest WHERE value = 65") == ["p130"]
