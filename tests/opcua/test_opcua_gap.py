"""A link that was gone: one mark, the values of now at once, and what the server kept of the time between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from asyncua import ua

from collector.drivers import opcua_session
from collector.drivers.opcua import OpcuaDriver
from collector.drivers.opcua_decode import CLOCK_TOLERANCE_S, Node
from collector.drivers.opcua_history import across_marks, read_history
from collector.memory import Memory
from collector.spool import Spool
from collector.supervise import Backoff, Link
from core import quality
from core.health import Health
from core.plant.model import OpcuaSource, Plant
from core.samples import NS_PER_S, SampleBatch

LINE = "nsu=urn:plant:line1;s="
VOLUME = {"volume": OpcuaSource(f"{LINE}Volume")}
STORED = {"volume": OpcuaSource(f"{LINE}Stored")}

Rows = list[tuple[str, int, float, int]]


class Kept:
    """Where a supervised driver's samples go."""

    folder = Path()

    def __init__(self) -> None:
        self.rows: Rows = []
        self._news = asyncio.Condition()

    async def append(self, batch: SampleBatch) -> None:
        columns = (batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist())
        async with self._news:
            self.rows += zip(*columns, strict=True)
            self._news.notify_all()

    async def until(self, done: Callable[[Rows], object], within_s: float = 15.0) -> None:
        async with asyncio.timeout(within_s), self._news:
            await self._news.wait_for(lambda: done(self.rows))

    def good(self, point: str = "volume") -> list[float]:
        rows = sorted(
            (time_ns, value) for name, time_ns, value, status in self.rows if name == point and not status
        )
        return [value for i, (_, value) in enumerate(rows) if i == 0 or rows[i - 1][1] != value]

    def marks(self) -> list[int]:
        return [time_ns for _, time_ns, _, status in self.rows if status == quality.BAD_NO_COMMUNICATION]


async def ramp(server: Any, start: int, end: int, step_s: float) -> None:
    for value in range(start, end):
        for name in ("Volume", "Stored"):
            server.set(name, value)
        await asyncio.sleep(step_s)


async def collected(
    plant: Plant, server: Any, line: Any, away_s: float, break_off: str
) -> tuple[Kept, float]:
    """A ramp through an outage of `away_s`, under the supervision of `ecmc run`; how long until values were back."""
    kept = Kept()
    driver = OpcuaDriver(plant, plant.connections[0])
    spool: Spool = kept  # type: ignore[assignment]
    link = Link(driver, spool, Health(), asyncio.Semaphore(1), Backoff(base_s=0.3, cap_s=0.5))
    running = asyncio.create_task(link.run())
    try:
        await kept.until(len)
        ramping = asyncio.create_task(ramp(server, 0, int((away_s + 2.0) / 0.1), 0.1))
        await asyncio.sleep(0.5)
        getattr(line, break_off)()
        await asyncio.sleep(away_s)
        if break_off == "silence":
            line.cut()  # what the black hole swallowed never comes out of it
        line.heal()
        healed_s, healed_ns = time.monotonic(), time.time_ns()
        await kept.until(lambda rows: any(row[1] > healed_ns and row[3] == 0 for row in rows))
        back_s = time.monotonic() - healed_s
        await ramping
        last = int((away_s + 2.0) / 0.1) - 1
        await kept.until(lambda rows: kept.good()[-1:] == [float(last)])
        await asyncio.sleep(0.5)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    for name in ("Volume", "Stored"):
        server.set(name, -7)
    return kept, back_s


