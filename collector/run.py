"""The collector of a plant: a driver for each connection, started, stopped and swapped while it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from collector.driver import DeviceState, Driver
from collector.spool import Spool
from collector.supervise import Link
from core.errors import EcmcError
from core.health import Health
from core.plant.model import Connection, Plant, Protocol
from core.quality import BAD_NOT_CONNECTED
from core.samples import NS_PER_US, SampleBatch

log = logging.getLogger(__name__)

CONNECTS_AT_ONCE = 20
REPORT_EVERY_S = 1.0


def make_driver(
    plant: Plant,
    connection: Connection,
    learned: Path | None = None,
    connects: asyncio.Semaphore | None = None,
) -> Driver:
    """The driver that speaks a connection's protocol.

    Args:
        learned: A folder for what a driver remembers over a restart.
        connects: Held by a driver that makes a lost link anew by itself.

    Raises:
        EcmcError: No driver speaks it.
    """
    match connection.protocol:
        case Protocol.MODBUS_TCP | Protocol.MODBUS_RTU | Protocol.MODBUS_RTU_TCP | Protocol.MODBUS_TLS:
            from collector.drivers.modbus import modbus_driver

            return modbus_driver(plant, connection, learned=learned, connects=connects)
        case Protocol.OPCUA:
            from collector.drivers.opcua import OpcuaDriver

            return OpcuaDriver(plant, connection, learned=learned)
        case Protocol.MQTT:
            from collector.drivers.mqtt import MqttDriver

            return MqttDriver(plant, connection, learned=learned)
        case Protocol.SPARKPLUG:
            from collector.drivers.sparkplug import SparkplugDriver

            return SparkplugDriver(plant, connection)
        case _:
            raise EcmcError(f"connection {connection.id}: no driver speaks {connection.protocol}")


class Collectors:
    """Every connection of a plant under supervision.

    Args:
        make: How a connection gets its driver; tests put their own.
        connects: How many connections may be under way at once; None for `CONNECTS_AT_ONCE`.
    """

    def __init__(
        self,
        plant: Plant,
        spool: Spool,
        health: Health,
        make: Callable[[Plant, Connection], Driver] = make_driver,
        connects: asyncio.Semaphore | None = None,
    ) -> None:
        self._plant = plant
        self._spool = spool
        self._health = health
        self._make = make
        self._connects = connects or asyncio.Semaphore(CONNECTS_AT_ONCE)
        self._links: dict[str, Link] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reporter: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to collect; returns at once, connecting goes on behind it."""
        drivers = {c.id: self._make(self._plant, c) for c in self._plant.connections}
        for name, driver in drivers.items():
            self._begin(name, driver)
        self._reporter = asyncio.create_task(self._report(), name="collector-report")

    async def stop(self) -> None:
        """Close every driver; what was read is on its way to the disk, what was not stays unacknowledged."""
        if self._reporter is not None:
            self._reporter.cancel()
            await asyncio.gather(self._reporter, return_exceptions=True)
            self._reporter = None
        await self._end(list(self._tasks))

    def drivers_for(self, plant: Plant) -> Mapping[str, Driver]:
        """New drivers, not yet open, for the connections that another plant describes otherwise, by connection.

        Raises:
            EcmcError: One cannot be made.
        """
        return {
            c.id: self._make(plant, c)
            for c in plant.connections
            if c.id not in self._links or _described(plant, c.id) != _described(self._plant, c.id)
        }

    async def swap(self, plant: Plant, changed: Mapping[str, Driver]) -> None:
        """Take over another plant with these drivers; the connections without a new one run on untouched.

        A driver that ends hands over the batch it is at first, so that plans change between two polls.
        """
        gone = [name for name in self._links if name not in plant.connection_by_id]
        self._plant = plant
        ending = [*gone, *(name for name in changed if name in self._links)]
        await asyncio.gather(*(self._links[name].retire() for name in ending))
        await self._end(ending)
        for name in gone:
            self._health.forget(f"collector:{name}")
        for name, driver in changed.items():
            self._begin(name, driver)
        log.info("collectors reloaded", extra={"changed": sorted(changed), "gone": sorted(gone)})

    def devices(self) -> Mapping[str, DeviceState]:
        """Every device as its driver sees it now."""
        return {name: state for link in self._links.values() for name, state in link.driver.devices().items()}

    def _begin(self, name: str, driver: Driver) -> None:
        plant = self._plant
        link = Link(
            driver, self._spool, self._health, self._connects, unreached=lambda: not_connected(plant, name)
        )
        self._links[name] = link
        self._tasks[name] = asyncio.create_task(link.run(), name=f"connection:{name}")

    async def _end(self, names: list[str]) -> None:
        tasks = [self._tasks.pop(name) for name in names]
        for name in names:
            del self._links[name]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _report(self) -> None:
        while True:
            for link in self._links.values():
                link.report()
            await asyncio.sleep(REPORT_EVERY_S)


def not_connected(plant: Plant, connection: str) -> SampleBatch:
    """One bad sample, now, of every point read over a connection: nobody could be asked."""
    names = [
        point
        for device in plant.devices
        if device.connection == connection
        for point in device.points
        if plant.point_by_id[point].source is not None
    ]
    now_ns = time.time_ns()
    return SampleBatch(
        plant.point_table,
        np.array([plant.point_table.index[name] for name in names], dtype=np.int32),
        np.full(len(names), now_ns - now_ns % NS_PER_US, dtype=np.int64),
        np.full(len(names), np.nan),
        np.full(len(names), BAD_NOT_CONNECTED, dtype=np.int16),
    )


def _described(plant: Plant, connection: str) -> tuple[object, ...]:
    """All of a plant that a connection's driver depends on."""
    devices = [device for device in plant.devices if device.connection == connection]
    points = [plant.point_by_id[point] for device in devices for point in device.points]
    return plant.id, plant.zone, plant.connection_by_id.get(connection), devices, points
