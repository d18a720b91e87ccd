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
        taken_over = False
        for _ in range(500):
            taken_over = taken_over or await other.held()
            await asyncio.sleep(0 if taken_over else 0.01)
        noticed = await claim.held()

    assert held == (True, False, True)
    assert let_go
    assert first
    assert taken_over
    assert not noticed
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
