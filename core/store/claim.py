"""One engine a database: who holds the claim drains the ledger, everybody else waits for it.

The claim is a PostgreSQL advisory lock on a connection of its own, so it ends
with the process that held it, however that ends.
"""

from __future__ import annotations

import contextlib
from types import TracebackType
from typing import Any, Self

import asyncpg

from core.store.refusal import refusals

CLAIM = 0x65636D63  # "ecmc"


class EngineClaim:
    """`async with EngineClaim(pool) as claim: if await claim.held(): …`"""

    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool
        self._connection: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def held(self) -> bool:
        """Whether the claim is ours now; takes it where it is free. A claim lost with its connection is noticed."""
        with refusals():
            if self._connection is not None:
                if self._is_open():
                    return True
                await self._let_go()
            connection = await self._pool.acquire(timeout=30)
            try:
                taken = await connection.fetchval("SELECT pg_try_advisory_lock($1)", CLAIM)
            except BaseException:
                connection.terminate()  # whether it holds the claim nobody knows
                await self._pool.release(connection)
                raise
            if not taken:
                await self._pool.release(connection)
                return False
            self._connection = connection
            return True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._let_go()

    def _is_open(self) -> bool:
        try:
            return not self._connection.is_closed()
        except asyncpg.InterfaceError:  # the pool has taken a dead connection back by itself
            return False

    async def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            await connection.execute("SELECT pg_advisory_unlock($1)", CLAIM, timeout=5)
        except Exception:  # a dead connection has let go by itself
            with contextlib.suppress(Exception):
                connection.terminate()
        with contextlib.suppress(Exception):
            await self._pool.release(connection)


async def newest_dirty(pool: asyncpg.Pool[Any]) -> int:
    """Id of the newest row of the dirty ledger; 0 where it is empty."""
    with refusals():
        return int(await pool.fetchval("SELECT coalesce(max(id), 0) FROM ecmc.dirty_range"))


async def is_dirty_up_to(pool: asyncpg.Pool[Any], newest: int) -> bool:
    """Whether a row of the ledger up to that id is still to be computed."""
    with refusals():
        return bool(
            await pool.fetchval("SELECT EXISTS (SELECT FROM ecmc.dirty_range WHERE id <= $1)", newest)
        )
