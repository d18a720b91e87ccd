"""Of several processes on one database one computes, and another takes over however it ends."""

from __future__ import annotations

import asyncio
from typing import Any

from core.store.claim import EngineClaim
from core.store.postgres import PostgresStore


async def test_the_claim_is_one_processs_and_passes_on_when_it_lets_go_or_its_connection_dies(
    database: str, plant: Any
) -> None:
    mine, theirs = [await PostgresStore.open(database, plant) for _ in range(2)]
    async with EngineClaim(theirs.pool) as other:
        async with EngineClaim(mine.pool) as claim:
            held = await claim.held(), await other.held(), await claim.held()
        let_go = await other.held()

    async with EngineClaim(mine.pool) as claim, EngineClaim(theirs.pool) as other:
        first = await claim.held()
        await theirs.pool.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        async with asyncio.timeout(10):
            while not await other.held():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while await claim.held():  # noqa: ASYNC110 - the news of its connection's end is on its way
                await asyncio.sleep(0.01)

    assert held == (True, False, True)
    assert let_go
    assert first
    await mine.close()
    await theirs.close()


async def test_a_connection_lent_again_holds_no_claim(database: str, plant: Any) -> None:
    """Connections go back as they are: what holds longer than a transaction has to be let go of."""
    store = await PostgresStore.open(database, plant)

    for _ in range(3):
        async with EngineClaim(store.pool) as claim:
            assert await claim.held()

    locks = await store.pool.fetchval(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    await store.close()
    assert locks == 0
