"""A Modbus TCP server that shows devices as their profiles say, and fails on demand.

Framing is our own, since faults need it: a reply held back, a link closed in
mid-talk. Only reading is served (functions 1 to 4); like a real gateway the
server answers several requests of one link one after the other. Registers
between a device's points read as zero; a block that touches none of them is
answered with exception 2.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Self

from core.plant.model import ModbusSource, Point
from simulators.faults import LINES, Faults
from simulators.register import exponent_of, words

ILLEGAL_FUNCTION: Final = 1
ILLEGAL_ADDRESS: Final = 2
ILLEGAL_VALUE: Final = 3
GATEWAY_TARGET_SILENT: Final = 11

_SUNSPEC_BASE: Final = 40_000
_SUNSPEC_COMMON_WORDS: Final = 66
_SUNSPEC_VENDOR_AT, _SUNSPEC_PRODUCT_AT, _SUNSPEC_SERIAL_AT = 0, 16, 48  # words in the common model, 16 each
_SUNSPEC_MODEL_WORDS: Final = {103: 50, 203: 105, 213: 124, 802: 62}


class Unit:
    """One device behind a unit id: its points laid out in registers.

    Args:
        device: The device's id, by which its faults are switched.
        points: Its Modbus points.
        values: Gives every point's value now, by point id.
        max_registers: Longest read it takes; more is exception 3.
    """

    def __init__(
        self,
        device: str,
        points: Sequence[Point],
        values: Callable[[], Mapping[str, float]],
        max_registers: int = 125,
    ) -> None:
        self.device = device
        self.max_registers = max_registers
        self._values = values
        self._layout: list[tuple[Point, int, int]] = []  # point, function, first address
        self._fixed: dict[tuple[int, int], int] = {}
        for point in points:
            source = point.source
            if not isinstance(source, ModbusSource):
                raise TypeError(f"point {point.id} of {device} is no Modbus register")
            start = self._model_start(source)
            self._layout.append((point, source.function, start + source.address))
            if source.scale_address is not None:
                scale = exponent_of(point) & 0xFFFF
                self._fixed[source.function, start + source.scale_address] = scale

    def _model_start(self, source: ModbusSource) -> int:
        """Where the point's SunSpec model begins: after the marker and the common model, which says who it is."""
        model = source.sunspec_model
        if model is None:
            return 0
        start = _SUNSPEC_BASE + 2 + 2 + _SUNSPEC_COMMON_WORDS
        length = _SUNSPEC_MODEL_WORDS[model]
        chain = {
            _SUNSPEC_BASE: 0x5375,  # "SunS"
            _SUNSPEC_BASE + 1: 0x6E53,
            _SUNSPEC_BASE + 2: 1,
            _SUNSPEC_BASE + 3: _SUNSPEC_COMMON_WORDS,
            start: model,
            start + 1: length,
            start + 2 + length: 0xFFFF,
            start + 3 + length: 0,
        }
        texts = {
            _SUNSPEC_VENDOR_AT: "ecmc",
            _SUNSPEC_PRODUCT_AT: "simulated device",
            _SUNSPEC_SERIAL_AT: self.device,
        }
        for at, text in texts.items():
            wire = text.encode()[:32].ljust(32, b"\0")
            first = _SUNSPEC_BASE + 4 + at
            chain |= {first + i: int.from_bytes(wire[2 * i : 2 * i + 2], "big") for i in range(16)}
        self._fixed |= {(source.function, address): word for address, word in chain.items()}
        return start

    def registers(self, function: int, start: int, count: int) -> list[int] | None:
        """The registers asked for as they stand now; None where no point of the device lies among them."""
        end = start + count
        read = {address: word for (kind, address), word in self._fixed.items() if kind == function}
        values = self._values()
        for point, kind, first in self._layout:
            width = point.source.words if isinstance(point.source, ModbusSource) else 0
            if kind == function and first < end and first + width > start:
                for at, word in enumerate(words(point, values[point.id]), first):
                    read[at] = read.get(at, 0) | word if _is_bit(point) else word
        if end > 65_536 or not any(start <= address < end for address in read):
            return None
        return [read.get(address, 0) for address in range(start, end)]


def _is_bit(point: Point) -> bool:
    return isinstance(point.source, ModbusSource) and point.source.type == "bit"


class ModbusServer:
    """Units behind one TCP port; `async with` it. `port` is the real one where 0 was given.

    `name` is the connection's id: its faults drop, stall or delay every unit at once.
    """

    def __init__(
        self, name: str, units: Mapping[int, Unit], faults: Faults, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.name, self.host, self.port = name, host, port
        self._chance = random.Random(port)
        self._units, self._faults = units, faults
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._talk, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._server is not None:
            self._server.close()
            for link in list(self._links):
                link.transport.abort()
            await self._server.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.add(writer)
        # A peer may leave at any moment; that is its right.
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while not self._faults.of(self.name).drop:
                transaction, protocol, length, unit_id = struct.unpack(">HHHB", await reader.readexactly(7))
                if protocol != 0 or not 2 <= length <= 254:
                    break  # no Modbus: nothing after it can be trusted
                request = await reader.readexactly(length - 1)
                answer = await self._answer(unit_id, request)
                if answer is None:
                    break
                if answer:
                    head = struct.pack(">HHHB", transaction, 0, len(answer) + 1, unit_id)
                    writer.write(head + answer)
                    await writer.drain()
        self._links.discard(writer)
        writer.close()

    async def _answer(self, unit_id: int, request: bytes) -> bytes | None:
        """The answer's PDU; empty for silence, None to break the link."""
        unit = self._units.get(unit_id)
        if unit is None:
            return _exception(request, GATEWAY_TARGET_SILENT)
        for name in (self.name, unit.device):
            trouble = self._faults.of(name)
            if trouble.drop:
                return None
            if trouble.stall:
                return b""
            delay_s = trouble.late_s
            if trouble.line:
                line = LINES[trouble.line]
                if self._chance.random() < line.lost:
                    return b""
                delay_s += line.delay_s(self._chance)
            if delay_s:
                await asyncio.sleep(delay_s)
            if trouble.exception and _touches(request, trouble.exception_at):
                return _exception(request, trouble.exception)
        return _read(unit, request)


def _touches(request: bytes, address: int | None) -> bool:
    if address is None:
        return True
    if len(request) != 5:
        return False
    start, count = struct.unpack(">HH", request[1:])
    return bool(start <= address < start + count)


def _exception(request: bytes, code: int) -> bytes:
    return bytes([request[0] | 0x80, code])


def _read(unit: Unit, request: bytes) -> bytes:
    function = request[0]
    if function not in (1, 2, 3, 4):
        return _exception(request, ILLEGAL_FUNCTION)
    if len(request) != 5:
        return _exception(request, ILLEGAL_VALUE)
    start, count = struct.unpack(">HH", request[1:])
    most = unit.max_registers if function > 2 else 2000
    if not 1 <= count <= most:
        return _exception(request, ILLEGAL_VALUE)
    read = unit.registers(function, start, count)
    if read is None:
        return _exception(request, ILLEGAL_ADDRESS)
    if function > 2:
        return struct.pack(f">BB{count}H", function, 2 * count, *read)
    bits = sum(1 << at for at, word in enumerate(read) if word)
    return bytes([function, (count + 7) // 8]) + bits.to_bytes((count + 7) // 8, "little")
