"""The runner keeps every connection collecting and gives nothing up, whoever fails."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Self
from zoneinfo import ZoneInfo

import pytest

from collector.driver import DeviceState
from collector.run import CONNECTS_AT_ONCE, Collectors
from collector.spool import Spool
from collector.supervise import Backoff, Link, forward
from core.errors import DeviceRefused, DeviceUnreachable, EcmcError, StoreUnavailable
from core.health import Health, Status
from core.plant.model import Connection, Device, Kind, Label, Plant, Point, Protocol
from core.samples import PointTable, SampleBatch, sample_batch
from core.store.seam import Conflict, WriteReport

TABLE = PointTable(("a", "b"))


class FakeDriver:
    """Hands over what the test puts in; an exception put in is raised."""

    def __init__(self, name: str = "c1") -> None:
        self.name = name
        self.inbox: asyncio.Queue[SampleBatch | Exception] = asyncio.Queue()
        self.refuse_open: Exception | None = None
        self.opened = self.closed = self.stored_calls = 0
        self.down: list[str] = []
        self.warnings: list[str] = []

    async def __aenter__(self) -> Self:
        self.opened += 1
        if self.refuse_open:
            raise self.refuse_open
        return self

    async def read(self) -> SampleBatch:
        item = await self.inbox.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def stored(self) -> None:
        self.stored_calls += 1

    def devices(self) -> Mapping[str, DeviceState]:
        states = {f"{self.name}-d": DeviceState(f"{self.name}-d" not in self.down, 0, "", {})}
        return states | {f"w{n}": DeviceState(True, 0, "", {}, text) for n, text in enumerate(self.warnings)}

    async def __aexit__(self, *exc: object) -> None:
        self.closed += 1


def batch(*values: float) -> SampleBatch:
    return sample_batch(TABLE, [0] * len(values), [int(v) * 1000 for v in values], values)


async def until(what: Callable[[], object], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    async with Spool(tmp_path / "spool", sync_interval_s=0.0) as opened:
        yield opened


@pytest.fixture
async def run_link(spool: Spool) -> AsyncIterator[Callable[[FakeDriver, Health], Link]]:
    tasks: list[asyncio.Task[None]] = []

    def begin(driver: FakeDriver, health: Health) -> Link:
        link = Link(driver, spool, health, asyncio.Semaphore(20), Backoff(base_s=0.01, cap_s=0.05))
        tasks.append(asyncio.create_task(link.run()))
        return link

    yield begin
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_batch_is_called_stored_only_when_it_is_on_disk(
    spool: Spool, run_link: Callable[[FakeDriver, Health], Link]
) -> None:
    driver = FakeDriver()
    run_link(driver, Health())
    driver.inbox.put_nowait(batch(1.0, 2.0))

    await until(lambda: driver.stored_calls)

    assert spool.depth_rows == 2


async def test_a_lost_link_is_closed_opened_again_and_said_in_the_health(
    spool: Spool, run_link: Callable[[FakeDriver, Health], Link]
) -> None:
    driver, health = FakeDriver(), Health()
    run_link(driver, health)
    await until(lambda: driver.opened)
    assert health.parts["collector:c1"].status is Status.OK

    driver.refuse_open = DeviceUnreachable("c1: connection refused")
    driver.inbox.put_nowait(DeviceUnreachable("c1: closed by peer"))
    await until(lambda: driver.opened >= 3)
    assert health.parts["collector:c1"].status is Status.DEGRADED
    assert "connection refused" in health.parts["collector:c1"].detail
    driver.refuse_open = None
    driver.inbox.put_nowait(batch(1.0))
    await until(lambda: driver.stored_calls)

    assert driver.closed == 1
    assert health.parts["collector:c1"].status is Status.OK
    assert spool.depth_rows == 1


async def test_a_driver_that_breaks_stays_its_own_trouble(
    spool: Spool, run_link: Callable[[FakeDriver, Health], Link]
) -> None:
    broken, sound, health = FakeDriver("broken"), FakeDriver("sound"), Health()
    run_link(broken, health)
    run_link(sound, health)

    broken.inbox.put_nowait(KeyError("no such register"))
    await until(lambda: broken.opened >= 2)
    sound.inbox.put_nowait(batch(1.0))
    broken.inbox.put_nowait(batch(2.0))

    await until(lambda: spool.depth_rows == 2)
    assert broken.closed == 1


async def test_a_device_down_shows_as_degraded(run_link: Callable[[FakeDriver, Health], Link]) -> None:
    driver, health = FakeDriver(), Health()
    link = run_link(driver, health)
    await until(lambda: driver.opened)

    driver.down = ["c1-d"]
    link.report()

    assert health.parts["collector:c1"].detail == "1 of 1 devices down: c1-d"
    assert health.status is Status.DEGRADED

    driver.warnings = [f"m{n} is another one" for n in range(6)]
    link.report()

    assert health.parts["collector:c1"].detail == (
        "1 of 7 devices down: c1-d; m0 is another one; m1 is another one; m2 is another one; m3 is another one; "
        "and 2 more"
    )


async def test_a_refusal_is_not_asked_again_in_a_hurry(
    run_link: Callable[[FakeDriver, Health], Link], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, health = FakeDriver(), Health()
    waits: list[float] = []
    monkeypatch.setattr("random.uniform", lambda low, high: waits.append(high) or high)
    driver.refuse_open = DeviceRefused("c1: wrong password")
    link = run_link(driver, health)
    link._backoff.cap_s = 60.0

    await until(lambda: waits)

    assert waits[0] >= 0.01 * 2**6
    assert health.parts["collector:c1"].detail == "c1: wrong password"


async def test_a_full_disk_holds_the_driver_and_loses_nothing(
    spool: Spool,
    run_link: Callable[[FakeDriver, Health], Link],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver, health = FakeDriver(), Health()
    monkeypatch.setattr("random.uniform", lambda low, high: 0.0)

    def no_space(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fdatasync", no_space)
        run_link(driver, health)
        driver.inbox.put_nowait(batch(1.0))
        driver.inbox.put_nowait(batch(2.0))
        await until(lambda: "disk" in health.parts)
        assert health.parts["disk"].status is Status.DEGRADED
        assert driver.inbox.qsize() == 1
        assert driver.stored_calls == 0

    await until(lambda: driver.stored_calls == 2)
    read, _ = await spool.read(10)
    assert read.value.tolist() == [1.0, 2.0]
    assert health.parts["disk"].status is Status.OK


def test_waits_grow_to_the_cap_with_jitter_and_start_again_after_health(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: (low + high) / 2)
    backoff = Backoff()

    waits = [backoff.next_s() for _ in range(8)]

    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.next_s(worked_s=29.0) == 30.0
    assert backoff.next_s(worked_s=30.0) == 0.5


async def test_the_spool_drains_into_the_store_and_is_given_back(spool: Spool) -> None:
    written: list[float] = []

    async def write(rows: SampleBatch) -> WriteReport:
        written.extend(rows.value.tolist())
        return WriteReport(accepted=len(rows))

    health = Health()
    task = asyncio.create_task(forward(spool, write, health))
    for k in range(20):
        await spool.append(batch(float(k)))
    await until(lambda: spool.depth_rows == 0)
    task.cancel()

    assert written == [float(k) for k in range(20)]
    assert health.parts["spool"].status is Status.OK


async def test_a_store_that_is_away_costs_no_sample(spool: Spool) -> None:
    written: list[float] = []
    failures: list[Exception] = [
        StoreUnavailable("connection refused"),
        RuntimeError("what"),
        StoreUnavailable("x"),
    ]

    async def write(rows: SampleBatch) -> WriteReport:
        if failures:
            raise failures.pop(0)
        written.extend(rows.value.tolist())
        return WriteReport(accepted=len(rows))

    health = Health()
    await spool.append(batch(1.0, 2.0))
    task = asyncio.create_task(forward(spool, write, health, Backoff(base_s=0.02, cap_s=0.02)))
    await until(
        lambda: health.parts.get("spool", None) and "wait for the store" in health.parts["spool"].detail
    )
    assert spool.depth_rows == 2
    await until(lambda: spool.depth_rows == 0 and health.parts["spool"].status is Status.OK)
    task.cancel()

    assert written == [1.0, 2.0]


async def test_conflicts_and_unknown_points_do_not_stop_the_spool(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    conflict = Conflict("a", 0, 1.0, 0, 2.0, 0)

    async def write(rows: SampleBatch) -> WriteReport:
        return WriteReport(conflicts=(conflict,), conflict_count=1, unknown_points=("b",))

    def said() -> list[str]:
        return [record.message for record in caplog.records]

    task = asyncio.create_task(forward(spool, write, Health()))
    for k in range(2):
        await spool.append(batch(float(k)))
        await until(lambda k=k: said().count("samples in conflict") == k + 1)
    task.cancel()

    assert spool.depth_rows == 0
    assert said().count("points not in the plant, samples left out") == 1


def plant_of(*connections: str, period_s: float = 1.0) -> Plant:
    return Plant(
        id="t",
        name=Label("测", "t"),
        zone=ZoneInfo("Asia/Shanghai"),
        region="CN",
        base_interval_s=60,
        method_sets=("ghg-protocol",),
        areas=(),
        connections=tuple(Connection(c, Protocol.MODBUS_TCP, {"host": "127.0.0.1"}) for c in connections),
        devices=tuple(
            Device(f"{c}-d", c, None, (f"{c}-d.p",), period_s=period_s if c == "c1" else 1.0)
            for c in connections
        ),
        points=tuple(
            Point(f"{c}-d.p", "active_power_total", "kW", Kind.GAUGE, f"{c}-d") for c in connections
        ),
        nodes=(),
        edges=(),
        alerts=(),
        folder="",
        fingerprint="",
    )


async def test_a_reload_swaps_changed_connections_only(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("collector.supervise.RETIRE_S", 0.05)  # these drivers have nothing to hand over
    made: list[FakeDriver] = []

    def make(plant: Plant, connection: Connection) -> FakeDriver:
        made.append(FakeDriver(connection.id))
        return made[-1]

    health = Health()
    collectors = Collectors(plant_of("c1", "c2", "c3"), spool, health, make)
    await collectors.start()
    await until(lambda: all(driver.opened for driver in made))

    changed = plant_of("c1", "c2", "c4", period_s=5.0)
    await collectors.swap(changed, collectors.drivers_for(changed))
    await until(lambda: all(driver.opened for driver in made))

    assert [driver.name for driver in made] == ["c1", "c2", "c3", "c1", "c4"]
    assert [driver.closed for driver in made] == [1, 0, 1, 0, 0]
    assert sorted(collectors.devices()) == ["c1-d", "c2-d", "c4-d"]
    assert sorted(health.parts) == ["collector:c1", "collector:c2", "collector:c4"]
    await collectors.stop()
    assert [driver.closed for driver in made] == [1, 1, 1, 1, 1]


async def test_only_so_many_connections_are_under_way_at_once(spool: Spool) -> None:
    under_way: list[int] = [0]
    most = 0

    class SlowToConnect(FakeDriver):
        async def __aenter__(self) -> Self:
            nonlocal most
            under_way[0] += 1
            most = max(most, under_way[0])
            await asyncio.sleep(0.01)
            under_way[0] -= 1
            return await super().__aenter__()

    made: list[FakeDriver] = []

    def make(plant: Plant, connection: Connection) -> FakeDriver:
        made.append(SlowToConnect(connection.id))
        return made[-1]

    collectors = Collectors(plant_of(*(f"c{n}" for n in range(50))), spool, Health(), make)
    await collectors.start()
    await until(lambda: all(driver.opened for driver in made))
    await collectors.stop()

    assert most == CONNECTS_AT_ONCE == 20


async def test_a_reload_that_cannot_be_made_changes_nothing(spool: Spool) -> None:
    made: list[FakeDriver] = []

    def make(plant: Plant, connection: Connection) -> FakeDriver:
        if connection.id == "bad":
            raise EcmcError("no driver")
        made.append(FakeDriver(connection.id))
        return made[-1]

    collectors = Collectors(plant_of("c1", "c2"), spool, Health(), make)
    await collectors.start()
    await until(lambda: all(driver.opened for driver in made))

    with pytest.raises(EcmcError, match="no driver"):
        collectors.drivers_for(replace(plant_of("c2", "bad"), id="other"))

    made[0].inbox.put_nowait(batch(1.0))
    await until(lambda: spool.depth_rows == 1)
    assert [made[0].closed, made[1].closed] == [0, 0]
    assert sorted(collectors.devices()) == ["c1-d", "c2-d"]
    await collectors.stop()
