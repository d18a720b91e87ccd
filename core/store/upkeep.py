"""What a store needs done while it runs: gauges rolled up, old samples compressed or dropped.

One scheduler for every kind of server, ours; the database runs nothing unseen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from core.clock import Clock
from core.errors import StoreTrouble
from core.health import Health, Status
from core.plant.model import Retention
from core.samples import NS_PER_S
from core.store.postgres import PostgresStore

log = logging.getLogger(__name__)

PART = "retention"
_DAY_NS = 86_400 * NS_PER_S
REFRESH_EVERY_S = 5.0  # gauges, where that is cheap
_REFRESH_SHARE = 1 / 30  # of the time, where it is not
_REFRESH_AT_LEAST_S = 60.0
_TIDY_EVERY_S = 3600.0
_STAYS_DAYS = 7  # of every point, however little disk there is


async def keep_store(
    store: PostgresStore, clock: Clock, retention: Callable[[], Retention], health: Health
) -> None:
    """Do it until cancelled; a database that is away is tried again the next time."""
    now_s = asyncio.get_running_loop().time
    pause_s, tidied_s = REFRESH_EVERY_S, now_s() - _TIDY_EVERY_S + _REFRESH_AT_LEAST_S  # not while it starts
    while True:
        await asyncio.sleep(pause_s)
        try:
            began_s = now_s()
            await store.refresh_gauges()
            pause_s = min(max(REFRESH_EVERY_S, (now_s() - began_s) / _REFRESH_SHARE), _REFRESH_AT_LEAST_S)
            is_scarce = store.room is not None and store.room.is_scarce
            if now_s() - tidied_s >= (_REFRESH_AT_LEAST_S if is_scarce else _TIDY_EVERY_S):
                over = await tidy(store, clock.now_ns(), retention())
                health.report(PART, Status.DEGRADED if over else Status.OK, over)
                tidied_s = now_s()
        except StoreTrouble as why:
            log.warning("store upkeep put off: %s", why)


async def tidy(store: PostgresStore, now_ns: int, retention: Retention) -> str:
    """Drop and compress what is old enough; where closed months are kept in files, only what is in them.

    Returns:
        What cannot be helped: samples over their share of the disk though nothing more may go; else "".
    """
    until_ns = now_ns
    if store.archive is not None and store.archive.is_kept():
        until_ns = await store.archive.keep_up(store.pool)
    weeks = await store.retain(min(until_ns, now_ns - retention.feeding_days * _DAY_NS))
    rows = 0
    for week in await store.weeks(min(until_ns, now_ns - retention.other_days * _DAY_NS)):
        rows += await store.thin(week)
    over = await _over(store, retention)
    for week in await store.weeks(min(until_ns, now_ns - _STAYS_DAYS * _DAY_NS)):
        if not over:
            break
        if gone := await store.thin(week):
            rows += gone
            over = await _over(store, retention)
    chunks = await store.compress(now_ns - retention.compress_after_days * _DAY_NS)
    if weeks or rows or chunks:
        log.info(
            "store tidied",
            extra={"weeks_dropped": weeks, "rows_dropped": rows, "chunks_compressed": chunks},
        )
    return over


async def _over(store: PostgresStore, retention: Retention) -> str:
    """Why samples have to make room, where they have to."""
    room = store.room
    allowed_gb = retention.disk_gb
    if allowed_gb is None and room is not None:
        allowed_gb = room.total_bytes / 2 / 1e9
    used_gb = await store.raw_bytes() / 1e9
    if allowed_gb is not None and used_gb > allowed_gb:
        return (
            f"samples take {used_gb:.2f} GB, {allowed_gb:.2f} are allowed (retention.disk_gb); what is left meters edges,"
            f" came by import, or is of the last {_STAYS_DAYS} days"
        )
    if room is not None:
        room.look()
        if room.is_scarce:
            return room.words()
    return ""
