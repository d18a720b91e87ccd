"""What a store needs done while it runs: gauges rolled up, old samples compressed or dropped.

One scheduler for every kind of server, ours; the database runs nothing unseen.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from core.clock import Clock
from core.errors import StoreUnavailable
from core.samples import NS_PER_S
from core.store.postgres import PostgresStore

log = logging.getLogger(__name__)

_DAY_NS = 86_400 * NS_PER_S
_REFRESH_EVERY_S = 60.0
_RETAIN_EVERY = 60  # refreshes


@dataclass(frozen=True, slots=True)
class Retention:
    """How long raw samples stay. Results stay for ever."""

    feeding_days: int = 3660  # what meters an edge, which results are proven with, and what people brought in
    other_days: int = 30
    compress_after_days: int = 14  # late data is rare by then


async def keep_store(store: PostgresStore, clock: Clock, retention: Retention) -> None:
    """Do it until cancelled; a database that is away is tried again the next time."""
    rounds = 0
    while True:
        await asyncio.sleep(_REFRESH_EVERY_S)
        try:
            await store.refresh_gauges()
            if rounds % _RETAIN_EVERY == 0:
                await tidy(store, clock.now_ns(), retention)
            rounds += 1
        except StoreUnavailable as why:
            log.warning("store upkeep put off: %s", why)


async def tidy(store: PostgresStore, now_ns: int, retention: Retention) -> None:
    """Drop and compress what is old enough; where closed months are kept in files, only what is in them."""
    until_ns = now_ns
    if store.archive is not None and store.archive.is_kept():
        until_ns = await store.archive.keep_up(store.pool)
    dropped = await store.retain(
        min(until_ns, now_ns - retention.other_days * _DAY_NS),
        min(until_ns, now_ns - retention.feeding_days * _DAY_NS),
    )
    chunks = await store.compress(now_ns - retention.compress_after_days * _DAY_NS)
    if dropped or chunks:
        log.info("store tidied", extra={"rows_dropped": dropped, "chunks_compressed": chunks})
