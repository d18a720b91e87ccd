"""How one device of a plant takes being asked: how fast, how much at once, how many at a time.

The questions are the ones the plant will ask, so that what comes out can be
written into plant.yaml. What a request costs is a line over its registers, fitted
to the median round trips of several lengths; the block planner weighs a request
against a register by these two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from collector.drivers.modbus.build import connection_transport, connection_units
from collector.drivers.modbus.mbap import MbapTransport
from collector.drivers.modbus.plan import Block
from collector.drivers.modbus.sunspec import CANDIDATES, model_addresses
from collector.drivers.modbus.transport import (
    BIT_FUNCTIONS,
    MAX_BITS,
    MAX_REGISTERS,
    READ_HOLDING_REGISTERS,
    ModbusRefused,
    Transport,
)
from collector.drivers.modbus.unit import Unit
from core.errors import BadRequest, DeviceRefused, DeviceUnreachable
from core.plant.model import Plant

ROUND_TRIPS = 100
FIT_TRIPS = 15  # of each length
IN_FLIGHT_TRIPS = 40
IN_FLIGHT_TRIED = (1, 2, 4, 8)

Said = Callable[[str, float], None]  # what is being done, and how far it is (0..1)


@dataclass(frozen=True, slots=True)
class InFlight:
    """What happened with so many requests on their way at once."""

    requests: int
    per_s: float
    failed: int
    why: str = ""


@dataclass(frozen=True, slots=True)
class Probed:
    """What a device is like, seen from here and now.

    Attributes:
        blocks: Requests its plan makes of it.
        refused: Those it refuses, in words.
        round_trip_p50_ms, round_trip_p99_ms: Of its smallest request.
        most_registers: Longest read it answered, from `most_from` with `most_function`; a device may refuse a
            longer one for a hole as well as for its length: `most_why` says what came one register later.
        request_ms, register_ms: The fitted costs a and b of a request; None where lengths cannot be told apart.
        in_flight: By requests at once; empty where frames carry no transaction id.
        identity: What it says it is.
    """

    device: str
    unit: int
    blocks: int
    refused: tuple[str, ...]
    round_trip_p50_ms: float
    round_trip_p99_ms: float
    most_registers: int
    most_function: int
    most_from: int
    most_why: str
    request_ms: float
    register_ms: float
    in_flight: tuple[InFlight, ...] = ()
    identity: dict[int, str] = field(default_factory=dict)

    @property
    def in_flight_advised(self) -> int:
        """The most requests at once that all came back and still made it a tenth faster."""
        best = 1
        rate = self.in_flight[0].per_s if self.in_flight else 0.0
        for one in self.in_flight[1:]:
            if one.failed:
                break
            if one.per_s > 1.1 * rate:
                best, rate = one.requests, one.per_s
        return best


async def probe_device(plant: Plant, device: str, said: Said = lambda what, part: None) -> Probed:
    """Ask a device of the plant some hundred reading requests over a link of its own.

    Raises:
        BadRequest: No such device, or it is no Modbus device with points.
        DeviceUnreachable: It does not answer.
        DeviceRefused: It refuses everything the plant would ask.
    """
    found = plant.device_by_id.get(device)
    if found is None:
        raise BadRequest(f"device {device!r}: the plant has none of that name")
    connection = plant.connection_by_id.get(found.connection or "")
    if connection is None or not connection.protocol.startswith("modbus"):
        raise BadRequest(f"device {device}: not on a Modbus connection")
    unit = next((one for one in connection_units(plant, connection) if one.device.id == device), None)
    if unit is None:
        raise BadRequest(f"device {device}: has no Modbus point to ask for")
    transport = connection_transport(connection)
    await transport.connect()
    try:
        return await _Probe(transport, unit, said).run()
    finally:
        await transport.close()


class _Probe:
    def __init__(self, transport: Transport, unit: Unit, said: Said) -> None:
        self._transport = transport
        self._unit = unit
        self._number = unit.device.unit_id
        self._said = said

    async def run(self) -> Probed:
        unit = self._unit
        self._said("looking", 0.0)
        identity = await self._identity()
        if unit.needs_walk:
            unit.models = await model_addresses(
                lambda address, count: self._read(READ_HOLDING_REGISTERS, address, count), CANDIDATES
            )
            unit.replan()
        answered, refused = await self._blocks()
        smallest = min(answered, key=lambda block: block.count)
        trips_ms = await self._round_trips(smallest, ROUND_TRIPS, "round trip", 0.1, 0.4)
        function, first, most, why = await self._longest(answered)
        request_ms, register_ms = await self._costs(function, first, most)
        in_flight = await self._at_once(function, first, most)
        self._said("done", 1.0)
        return Probed(
            device=unit.device.id,
            unit=self._number,
            blocks=len(unit.planned),
            refused=tuple(refused),
            round_trip_p50_ms=float(np.percentile(trips_ms, 50)),
            round_trip_p99_ms=float(np.percentile(trips_ms, 99)),
            most_registers=most,
            most_function=function,
            most_from=first,
            most_why=why,
            request_ms=request_ms,
            register_ms=register_ms,
            in_flight=in_flight,
            identity=identity,
        )

    async def _read(self, function: int, address: int, count: int) -> bytes:
        return await self._transport.request(self._number, function, address, count)

    async def _identity(self) -> dict[int, str]:
        try:
            return await self._transport.identify(self._number)
        except ModbusRefused:
            return {}
        except DeviceUnreachable:  # silence to an unknown function is no reason to stop
            await self._transport.connect()
            return {}

    async def _blocks(self) -> tuple[list[Block], list[str]]:
        answered, refused = [], []
        for planned in self._unit.planned:
            block = planned.block
            try:
                await self._read(block.function, block.address, block.count)
            except ModbusRefused as why:
                refused.append(str(why))
            else:
                answered.append(block)
        if not answered:
            raise DeviceRefused(
                f"device {self._unit.device.id}: refuses all {len(refused)} requests of its plan; "
                + (refused[0] if refused else "no SunSpec model of its profile was found")
            )
        return answered, refused

    async def _round_trips(
        self, block: Block, times: int, what: str, begin: float, end: float
    ) -> list[float]:
        trips_ms = []
        for done in range(times):
            self._said(what, begin + (end - begin) * done / times)
            sent_s = time.perf_counter()
            await self._read(block.function, block.address, block.count)
            trips_ms.append(1000 * (time.perf_counter() - sent_s))
        return trips_ms

    async def _longest(self, blocks: Sequence[Block]) -> tuple[int, int, int, str]:
        """(function, address, registers, what came one register later) of the longest read there is."""
        best = (blocks[0].function, blocks[0].address, 0, "")
        for number, block in enumerate(blocks[:4]):
            self._said("longest request", 0.4 + 0.05 * number)
            limit = MAX_BITS if block.function in BIT_FUNCTIONS else MAX_REGISTERS
            limit = min(limit, 0x10000 - block.address)
            good, bad, why = block.count, limit + 1, "the protocol's limit"
            while bad - good > 1:
                # The protocol's own limit first: most devices take it, and nothing remains to be found.
                middle = limit if bad == limit + 1 else (good + bad) // 2
                try:
                    await self._read(block.function, block.address, middle)
                except ModbusRefused as refusal:
                    bad, why = middle, refusal.reason
                except DeviceUnreachable as silence:
                    bad, why = middle, str(silence)
                    await self._transport.connect()
                else:
                    good = middle
            if good > best[2]:
                best = (block.function, block.address, good, why)
            if good == limit:
                break
        return best

    async def _costs(self, function: int, first: int, most: int) -> tuple[float, float]:
        """Milliseconds of a request and of a register: a line through median round trips, never falling."""
        counts = sorted({max(1, round(most * share)) for share in (0.01, 0.25, 0.5, 0.75, 1.0)})
        # An answer to a part of a value may be refused; lengths that are, are left out.
        lengths, medians_ms = [], []
        trips: dict[int, list[float]] = {count: [] for count in counts}
        for done in range(FIT_TRIPS):  # in turn, so that a slow moment of the device hits every length
            self._said("cost of a request", 0.6 + 0.2 * done / FIT_TRIPS)
            for count in list(trips):
                sent_s = time.perf_counter()
                try:
                    await self._read(function, first, count)
                except ModbusRefused:
                    del trips[count]
                    continue
                trips[count].append(1000 * (time.perf_counter() - sent_s))
        for count, each_ms in trips.items():
            lengths.append(float(count))
            medians_ms.append(float(np.median(each_ms)))
        if len(lengths) < 2:
            return (medians_ms[0] if medians_ms else float("nan")), 0.0
        register_ms, request_ms = np.polynomial.Polynomial.fit(lengths, medians_ms, 1).convert().coef[::-1]
        if register_ms <= 0:
            return float(np.median(medians_ms)), 0.0
        return max(float(request_ms), 0.0), float(register_ms)

    async def _at_once(self, function: int, first: int, most: int) -> tuple[InFlight, ...]:
        if not isinstance(self._transport, MbapTransport):
            return ()  # RTU frames carry no transaction id: one at a time is all there is
        outcomes = []
        for number, at_once in enumerate(IN_FLIGHT_TRIED):
            self._said(f"{at_once} requests at once", 0.8 + 0.05 * number)
            outcomes.append(await self._flight(function, first, most, at_once))
            if outcomes[-1].failed:
                await self._transport.connect()
                break
        return tuple(outcomes)

    async def _flight(self, function: int, first: int, most: int, at_once: int) -> InFlight:
        # Each request of another length, so that answers that were mixed up do not fit.
        lengths = [max(1, most - number % min(at_once, most)) for number in range(IN_FLIGHT_TRIPS)]
        waiting = iter(lengths)
        failures: list[str] = []

        async def ask() -> None:
            for count in waiting:
                try:
                    await self._read(function, first, count)
                except ModbusRefused:
                    continue  # part of a value, perhaps; an answer all the same
                except DeviceUnreachable as why:
                    failures.append(str(why))
                    return

        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(at_once):
                tasks.create_task(ask())
        took_s = time.perf_counter() - began_s
        return InFlight(
            at_once,
            (IN_FLIGHT_TRIPS - len(failures)) / took_s,
            len(failures),
            failures[0] if failures else "",
        )
