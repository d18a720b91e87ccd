"""Modbus TCP, framed here: MBAP headers over one asyncio connection, plain or TLS.

Every try has a new transaction id, so an answer that comes too late is a
stranger and never stands in for the next one. Strangers and duplicates are
counted and dropped; a closed connection fails whoever waits, at once. Deadlines
are swept every 100 ms instead of one timer a request, which is where most of
a request's cost would go.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from collector.drivers.modbus.transport import (
    BadReply,
    DeviceSilent,
    LinkLost,
    ModbusRefused,
    identity_objects,
    identity_pdu,
    named,
    read_pdu,
    reply_size,
)

SWEEP_S = 0.1
Tap = Callable[[str, bytes], None]  # `open`, `req` or `rsp`, and the bytes as they went over the wire
_HEADER = struct.Struct(">HHHB")  # transaction, protocol, length (of unit and PDU), unit
_LONGEST = 254  # unit and a PDU of 253 bytes


class FramingLost(Exception):
    """The stream cannot be Modbus any more; where the next frame begins is unknown."""


class FrameSplitter:
    """Cuts a byte stream into frames, however it is chopped up or run together."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """(transaction, unit, PDU) of every frame now complete.

        Raises:
            FramingLost: A header that is no MBAP header.
        """
        if self._rest:
            data = self._rest + data
        frames = []
        start = 0
        while len(data) - start >= 7:
            transaction, protocol, length, unit = _HEADER.unpack_from(data, start)
            if protocol != 0 or not 2 <= length <= _LONGEST:
                raise FramingLost(
                    f"MBAP header {data[start : start + 7].hex()}: protocol 0, length 2..254 wanted"
                )
            end = start + 6 + length
            if end > len(data):
                break
            frames.append((transaction, unit, data[start + 7 : end]))
            start = end
        self._rest = data[start:]
        return frames


def reply_data(pdu: bytes, unit: int, function: int, address: int, count: int) -> bytes:
    """The register or bit bytes of an answer, checked against what was asked.

    Raises:
        ModbusRefused: The answer is an exception.
        BadReply: Function, byte count or length do not fit.
    """
    size = reply_size(function, count)
    if len(pdu) == size + 2 and pdu[0] == function and pdu[1] == size:
        return pdu[2:]
    what = named(unit, function, address, count)
    if len(pdu) == 2 and pdu[0] == function | 0x80:
        raise ModbusRefused(what, pdu[1])
    if not pdu or pdu[0] != function:
        raise BadReply(f"{what}: answered with function {pdu[0] if pdu else 'none'}")
    raise BadReply(f"{what}: {size} bytes wanted, {max(len(pdu) - 2, 0)} came back")


@dataclass(slots=True)
class _Waiter:
    answer: asyncio.Future[bytes]
    unit: int
    deadline_s: float


class _Link(asyncio.Protocol):
    """One TCP connection's life: requests out, answers to their waiters."""

    def __init__(self, counters: Counter[str], timeout_s: float, tap: Tap | None) -> None:
        self._tap = tap
        self._counters = counters
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._splitter = FrameSplitter()
        self._waiting: dict[int, _Waiter] = {}
        self._sweep: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._last_transaction = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        if self._tap is not None:
            self._tap("open", b"")

    @property
    def alive(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, unit: int, pdu: bytes) -> asyncio.Future[bytes]:
        """The answer's PDU, in time; fails with LinkLost or TimeoutError."""
        assert self._transport is not None
        transaction = self._last_transaction % 0xFFFF + 1  # 1..65535: some devices answer 0 to anything
        self._last_transaction = transaction
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._waiting[transaction] = _Waiter(answer, unit, self._loop.time() + self._timeout_s)
        if self._sweep is None:
            self._sweep = self._loop.call_later(SWEEP_S, self._sweep_deadlines)
        frame = _HEADER.pack(transaction, 0, len(pdu) + 1, unit) + pdu
        self._transport.write(frame)
        if self._tap is not None:
            self._tap("req", frame)
        return answer

    def data_received(self, data: bytes) -> None:
        if self._tap is not None:
            self._tap("rsp", data)
        try:
            frames = self._splitter.feed(data)
        except FramingLost as why:
            self._counters["framing_lost"] += 1
            self._fail_all(LinkLost(str(why)))
            self.close()
            return
        for transaction, unit, pdu in frames:
            waiter = self._waiting.get(transaction)
            if waiter is None or waiter.unit != unit:
                self._counters["stray_replies"] += 1
                continue
            del self._waiting[transaction]
            if not waiter.answer.done():  # whoever asked may have been cancelled
                waiter.answer.set_result(pdu)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail_all(LinkLost(f"connection closed{f': {exc}' if exc else ' by the peer'}"))
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _fail_all(self, why: Exception) -> None:
        waiting, self._waiting = self._waiting, {}
        for waiter in waiting.values():
            if not waiter.answer.done():
                waiter.answer.set_exception(why)

    def _sweep_deadlines(self) -> None:
        self._sweep = None
        if not self._waiting:
            return
        now_s = self._loop.time()
        for transaction, waiter in list(self._waiting.items()):
            if waiter.deadline_s <= now_s:
                del self._waiting[transaction]
                if not waiter.answer.done():
                    waiter.answer.set_exception(TimeoutError())
        if self._waiting:
            self._sweep = self._loop.call_later(SWEEP_S, self._sweep_deadlines)


class MbapTransport:
    """A Modbus TCP (or, with `tls`, Modbus/TCP Security) link behind the Transport seam.

    `tap`, where set before connecting, hears every byte of the links made from then on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        timeout_s: float = 1.0,
        connect_timeout_s: float = 3.0,
        tls: ssl.SSLContext | None = None,
        server_name: str | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._host = host
        self._port = port
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._tls = tls
        self._server_name = server_name
        self._link: _Link | None = None
        self.tap: Tap | None = None

    async def connect(self) -> None:
        await self.close()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, self._link = await loop.create_connection(
                    lambda: _Link(self.counters, self._timeout_s, self.tap),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._server_name if self._tls else None,
                )
        except TimeoutError:
            raise LinkLost(
                f"{self._host}:{self._port}: no connection within {self._connect_timeout_s:g} s"
            ) from None
        except OSError as why:
            raise LinkLost(f"{self._host}:{self._port}: {why.strerror or why}") from None

    async def request(self, unit: int, function: int, address: int, count: int) -> bytes:
        pdu = read_pdu(function, address, count)
        link = self._link
        if link is None or not link.alive:
            raise LinkLost(f"{self._host}:{self._port}: not connected")
        try:
            reply = await link.send(unit, pdu)
        except TimeoutError:
            what = named(unit, function, address, count)
            raise DeviceSilent(f"{what}: no answer within {self._timeout_s:g} s") from None
        return reply_data(reply, unit, function, address, count)

    async def identify(self, unit: int) -> dict[int, str]:
        found: dict[int, str] = {}
        follows: int | None = 0
        while follows is not None and follows not in found:
            link = self._link
            if link is None or not link.alive:
                raise LinkLost(f"{self._host}:{self._port}: not connected")
            try:
                reply = await link.send(unit, identity_pdu(follows))
            except TimeoutError:
                raise DeviceSilent(f"unit {unit}: no identity within {self._timeout_s:g} s") from None
            objects, follows = identity_objects(reply, unit)
            found |= objects
        return found

    async def close(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
