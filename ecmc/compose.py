"""Which roles run in this process, wired to which store.

The order of things: take the port, own the data folder, bring the database up,
migrate it, open the spool, then start everything under one parent. Stopping
runs the other way round, so that nothing is asked of a part that is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from api.app import create_app
from api.deps import Services
from api.security import Auth, auth_of, refuse_open_door
from api.server import bind, serve
from collector.run import CONNECTS_AT_ONCE, Collectors, make_driver
from collector.spool import Spool
from collector.supervise import forward
from core.alerts import Alarms
from core.alerts.log import PostgresAlertLog
from core.alerts.watch import Watch
from core.answers.footprint import FootprintBook
from core.answers.inventory import Inventories
from core.answers.ledger import LedgerDay, counter_ledger
from core.answers.period import Periods
from core.answers.reconciliation import ReconciledEdge, reconciliation
from core.answers.shares import Shares
from core.bus import COMMITTED, LIVE, LiveUpdate, LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import SystemClock
from core.compute.engine import Engine
from core.compute.live import Live
from core.compute.pipeline import Pipeline
from core.energy.register import MeterEvent
from core.errors import EcmcError, StoreTrouble, StoreUnavailable
from core.files.inbox import Inbox
from core.health import Health, Status
from core.metrics import DISK_FREE_BYTES, count_written
from core.plant.model import Plant
from core.plant.watched import DISK
from core.proof.explain import Explanations
from core.proof.sealing import Sealing
from core.quality import GOOD
from core.registers.meter_event import points_of
from core.registers.monte_carlo import MonteCarloRuns
from core.registers.shelf import Registers
from core.samples import SampleBatch, batch_of_rows
from core.store.claim import EngineClaim
from core.store.embedded import EmbeddedServer
from core.store.factor_use import factors_used
from core.store.postgres import PostgresStore
from core.store.room import Level, Room
from core.store.seam import WriteReport
from core.store.upkeep import keep_store
from ecmc.folder import archive_in, data_folder
from ecmc.opened import plant_engine
from ecmc.reload import PlantWatch

log = logging.getLogger(__name__)

LIVE_EVERY_S = 1.0
WATCH_EVERY_S = 2.0
SPACE_EVERY_S = 5.0


async def run_plant(
    plant: Plant,
    data: Path | None,
    dsn: str | None,
    host: str,
    port: int,
    ready: Callable[[str], None] | None = None,
    begin: Callable[[PostgresStore, Engine], Awaitable[None]] | None = None,
    parquet: bool = False,
) -> None:
    """Collect, compute and serve until SIGTERM or SIGINT.

    Args:
        ready: Told the address once all is up.
        begin: Awaited with the open store before anything is collected.
        parquet: From now on, keep closed months of samples as files.
    """
    auth = auth_of(os.environ.get("ECMC_AUTH"))
    refuse_open_door(host, auth)
    engine = Engine(plant, FactorLibrary.for_plant(plant.folder))
    listening = bind(host, port)
    with contextlib.closing(listening), _stop_signal() as stop:
        async with AsyncExitStack() as stack:
            folder = data_folder(plant, data)
            server: EmbeddedServer | None = None
            if dsn is None:
                server = EmbeddedServer(folder)
                dsn = await asyncio.to_thread(server.start)
                stack.callback(server.stop)
            store = await _reachable_store(dsn, plant, stop)
            if store is None:
                return
            stack.push_async_callback(store.close)
            store.archive = archive_in(folder)
            room = Room(folder)
            store.room = room if server is not None else None
            if parquet:
                store.archive.begin()
            if begin is not None:
                await begin(store, engine)
            spool = await stack.enter_async_context(
                Spool(folder / "spool", keep_free_bytes=room.short_bytes // 2)
            )
            registers, engine = await plant_engine(plant, store)
            site = Site(plant, engine, registers, store, spool, server, folder, room)
            await site.run(listening, auth, stop, ready)


@contextlib.contextmanager
def _stop_signal() -> Iterator[asyncio.Event]:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    try:
        yield stop
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


async def _reachable_store(dsn: str, plant: Plant, stop: asyncio.Event) -> PostgresStore | None:
    """The store, once its database answers; says once that it is waited for. None: told to stop before."""
    said = False
    while not stop.is_set():
        try:
            return await PostgresStore.open(dsn, plant)
        except StoreUnavailable as why:
            if not said:
                log.warning("waiting for the database: %s", why)
                said = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), WATCH_EVERY_S)
    return None


class Site:
    """The parts of one running plant and the tasks that move them."""

    def __init__(
        self,
        plant: Plant,
        engine: Engine,
        registers: Registers,
        store: PostgresStore,
        spool: Spool,
        server: EmbeddedServer | None,
        folder: Path,
        room: Room,
    ) -> None:
        self._room = room
        self._store = store
        self._spool = spool
        self._server = server
        self._clock = SystemClock()
        self._bus = LocalBus()
        self._health = Health()
        self._inbox = Inbox(folder / "inbox", lambda: self._plant, self._write, self._health)
        self._live = Live(engine)
        self._newest_live: LiveUpdate | None = None
        self._claim = EngineClaim(store.pool)
        self._pipeline = Pipeline(engine, store, self._bus, self._health, self._clock)
        connects = asyncio.Semaphore(CONNECTS_AT_ONCE)
        make = partial(make_driver, learned=folder / "learned", connects=connects)
        self._collectors = Collectors(plant, spool, self._health, make, connects)
        self._alarms = Alarms(plant, PostgresAlertLog(store.pool), self._bus, self._clock)
        self._monte_carlo = MonteCarloRuns(store.pool, self._clock)
        self._answer_for(plant, engine, registers)
        self._explanations = Explanations(self._pipeline.history, store)
        self._figures = Watch(store, lambda: self._pipeline.history, self._clock, self._alarms.observe)
        self._sealing = Sealing(store, self._pipeline.history, self._clock)

    def _answer_for(self, plant: Plant, engine: Engine, registers: Registers) -> None:
        """Answer questions about this plant from here on."""
        store = self._store
        self._plant, self._registers = plant, registers
        self._periods = Periods(plant, store, engine.library, registers)
        self._inventories = Inventories(
            plant, store, self._periods, registers, partial(factors_used, store.pool)
        )
        self._footprints = FootprintBook(plant, store, registers, self._clock.now_ns)

    async def run(
        self,
        listening: socket.socket,
        auth: Auth | None,
        stop: asyncio.Event,
        ready: Callable[[str], None] | None,
    ) -> None:
        await self._alarms.restore()
        await self._monte_carlo.resume()
        services = Services(
            plant=lambda: self._plant,
            store=self._store,
            bus=self._bus,
            health=self._health,
            alarms=self._alarms,
            clock=self._clock,
            devices=self._collectors.devices,
            live=lambda: self._newest_live,
            indicators=lambda *asked: self._inventories.indicators(*asked),
            inventories=lambda: self._inventories,
            green_ledger=lambda *asked: self._periods.ledger(*asked),
            green_hours=lambda *asked: self._periods.by_hour(*asked),
            counter_ledger=self._counter_ledger,
            footprints=lambda *asked: self._footprints.of(*asked),
            library=lambda: self._registers.library,
            registers=lambda: self._registers,
            factors_changed=self._factors_changed,
            event_changed=self._event_changed,
            boot=secrets.token_hex(4),
            auth=auth,
            explain=self._explanations,
            monte_carlo=self._monte_carlo,
            shares=Shares(self._store, self._pipeline.history),
            reconciliation=self._reconciliation,
        )
        self._health.report("store", Status.OK)
        parts = {
            "pipeline": self._compute(),
            "forward": forward(self._spool, self._write, self._health),
            "inbox": self._inbox.run(),
            "live": self._run_live(),
            "alarms": self._alarms.run(),
            "watch": self._watch(),
            "plant": PlantWatch(self._plant, self._health, self._adopt).run(),
            "figures": self._figures.run(),
            "seal": self._sealing.run(self._claim.held),
            "upkeep": keep_store(self._store, self._clock, lambda: self._plant.retention, self._health),
            "space": self._watch_space(),
            "http": serve(create_app(services), listening),
        }
        tasks = [asyncio.create_task(work, name=name) for name, work in parts.items()]
        ended = asyncio.create_task(stop.wait(), name="stop")
        try:
            await self._collectors.start()
            if ready is not None:
                ready("http://{}:{}/".format(*listening.getsockname()[:2]))
            done, _ = await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in done - {ended}:
                task.result()  # a part that ends by itself has failed: say why
        finally:
            await self._collectors.stop()
            for task in (*tasks, ended):
                task.cancel()
            await asyncio.gather(*tasks, ended, return_exceptions=True)
            with contextlib.suppress(EcmcError):
                await self._alarms.flush()

    async def _compute(self) -> None:
        """Drain the ledger, as long as no other process does."""
        async with self._claim:
            await self._pipeline.run(self._claim.held)

    async def _write(self, batch: SampleBatch) -> WriteReport:
        report = await self._store.write(batch)
        count_written(report)
        self._bus.publish(COMMITTED, batch)
        return report

    async def _adopt(self, plant: Plant) -> None:
        """Take another plan over while everything runs; what cannot be is raised before anything has changed."""
        registers, engine = await plant_engine(plant, self._store)
        drivers = self._collectors.drivers_for(plant)
        await self._store.adopt(plant)
        self._pipeline.adopt(engine)
        self._live.adopt(engine)
        self._alarms.adopt(plant)
        self._answer_for(plant, engine, registers)
        await self._collectors.swap(plant, drivers)

    async def _factors_changed(self, start_ns: int, end_ns: int) -> None:
        await self._knowledge_changed()
        await self._restate(start_ns, end_ns, None, "factor")

    async def _event_changed(self, meter: str, event: MeterEvent) -> None:
        """Another ratio holds from the event on; else what lies between the readings around it changes."""
        await self._knowledge_changed()
        end_ns = event.time_ns if event.ratio is None else self._clock.now_ns()
        await self._restate(event.time_ns, end_ns, points_of(meter, self._plant), "event")

    async def _knowledge_changed(self) -> None:
        """Compute with factors and meter events as they stand now."""
        events = await self._registers.meter_events.known()
        engine = Engine(self._plant, await self._registers.load(), events)
        self._pipeline.adopt(engine)
        self._live.adopt(engine)

    async def _restate(self, start_ns: int, end_ns: int, points: Sequence[str] | None, reason: str) -> None:
        """Have the part of [start, end] that has its samples still computed again."""
        span = await self._store.span()
        if span is None:
            return
        kept_ns = await self._store.computable_from(self._pipeline.history.current.points)
        start_ns, end_ns = max(start_ns, span[0], kept_ns or 0), min(end_ns, self._clock.now_ns())
        if start_ns <= end_ns:
            await self._store.mark_dirty(start_ns, end_ns, points, reason)

    async def _reconciliation(self, start_ns: int, end_ns: int) -> list[ReconciledEdge]:
        engine = await self._pipeline.history.engine_at(start_ns)
        return await reconciliation(engine, self._store, start_ns, end_ns)

    async def _counter_ledger(self, point: str, start_ns: int, end_ns: int) -> list[LedgerDay]:
        return await counter_ledger(self._pipeline.history.current, self._store, point, start_ns, end_ns)

    async def _run_live(self) -> None:
        """Follow what is committed; a live picture each second."""
        loop = asyncio.get_running_loop()
        with self._bus.subscribe(COMMITTED) as news:
            due = loop.time()
            while True:
                due = max(due + LIVE_EVERY_S, loop.time())
                while (wait_s := due - loop.time()) > 0:
                    with contextlib.suppress(TimeoutError):
                        self._live.observe(await asyncio.wait_for(news.get(), wait_s))
                self._newest_live = self._live.update(self._clock.now_ns(), self._pipeline.stocks_now())
                self._figures.heard(self._newest_live)
                self._bus.publish(LIVE, self._newest_live)

    async def _watch_space(self) -> None:
        """Say early that the disk will be full: in the health, as an alarm and as a metric."""
        while True:
            level = self._room.look()
            DISK_FREE_BYTES.set(self._room.free_bytes)
            status = Status.OK if level is Level.PLENTY else Status.DEGRADED
            self._health.report("space", status, self._room.words())
            self._alarms.observe(batch_of_rows([(DISK, self._clock.now_ns(), float(level), GOOD)]))
            await asyncio.sleep(SPACE_EVERY_S)

    async def _watch(self) -> None:
        """Keep an eye on the database; our own server is started again when it died."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                await self._store.ready()
            except StoreTrouble as why:
                self._health.report("store", Status.DOWN, str(why))
                if self._server is not None:
                    with contextlib.suppress(EcmcError):
                        await asyncio.to_thread(self._server.revive)
            else:
                self._health.report("store", Status.OK)
