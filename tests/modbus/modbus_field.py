"""A scriptable Modbus TCP device, plants made in a line, and reading a driver for a while."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from zoneinfo import ZoneInfo

from collector.drivers.modbus import ModbusDriver, modbus_driver
from core.plant.model import (
    Connection,
    Device,
    Kind,
    Label,
    ModbusSource,
    Order,
    Plant,
    Point,
    Protocol,
)
from core.samples import SampleBatch

WORDS = dict.fromkeys(("int16", "uint16", "bit", "bcd16", "enum16", "bitfield16", "sunssf"), 1)
WORDS |= {"bcd12": 3, "int64": 4, "uint64": 4, "float64": 4}


def source(address: int, type_: str = "uint16", **more: object) -> ModbusSource:
    fields: dict[str, object] = {
        "function": 3,
        "words": WORDS.get(type_, 2),
        "byte_order": Order.BIG,
        "word_order": Order.BIG,
        "scale": 1.0,
        "offset": 0.0,
    }
    return ModbusSource(address=address, type=type_, **{**fields, **more})  # type: ignore[arg-type]


def point(name: str, where: ModbusSource, period_s: float = 0.1, **more: object) -> Point:
    return Point(name, "voltage_l1", "V", Kind.GAUGE, source=where, period_s=period_s, **more)  # type: ignore[arg-type]


def plant_of(
    devices: Mapping[str, Sequence[Point]],
    tcp_port: int,
    units: Mapping[str, int] | None = None,
    device_options: Mapping[str, Mapping[str, object]] | None = None,
    protocol: Protocol = Protocol.MODBUS_TCP,
    **options: object,
) -> Plant:
    """A plant with one Modbus connection `mb` to a port of 127.0.0.1; units are numbered from 1 unless given."""
    connection = Connection(
        "mb", protocol, {"host": "127.0.0.1", "port": tcp_port, "timeout_s": 0.2, **options}
    )
    return Plant(
        id="test",
        name=Label("测试", "Test"),
        zone=ZoneInfo("Asia/Shanghai"),
        region="CN-CQ",
        base_interval_s=60,
        method_sets=("ghg-protocol",),
        areas=(),
        connections=(connection,),
        devices=tuple(
            Device(
                name,
                "mb",
                None,
                tuple(one.id for one in points),
                options=(device_options or {}).get(name, {}),
                unit_id=(units or {}).get(name, number),
            )
            for number, (name, points) in enumerate(devices.items(), 1)
        ),
        points=tuple(replace(one, device=name) for name, points in devices.items() for one in points),
        nodes=(),
        edges=(),
        alerts=(),
        folder="",
        fingerprint="",
    )


def driver_of(plant: Plant) -> ModbusDriver:
    return modbus_driver(plant, plant.connections[0])


@dataclass(frozen=True)
class Request:
    """What the device was asked, and how to answer it."""

    transaction: int
    unit: int
    function: int
    address: int
    count: int
    writer: asyncio.StreamWriter

    def send(self, pdu: bytes, transaction: int | None = None, unit: int | None = None) -> None:
        self.writer.write(self.frame(pdu, transaction, unit))

    def frame(self, pdu: bytes, transaction: int | None = None, unit: int | None = None) -> bytes:
        header = struct.pack(
            ">HHHB",
            self.transaction if transaction is None else transaction,
            0,
            len(pdu) + 1,
            self.unit if unit is None else unit,
        )
        return header + pdu

    def refuse(self, code: int) -> None:
        self.send(bytes((self.function | 0x80, code)))


Answer = Callable[[Request], Awaitable[None]]


class FieldDevice:
    """A Modbus TCP server whose manners are a function; keeps every request and every byte it got.

    `words[address]` are its registers, the same for all units and functions; absent ones are 0.
    `units[unit]`, where given, holds that unit's own. `identity` is what it says it is, if anything.
    """

    def __init__(self) -> None:
        self.words: dict[int, int] = {}
        self.units: dict[int, dict[int, int]] = {}
        self.identity: dict[int, bytes] = {}
        self.requests: list[Request] = []
        self.received = bytearray()
        self.connections = 0
        self.answer: Answer = self.answer_well
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def pdu(self, request: Request) -> bytes:
        """The right answer."""
        words = self.units.get(request.unit, self.words)
        if request.function == 43 and self.identity:
            objects = b"".join(bytes((n, len(text))) + text for n, text in self.identity.items())
            return bytes((43, 14, 1, 1, 0, 0, len(self.identity))) + objects
        if request.function not in (1, 2, 3, 4):
            return bytes((request.function | 0x80, 1))
        if request.function in (1, 2):
            data = bytearray((request.count + 7) // 8)
            for i in range(request.count):
                data[i // 8] |= (words.get(request.address + i, 0) & 1) << (i % 8)
        else:
            data = bytearray()
            for i in range(request.count):
                data += words.get(request.address + i, 0).to_bytes(2, "big")
        return bytes((request.function, len(data))) + bytes(data)

    async def answer_well(self, request: Request) -> None:
        request.send(self.pdu(request))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                header = await reader.readexactly(7)
                transaction, _, length, unit = struct.unpack(">HHHB", header)
                pdu = await reader.readexactly(length - 1)
                self.received += header + pdu
                function, address, count = struct.unpack(">BHH", pdu[:5].ljust(5, b"\0"))
                request = Request(transaction, unit, function, address, count, writer)
                self.requests.append(request)
                await self.answer(request)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close the port and every connection, as a power cut does."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)


def crc16(frame: bytes) -> bytes:
    """Modbus over serial line V1.02, 6.2.2; low byte first."""
    crc = 0xFFFF
    for byte in frame:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return crc.to_bytes(2, "little")


Sample = tuple[str, int, float, int]


def rows(batch: SampleBatch) -> list[Sample]:
    return list(
        zip(batch.names(), batch.time_ns.tolist(), batch.value.tolist(), batch.status.tolist(), strict=True)
    )


async def read_until(
    driver: ModbusDriver, enough: Callable[[list[Sample]], bool], timeout_s: float = 5.0
) -> list[Sample]:
    """Samples in order of arrival, until there are enough of them."""
    seen: list[Sample] = []
    async with asyncio.timeout(timeout_s):
        while not enough(seen):
            seen += rows(await driver.read())
    return seen


async def read_for(driver: ModbusDriver, duration_s: float) -> list[Sample]:
    """Samples of a while."""
    seen: list[Sample] = []
    try:
        async with asyncio.timeout(duration_s):
            while True:
                seen += rows(await driver.read())
    except TimeoutError:
        return seen


def values(samples: Sequence[Sample], name: str) -> list[float]:
    return [value for who, _, value, _ in samples if who == name]


def statuses(samples: Sequence[Sample], name: str) -> list[int]:
    return [status for who, _, _, status in samples if who == name]
