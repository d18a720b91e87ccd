"""A small plant behind the real app: a store in memory, a clock set by hand, a server where one is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import numpy as np
import pytest

from api.app import create_app
from api.deps import Services
from api.security import Auth
from api.server import bind, serve
from core.alerts import Alarms, AlertEvent
from core.bus import LiveNode, LiveUpdate, LocalBus
from core.carbon.factors import FactorLibrary
from core.clock import parse_rfc3339
from core.errors import StoreUnavailable
from core.health import Health, Status
from core.plant.model import (
    AlertKind,
    AlertRule,
    Connection,
    Device,
    Edge,
    Kind,
    Label,
    Node,
    NodeKind,
    Origin,
    Plant,
    Point,
    PointMeter,
    Protocol,
    RemainderMeter,
    Role,
)
from core.samples import NS_PER_S, SampleBatch, batch_of_rows, empty_batch
from core.store.seam import Conflict, Correction, LatestColumns, Series, WriteReport

NOW = "2026-10-05T04:00:00Z"


def small_plant() -> Plant:
    """Grid and roof feed a bus, the bus feeds two loads."""
    edges = [("e-grid", "grid", "main"), ("e-roof", "roof", "main"), ("e-press", "main", "press")]
    meters = {
        name: PointMeter(f"{name}.register", Role.REGISTER, power_point=f"{name}.power") for name, *_ in edges
    }
    return Plant(
        id="demo",
        name=Label("示范工厂", "Demo plant"),
        zone=ZoneInfo("Asia/Shanghai"),
        region="CN-CQ",
        base_interval_s=60,
        method_sets=("zero-carbon-factory", "ghg-protocol"),
        areas=(),
        connections=(Connection("mb1", Protocol.MODBUS_TCP, {}),),
        devices=tuple(
            Device(name, "mb1", "some_meter", (f"{name}.register", f"{name}.power")) for name in meters
        ),
        points=tuple(
            point
            for name in meters
            for point in (
                Point(f"{name}.register", "active_energy_import", "kWh", Kind.COUNTER, name),
                Point(f"{name}.power", "active_power", "kW", Kind.GAUGE, name),
            )
        ),
        nodes=(
            Node(
                "grid", NodeKind.SOURCE, "electricity", Origin.PURCHASED, "grid", name=Label("电网", "Grid")
            ),
            Node("roof", NodeKind.SOURCE, "electricity", Origin.OWN, 0.0, name=Label("屋顶光伏", "Roof PV")),
            Node("main", NodeKind.BUS, "electricity", name=Label("母线", "Main bus")),
            Node("press", NodeKind.LOAD, "electricity", name=Label("冲压", "Press shop")),
            Node("rest", NodeKind.LOAD, "electricity", name=Label("其余", "Rest")),
        ),
        edges=(
            *(Edge(name, source, target, meters[name], "electricity") for name, source, target in edges),
            Edge("e-rest", "main", "rest", RemainderMeter("main"), "electricity"),
        ),
        alerts=(AlertRule("grid-high", AlertKind.LIMIT, "e-grid.power", high=100.0, severity=700),),
        folder="",
        fingerprint="f",
    )


class MemoryStore:
    """As much of a store as the API asks for. Series answer what the test puts in."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], tuple[float, int]] = {}
        self.corrections: list[Correction] = []
        self.away = False
        self.asked: dict[str, tuple[Any, ...]] = {}
        self.answers: dict[str, Series | Callable[..., Series]] = {}

    async def write(self, batch: SampleBatch, correction: Correction | None = None) -> WriteReport:
        self._check()
        accepted = repeated = corrected = 0
        conflicts = []
        columns = (batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist())
        for name, time_ns, value, status in zip(*columns, strict=True):
            stored = self.rows.get((name, time_ns))
            if stored == (value, status):
                repeated += 1
                continue
            if stored is not None and correction is None:
                conflicts.append(Conflict(name, time_ns, stored[0], stored[1], value, status))
                continue
            if stored is not None and correction is not None:
                corrected += 1
                self.corrections.append(correction)
            else:
                accepted += 1
            self.rows[name, time_ns] = (value, status)
        return WriteReport(
            accepted, repeated, corrected=corrected, conflicts=tuple(conflicts), conflict_count=len(conflicts)
        )

    async def latest(self, points: Sequence[str] | None = None) -> LatestColumns:
        self._check()
        newest: dict[str, int] = {}
        for name, time_ns in self.rows:
            newest[name] = max(time_ns, newest.get(name, 0))
        names = [name for name in (points or newest) if name in newest]
        cells = [self.rows[name, newest[name]] for name in names]
        return LatestColumns(
            tuple(names),
            np.array([newest[name] for name in names], dtype=np.int64),
            np.array([value for value, _ in cells], dtype=np.float64),
            np.array([status for _, status in cells], dtype=np.int16),
        )

    async def samples(
        self, point: str, start_ns: int, end_ns: int, limit: int, after_ns: int | None = None
    ) -> SampleBatch:
        self._check()
        rows = sorted(
            (name, time_ns, *cell)
            for (name, time_ns), cell in self.rows.items()
            if name == point and start_ns <= time_ns < end_ns and (after_ns is None or time_ns > after_ns)
        )
        return batch_of_rows(rows[:limit]) if rows else empty_batch()

    async def energy(self, *asked: Any) -> Series:
        return self._series("energy", asked)

    async def emissions(self, *asked: Any) -> Series:
        return self._series("emissions", asked)

    async def intensity(self, *asked: Any) -> Series:
        return self._series("intensity", asked)

    async def balance(self, *asked: Any) -> Series:
        return self._series("balance", asked)

    def _series(self, what: str, asked: tuple[Any, ...]) -> Series:
        self._check()
        self.asked[what] = asked
        answer = self.answers.get(what, Series((), np.array([], dtype=np.int64), {}))
        return answer if isinstance(answer, Series) else answer(*asked)

    def _check(self) -> None:
        if self.away:
            raise StoreUnavailable("the database does not answer")


