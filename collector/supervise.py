"""Keeps every connection collecting, and the spool draining, whatever fails.

One task a connection opens its driver and pumps what it reads into the spool;
one device's trouble stays its own. `forward` empties the spool into the
database. Neither gives a sample up: a driver keeps what the disk will not take,
the spool keeps what the database will not take, and both say so in the health.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from collector.driver import Driver
from collector.spool import Spool
from core.bus.feed import Feed, P
from core.errors import DeviceRefused, DeviceUnreachable, EcmcError
from core.health import Health, Status
from core.samples import SampleBatch
from core.store.seam import WriteReport

log = logging.getLogger(__name__)

WRITE_ROWS = 20_000
LINGER_S = 0.15
RETIRE_S = 2.0  # how long an ending driver may take over the batch it is at
LATE_S = 60.0  # a backlog older than this shows in the health


@dataclass(slots=True)
class Backoff:
    """Waits with full jitter, so that five hundred devices behind one switch do not come back in step.

    A failure after `healthy_s` without one starts again at the base.
    """

    base_s: float = 1.0
    cap_s: float = 60.0
    healthy_s: float = 30.0
    failures: int = 0

    def next_s(self, worked_s: float = 0.0) -> float:
        """How long to wait after a failure that came after `worked_s` of work."""
        if worked_s >= self.healthy_s:
            self.failures = 0
        ceiling_s = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, 16))
        self.failures += 1
        return random.uniform(0.0, ceiling_s)


class Link:
    """One connection under supervision: its driver, and whether it is open."""

    def __init__(
        self,
        driver: Driver,
        spool: Spool,
        health: Health,
        connects: asyncio.Semaphore,
        backoff: Backoff | None = None,
        unreached: Callable[[], SampleBatch] | None = None,
    ) -> None:
        """`unreached`: what to keep where the connection cannot be made, once, until it can."""
        self.driver = driver
        self._unreached = unreached
        self._spool = spool
        self._health = health
        self._connects = connects
        self._backoff = backoff or Backoff()
        self._trouble: str | None = "connecting"
        self._kept = asyncio.Event()  # set whenever a batch is on disk and nothing is under way
        self._retiring = False

    async def run(self) -> None:
        """Collect until cancelled."""
        while True:
            opened_s: float | None = None
            try:
                async with AsyncExitStack() as stack:
                    async with self._connects:
                        await stack.enter_async_context(self.driver)
                    opened_s = time.monotonic()
                    self._unreached = None  # from here on the driver speaks for its points
                    self._say(None)
                    while not self._retiring:
                        batch = await self.driver.read()
                        await self._keep(batch)
                        await self.driver.stored()
                        self._kept.set()
                    return
            except DeviceUnreachable as why:
                self._say(str(why))
            except DeviceRefused as why:  # heals only by people, so there is no hurry
                self._say(str(why))
                self._backoff.failures = max(self._backoff.failures, 6)
            except EcmcError as why:
                self._say(str(why))
            except Exception as why:
                log.exception("driver failed", extra={"connection": self.driver.name})
                self._say(f"{type(why).__name__}: {why}")
            if self._unreached is not None:
                unreached, self._unreached = self._unreached(), None
                if len(unreached):
                    await self._keep(unreached)
            worked_s = time.monotonic() - opened_s if opened_s is not None else 0.0
            await asyncio.sleep(self._backoff.next_s(worked_s))

    async def retire(self) -> None:
        """End after the batch it is at; where none comes soon there is nothing to lose, and the caller cancels."""
        if self._trouble is not None:
            return
        self._retiring = True
        self._kept.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._kept.wait(), RETIRE_S)

    def report(self) -> None:
        """Say how the connection and its devices are."""
        part = f"collector:{self.driver.name}"
        if self._trouble is not None:
            self._health.report(part, Status.DEGRADED, self._trouble)
            return
        devices = self.driver.devices()
        down = [name for name, device in devices.items() if not device.up]
        trouble = sorted({device.warning for device in devices.values() if device.warning})
        if down:
            named = ", ".join(down[:5]) + (" …" if len(down) > 5 else "")
            trouble.insert(0, f"{len(down)} of {len(devices)} devices down: {named}")
        if trouble:
            more = f"; and {len(trouble) - 5} more" if len(trouble) > 5 else ""
            self._health.report(part, Status.DEGRADED, "; ".join(trouble[:5]) + more)
        else:
            self._health.report(part, Status.OK, f"{len(devices)} devices")

    def _say(self, trouble: str | None) -> None:
        self._trouble = trouble
        self.report()

    async def _keep(self, batch: SampleBatch) -> None:
        """Into the spool, however long a full disk makes it wait; the driver holds back meanwhile."""
        wait = Backoff(cap_s=10.0)
        while True:
            try:
                await self._spool.append(batch)
            except OSError as why:
                self._health.report("disk", Status.DEGRADED, f"{self._spool.folder}: {why.strerror}")
                await asyncio.sleep(0.1 + wait.next_s())
            else:
                if wait.failures:
                    self._health.report("disk", Status.OK)
                return


async def forward(
    feed: Feed[P],
    write: Callable[[SampleBatch], Awaitable[WriteReport]],
    health: Health,
    backoff: Backoff | None = None,
) -> None:
    """Drain a feed into `write` until cancelled; rows are acknowledged only after the commit.

    A write that raises is tried again with the same rows, for ever: the store's trouble never
    costs a sample. The rows after them are read from the disk meanwhile.
    """
    backoff = backoff or Backoff(cap_s=10.0)
    unknown: set[str] = set()
    _say_depth(feed, health)
    ahead = asyncio.create_task(feed.read(WRITE_ROWS, LINGER_S), name="spool-read")
    try:
        while True:
            batch, position = await ahead
            ahead = asyncio.create_task(feed.read(WRITE_ROWS, LINGER_S), name="spool-read")
            if len(batch):  # nothing is left where all of it was damaged on disk
                report = await _write_surely(batch, write, feed, health, backoff)
            else:
                report = WriteReport()
            await _acknowledge(feed, position)
            _say_depth(feed, health)
            news = set(report.unknown_points) - unknown
            if news:
                log.warning("points not in the plant, samples left out", extra={"points": sorted(news)[:20]})
                unknown |= news
            if report.conflict_count:
                first = report.conflicts[0].point if report.conflicts else "-"
                log.warning("samples in conflict", extra={"count": report.conflict_count, "first": first})
    finally:
        ahead.cancel()
        await asyncio.gather(ahead, return_exceptions=True)


async def _write_surely(
    batch: SampleBatch,
    write: Callable[[SampleBatch], Awaitable[WriteReport]],
    feed: Feed[P],
    health: Health,
    backoff: Backoff,
) -> WriteReport:
    while True:
        try:
            report = await write(batch)
        except EcmcError as why:
            reason = str(why)
        except Exception as why:
            if backoff.failures == 0:
                log.exception("store write failed")
            reason = f"{type(why).__name__}: {why}"
        else:
            backoff.failures = 0
            return report
        health.report("spool", Status.DEGRADED, f"{feed.depth_rows} rows wait for the store: {reason}")
        await asyncio.sleep(backoff.next_s())


async def _acknowledge(feed: Feed[P], position: P) -> None:
    acknowledging = asyncio.ensure_future(feed.ack(position))
    try:
        await asyncio.shield(acknowledging)
    except asyncio.CancelledError:
        await acknowledging  # committed rows need not come again
        raise


def _say_depth(feed: Feed[P], health: Health) -> None:
    oldest_ns, lost = feed.oldest_ns, feed.lost_rows
    detail = f"{feed.depth_rows} rows wait" + (f", {lost}" if lost else "")
    late = (
        oldest_ns is not None and time.time_ns() - oldest_ns > LATE_S * 1e9 and feed.depth_rows > WRITE_ROWS
    )
    health.report("spool", Status.DEGRADED if late or lost else Status.OK, detail)
