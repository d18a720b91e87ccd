"""A plant of nothing but points and alarm rules, a clock that is set by hand, a log kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from zoneinfo import ZoneInfo

import pytest

from core.alerts import Alarms, AlertEvent
from core.bus import LocalBus
from core.clock import parse_rfc3339
from core.errors import StoreUnavailable
from core.plant.model import AlertRule, Kind, Label, Plant, Point
from core.quality import GOOD
from core.samples import NS_PER_S, SampleBatch, batch_of_rows

START_NS = parse_rfc3339("2026-10-01T00:00:00Z")


class HandClock:
    def __init__(self) -> None:
        self.time_ns = START_NS

    def now_ns(self) -> int:
        return self.time_ns


class MemoryLog:
    def __init__(self) -> None:
        self.events: list[AlertEvent] = []
        self.away = False

    async def append(self, events: Sequence[AlertEvent]) -> None:
        if self.away:
            raise StoreUnavailable("database away")
        self.events.extend(events)

    async def last(self) -> list[AlertEvent]:
        newest: dict[tuple[str, bool], AlertEvent] = {}
        for event in self.events:
            key = (event.rule, event.state in ("shelved", "unshelved"))
            newest.pop(key, None)
            newest[key] = event
        return list(newest.values())


def plant_with(*rules: AlertRule) -> Plant:
    points = tuple(
        Point(name, "power", "kW", Kind.GAUGE) for name in dict.fromkeys(rule.point for rule in rules)
    )
    return Plant(
        id="p",
        name=Label("厂", "Plant"),
        zone=ZoneInfo("Asia/Shanghai"),
        region="CN-CQ",
        base_interval_s=60,
        method_sets=("zero-carbon-factory",),
        areas=(),
        connections=(),
        devices=(),
        points=points,
        nodes=(),
        edges=(),
        alerts=rules,
        folder="",
        fingerprint="",
    )


def readings(point: str, *rows: tuple[float, float], status: int = GOOD) -> SampleBatch:
    """(seconds after START_NS, value) rows of one point."""
    return batch_of_rows((point, START_NS + round(at_s * NS_PER_S), value, status) for at_s, value in rows)


class Bench:
    """Alarms over some rules, with what they stand on."""

    plant_with = staticmethod(plant_with)
    readings = staticmethod(readings)

    def __init__(self, *rules: AlertRule) -> None:
        self.rules = rules
        self.clock = HandClock()
        self.log = MemoryLog()
        self.bus = LocalBus()
        self.alarms = Alarms(plant_with(*rules), self.log, self.bus, self.clock)

    def at(self, seconds: float) -> int:
        self.clock.time_ns = START_NS + round(seconds * NS_PER_S)
        return self.clock.time_ns

    def observe(self, point: str, *rows: tuple[float, float], status: int = GOOD) -> None:
        self.at(rows[-1][0])
        self.alarms.observe(readings(point, *rows, status=status))

    def state(self, alarm: str) -> object:
        return self.alarms.one(alarm)["state"]

    async def history(self) -> list[tuple[str, float, str]]:
        """(rule, seconds after START_NS, state) of everything told so far."""
        await self.alarms.flush()
        return [(e.rule, (e.time_ns - START_NS) / NS_PER_S, e.state) for e in self.log.events]

    async def restarted(self) -> Bench:
        again = Bench(*self.rules)
        again.clock = self.clock
        again.log = self.log
        again.alarms = Alarms(plant_with(*self.rules), self.log, again.bus, self.clock)
        await again.alarms.restore()
        return again


@pytest.fixture(scope="session")
def bench() -> type[Bench]:
    return Bench
