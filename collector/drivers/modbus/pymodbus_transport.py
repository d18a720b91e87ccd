"""pymodbus behind the Transport seam: serial RTU and RTU over TCP, and Modbus TCP where a plant prefers it.

pymodbus 3.16 is used with these guards: no retries of its own (they would reuse
the transaction id), no reconnecting of its own (unjittered, up to 300 s), the
number of registers checked (it hands short answers out as good ones), the
waiting request failed when the peer closes, an answer it cannot make sense of
failed as one (it raises into the event loop, which closes the link with a
traceback), and a cancellation that Python 3.11's `wait_for` loses inside it
raised again. RTU frames carry no transaction
id, so after an unanswered request the line is left until a late answer can no
longer be taken for the next one.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from pymodbus import FramerType
from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException, ModbusException

from collector.drivers.modbus.transport import (
    BIT_FUNCTIONS,
    IDENTIFY,
    BadReply,
    DeviceSilent,
    LinkLost,
    ModbusRefused,
    named,
    read_pdu,
    reply_size,
)

# pymodbus logs a line for every stray frame and every timeout; ours are counters and changes of state.
logging.getLogger("pymodbus.logging").setLevel(logging.CRITICAL)

_REPEATED_FAILURES_NEVER_CLOSE = 1 << 30


class PymodbusTransport:
    """One pymodbus client. Made by `over_tcp`, `rtu_over_tcp` or `serial_rtu`."""

    def __init__(
        self, make: Callable[[Callable[[bool], None]], Any], where: str, timeout_s: float, rtu: bool
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._make = make
        self._where = where
        self._timeout_s = timeout_s
        self._rtu = rtu
        self._client: Any = None

    @classmethod
    def over_tcp(cls, host: str, port: int, timeout_s: float) -> PymodbusTransport:
        return cls._tcp(host, port, timeout_s, FramerType.SOCKET)

    @classmethod
    def rtu_over_tcp(cls, host: str, port: int, timeout_s: float) -> PymodbusTransport:
        return cls._tcp(host, port, timeout_s, FramerType.RTU)

    @classmethod
    def _tcp(cls, host: str, port: int, timeout_s: float, framer: FramerType) -> PymodbusTransport:
        def make(on_change: Callable[[bool], None]) -> Any:
            return AsyncModbusTcpClient(
                host,
                port=port,
                framer=framer,
                timeout=timeout_s,
                retries=0,
                reconnect_delay=0,
                trace_connect=on_change,
            )

        return cls(make, f"{host}:{port}", timeout_s, framer is FramerType.RTU)

    @classmethod
    def serial_rtu(
        cls, port: str, timeout_s: float, baud: int = 9600, parity: str = "N", stop_bits: int = 1
    ) -> PymodbusTransport:
        def make(on_change: Callable[[bool], None]) -> Any:
            return AsyncModbusSerialClient(
                port,
                baudrate=baud,
                parity=parity,
                stopbits=stop_bits,
                timeout=timeout_s,
                retries=0,
                reconnect_delay=0,
                trace_connect=on_change,
            )

        return cls(make, port, timeout_s, True)

    async def connect(self) -> None:
        await self.close()
        client: Any = None

        def fail(why: Exception) -> None:
            waiting: asyncio.Future[Any] = client.ctx.response_future
            if not waiting.done():
                waiting.set_exception(why)
                waiting.exception()  # where nobody waits any more, nobody needs to hear of it

        def on_change(connected: bool) -> None:
            if not connected:
                fail(ConnectionException("connection closed"))

        client = self._make(on_change)
        take: Callable[..., int] = client.ctx.callback_data

        def take_surely(data: bytes, addr: Any = None) -> int:
            try:
                return take(data, addr)
            except Exception as why:
                fail(BadReply(str(why)))
                return len(data)

        client.ctx.callback_data = take_surely
        client.set_max_no_responses(_REPEATED_FAILURES_NEVER_CLOSE)
        if not await _uncancelled(client.connect()):
            raise LinkLost(f"{self._where}: no connection")
        client.ctx.response_future.set_result(None)  # nobody waits on it yet
        self._client = client

    async def request(self, unit: int, function: int, address: int, count: int) -> bytes:
        read_pdu(function, address, count)  # refuses whatever does not read
        client = self._connected()
        what = named(unit, function, address, count)
        ask: Callable[..., Awaitable[Any]] = (
            client.read_coils,
            client.read_discrete_inputs,
            client.read_holding_registers,
            client.read_input_registers,
        )[function - 1]
        reply = await self._reply(client, ask(address, count=count, device_id=unit), what, function)
        data = self._data(reply, function)
        if reply.function_code != function or len(data) != reply_size(function, count):
            await self._let_late_answers_pass()
            raise BadReply(
                f"{what}: {reply_size(function, count)} bytes wanted, "
                f"{len(data)} of function {reply.function_code} came back"
            )
        return data

    async def identify(self, unit: int) -> dict[int, str]:
        client = self._connected()
        ask = client.read_device_information(read_code=1, object_id=0, device_id=unit)
        reply = await self._reply(client, ask, f"unit {unit} function {IDENTIFY}", IDENTIFY)
        return {
            number: text.decode("utf-8", "replace").strip("\0 ")
            for number, text in getattr(reply, "information", {}).items()
            if isinstance(text, bytes)
        }

    def _connected(self) -> Any:
        if self._client is None or not self._client.connected:
            raise LinkLost(f"{self._where}: not connected")
        return self._client

    async def _reply(self, client: Any, asked: Awaitable[Any], what: str, function: int) -> Any:
        """The answer, if it is none that refuses."""
        try:
            reply = await _uncancelled(asked)
        except ConnectionException as why:
            raise LinkLost(f"{self._where}: {why}") from None
        except BadReply as why:
            await self._let_late_answers_pass()
            raise BadReply(f"{what}: an answer that cannot be decoded: {why}") from None
        except ModbusException:
            if not client.connected:
                raise LinkLost(f"{self._where}: connection closed") from None
            await self._let_late_answers_pass()
            raise DeviceSilent(f"{what}: no answer within {self._timeout_s:g} s") from None
        if reply.isError():
            if reply.function_code & 0x7F != function:
                raise BadReply(f"{what}: answered with function {reply.function_code}")
            raise ModbusRefused(what, int(reply.exception_code))
        return reply

    @staticmethod
    def _data(reply: Any, function: int) -> bytes:
        if function in BIT_FUNCTIONS:
            return np.packbits(np.asarray(reply.bits, dtype=bool), bitorder="little").tobytes()
        return struct.pack(f">{len(reply.registers)}H", *reply.registers)

    async def _let_late_answers_pass(self) -> None:
        if self._rtu:
            self.counters["line_pauses"] += 1
            await asyncio.sleep(self._timeout_s)

    async def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


async def _uncancelled(work: Awaitable[Any]) -> Any:
    """The result, unless the task was cancelled meanwhile and the cancellation got lost on the way."""
    task = asyncio.current_task()
    assert task is not None
    cancellations = task.cancelling()
    try:
        result = await work
    finally:
        if task.cancelling() > cancellations:
            raise asyncio.CancelledError
    return result