class NoLog:
    async def append(self, events: Sequence[AlertEvent]) -> None: ...

    async def last(self) -> list[AlertEvent]:
        return []


@dataclass
class HandClock:
    time_ns: int = parse_rfc3339(NOW)

    def now_ns(self) -> int:
        return self.time_ns


@dataclass
class State:
    up: bool
    since_ns: int
    detail: str
    counters: Mapping[str, int]
    warning: str = ""
    identity: Mapping[str, str] = field(default_factory=dict)


class AllVerified:
    """What makes inventories, of a plant whose every factor is verified."""

    async def unverified(self, *asked: object) -> dict[int, bool]:
        return {}


@dataclass
class World:
    """Everything behind the app, at hand for a test."""

    plant: Plant = field(default_factory=small_plant)
    store: MemoryStore = field(default_factory=MemoryStore)
    bus: LocalBus = field(default_factory=LocalBus)
    health: Health = field(default_factory=Health)
    clock: HandClock = field(default_factory=HandClock)
    devices: dict[str, State] = field(default_factory=dict)
    live: LiveUpdate | None = None
    auth: Auth | None = None
    boot: str = "b1"

    def __post_init__(self) -> None:
        self.health.report("store", Status.OK)
        self.alarms = Alarms(self.plant, NoLog(), self.bus, self.clock)

    def services(self) -> Services:
        async def indicators(start_ns: int, end_ns: int, method_set: str) -> list[dict[str, object]]:
            hours = (end_ns - start_ns) / NS_PER_S / 3600
            return [{"indicator": "hours", "value": hours, "unit": "h", "method_set": method_set}]

        return Services(
            plant=lambda: self.plant,
            store=self.store,  # type: ignore[arg-type]
            bus=self.bus,
            health=self.health,
            alarms=self.alarms,
            clock=self.clock,
            devices=lambda: self.devices,
            live=lambda: self.live,
            indicators=indicators,
            inventories=AllVerified,  # type: ignore[arg-type]
            green_ledger=None,  # type: ignore[arg-type]  # what people keep is asked of a real store, in tests/registers
            green_hours=None,  # type: ignore[arg-type]
            library=FactorLibrary.shipped,
            registers=lambda: None,  # type: ignore[arg-type]
            factors_changed=None,  # type: ignore[arg-type]
            counter_ledger=None,  # type: ignore[arg-type]
            footprints=None,  # type: ignore[arg-type]
            event_changed=None,  # type: ignore[arg-type]
            boot=self.boot,
            auth=self.auth,
        )

    def client(self, base_url: str = "http://127.0.0.1") -> httpx.AsyncClient:
        transport = httpx.ASGITransport(create_app(self.services()), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=base_url)

    def picture(self, grid_kw: float) -> LiveUpdate:
        nodes = tuple(LiveNode(node.id, grid_kw, grid_kw * 0.5, 0.5) for node in self.plant.nodes)
        return LiveUpdate(self.clock.now_ns(), nodes, {"e-grid": grid_kw, "e-rest": None})

    def changed(self, **changes: Any) -> World:
        return replace(self, **changes)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def client(world: World) -> AsyncIterator[httpx.AsyncClient]:
    async with world.client() as client:
        yield client


@pytest.fixture
def serving() -> Callable[[World], Any]:
    """`async with serving(world) as base_url`: the app on a real socket."""

    @asynccontextmanager
    async def start(world: World, port: int = 0) -> AsyncIterator[str]:
        listening = bind("127.0.0.1", port)
        task = asyncio.create_task(serve(create_app(world.services()), listening))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            task.cancel()
            await asyncio.wait([task], timeout=8)

    return start