async def test_a_cut_of_4_s_loses_nothing_of_a_server_that_keeps_a_history(
    server: Any,
    wire: Callable[[int], Any],
    plant_of: Callable[..., Plant],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("collector.drivers.opcua_history.VALUES_PER_PAGE", 7)
    async with wire(server.port) as line:
        plant = plant_of(line.port, STORED, period_s=0.1, publish_interval_s=0.2, sampling_interval_s=0)
        kept, back_s = await collected(plant, server, line, 4.0, "cut")

    assert kept.good() == [-7.0, *map(float, range(60))]
    assert len(kept.marks()) == 1
    mark_ns = kept.marks()[0]
    after = min(row[1] for row in kept.rows if row[1] > mark_ns)
    assert after - mark_ns <= 1_000  # the value that stood at the mark is known right behind it
    assert back_s < 10.0


async def test_what_came_while_ecmc_was_not_running_is_read_from_the_history(
    server: Any, plant_of: Callable[..., Plant], tmp_path: Path
) -> None:
    plant = plant_of(
        server.port,
        {**STORED, "now": VOLUME["volume"]},
        period_s=0.1,
        publish_interval_s=0.2,
        sampling_interval_s=0,
    )
    kept = Kept()

    async def run_until(done: Callable[[], object]) -> None:
        async with OpcuaDriver(plant, plant.connections[0], learned=tmp_path) as driver, asyncio.timeout(10):
            while not done():
                await kept.append(await driver.read())
                await driver.stored()

    await run_until(lambda: kept.good()[-1:] == [-7.0])
    began_ns = time.time_ns()
    await ramp(server, 0, 8, 0.1)
    ramped = [*map(float, range(8))]
    await run_until(
        lambda: (
            [row[2] for row in sorted(kept.rows) if row[0] == "volume" and row[1] > began_ns][:8] == ramped
        )
    )
    for name in ("Volume", "Stored"):
        server.set(name, -7)


async def test_what_never_reached_the_disk_is_not_remembered_as_kept(
    server: Any, plant_of: Callable[..., Plant], tmp_path: Path
) -> None:
    plant = plant_of(server.port, VOLUME, period_s=0.1, publish_interval_s=0.1, sampling_interval_s=0)
    async with OpcuaDriver(plant, plant.connections[0], learned=tmp_path) as driver, asyncio.timeout(10):
        server.set("Volume", 1)
        while 1.0 not in (await driver.read()).value:
            pass
        await driver.stored()
        kept_ns = time.time_ns()
        await asyncio.sleep(0.5)
        server.set("Volume", -7)
        while -7.0 not in (await driver.read()).value:
            pass

    known_ns = Memory(driver.name, tmp_path).known["complete_ns"]
    assert kept_ns - 6 * NS_PER_S < known_ns < kept_ns - CLOCK_TOLERANCE_S * NS_PER_S


async def test_without_a_history_the_gap_is_marked_and_nothing_is_made_up(
    server: Any, wire: Callable[[int], Any], plant_of: Callable[..., Plant]
) -> None:
    async with wire(server.port) as line:
        plant = plant_of(line.port, VOLUME, period_s=0.1, publish_interval_s=0.2, sampling_interval_s=0)
        kept, back_s = await collected(plant, server, line, 1.5, "cut")

    (mark_ns,) = kept.marks()
    good_ns = [row[1] for row in kept.rows if row[3] == 0]
    silent_ns = min(t for t in good_ns if t > mark_ns) - max(t for t in good_ns if t <= mark_ns)
    assert silent_ns > 1.0 * NS_PER_S
    assert len(kept.good()) < 36
    assert back_s < 10.0


async def test_a_black_hole_is_noticed_marked_once_and_closed_by_the_history(
    server: Any,
    wire: Callable[[int], Any],
    plant_of: Callable[..., Plant],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opcua_session, "WATCHDOG_S", 1.0)
    async with wire(server.port) as line:
        plant = plant_of(
            line.port, STORED, period_s=0.1, publish_interval_s=0.2, sampling_interval_s=0, timeout_s=2.0
        )
        kept, _ = await collected(plant, server, line, 5.0, "silence")

    assert kept.good() == [-7.0, *map(float, range(70))]
    assert len(kept.marks()) == 1


@pytest.mark.soak
async def test_a_black_hole_of_60_s_at_the_usual_settings(
    server: Any, wire: Callable[[int], Any], plant_of: Callable[..., Plant]
) -> None:
    async with wire(server.port) as line:
        plant = plant_of(line.port, STORED, period_s=0.1, publish_interval_s=0.2, sampling_interval_s=0)
        kept, back_s = await collected(plant, server, line, 60.0, "silence")

    assert kept.good() == [-7.0, *map(float, range(620))]
    assert len(kept.marks()) == 1
    assert back_s < 10.0


async def test_history_is_not_asked_for_where_the_plant_says_so(
    server: Any, wire: Callable[[int], Any], plant_of: Callable[..., Plant]
) -> None:
    async with wire(server.port) as line:
        plant = plant_of(
            line.port, STORED, period_s=0.1, publish_interval_s=0.2, sampling_interval_s=0, history=False
        )
        kept, _ = await collected(plant, server, line, 1.5, "cut")

    assert len(kept.good()) < 36


class Historian:
    """A server with five values of each of three nodes, two to a page, and room for one continuation point."""

    def __init__(self) -> None:
        self.services = self
        self.calls = 0

    async def history_read(self, request: ua.HistoryReadParameters) -> list[ua.HistoryReadResult]:
        self.calls += 1
        room, answers = 1, []
        for one in request.NodesToRead:
            at = int(one.ContinuationPoint or b"0")
            result = ua.HistoryReadResult()
            if at + 2 < 5:
                if not room:
                    result.StatusCode = ua.StatusCode(ua.StatusCodes.BadNoContinuationPoints)
                    answers.append(result)
                    continue
                room, result.ContinuationPoint = room - 1, str(at + 2).encode()
            times = [datetime(2026, 3, 2, 0, 0, second, tzinfo=UTC) for second in range(at, min(at + 2, 5))]
            result.HistoryData = ua.HistoryData(
                DataValues=[ua.DataValue(ua.Variant(float(t.second)), SourceTimestamp=t) for t in times]
            )
            answers.append(result)
        return answers


async def test_a_history_in_pages_is_whole_however_few_places_the_server_keeps_for_them() -> None:
    nodes = [Node(f"ns=1;i={i}", [(i, None)], 1.0, 0.0, i) for i in range(3)]
    session: Any = Historian()

    got = [
        (int(handle), number)
        async for page in read_history(session, nodes, 0, 10 * NS_PER_S)
        for handle, number in zip(page.handle, page.number.tolist(), strict=True)
    ]

    assert sorted(got) == [(node, float(value)) for node in range(3) for value in range(5)]
    for node in range(3):
        values = [value for handle, value in got if handle == node]
        assert values == sorted(values)


def test_a_value_is_repeated_behind_a_mark_only_where_the_history_goes_on() -> None:
    before = (0, 1 * NS_PER_S, 5.0, quality.GOOD)
    rows = [(0, 2 * NS_PER_S, 6.0, quality.GOOD), (0, 9 * NS_PER_S, 7.0, quality.GOOD)]
    first, second, third = (int(second * NS_PER_S) for second in (1.5, 4.0, 9.5))

    assert across_marks(before, rows, [first, second, third]) == [
        (0, first + 1000, 5.0, quality.GOOD),
        (0, second + 1000, 6.0, quality.GOOD),
    ]
    assert across_marks(None, rows, [first]) == []
