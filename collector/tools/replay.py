"""A recording of Modbus traffic, served as the device it was taken from.

A request that stands in the recording gets what was answered last, as late as it
came then, and silence where silence was. Any other read is put together out of
the registers that were seen, each as it stood at that moment of the recording;
a register nobody saw is exception 2. The recording begins again at its end.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from collector.drivers.modbus.mbap import FrameSplitter, FramingLost
from collector.drivers.modbus.transport import BIT_FUNCTIONS, READING_FUNCTIONS, reply_size
from core.errors import Fault, FaultyInput

_ILLEGAL_FUNCTION, _ILLEGAL_ADDRESS, _TARGET_SILENT = 1, 2, 11
_LEAST_TURN_S = 1e-3  # of a recording of one moment, so that time can go round in it


@dataclass(slots=True)
class _Past:
    """Something that changed with time: what it was from when on."""

    times_s: list[float] = field(default_factory=list)
    values: list[object] = field(default_factory=list)

    def add(self, t_s: float, value: object) -> None:
        at = bisect_right(self.times_s, t_s)  # of two links, the one asked first may be answered last
        self.times_s.insert(at, t_s)
        self.values.insert(at, value)

    def at(self, t_s: float) -> object:
        """What it was at a time; before the first time, the first."""
        return self.values[max(bisect_right(self.times_s, t_s) - 1, 0)]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's PDU and how long it took."""

    pdu: bytes
    after_s: float


class Recording:
    """What a device said, by request and by register.

    Attributes:
        lasts_s: From the first to the last frame.
        requests, unanswered: How many it holds.
    """

    def __init__(self) -> None:
        self.lasts_s = _LEAST_TURN_S
        self.requests = 0
        self.unanswered = 0
        self._exchanges: dict[tuple[int, bytes], _Past] = {}  # a Reply, or None for silence
        self._registers: dict[tuple[int, int, int], _Past] = {}  # two bytes, or one bit
        self._units: set[int] = set()

    @classmethod
    def read(cls, file: Path) -> Recording:
        """A recording of one JSON object a line.

        Raises:
            FaultyInput: The file cannot be read, or a line is none; the first of them.
        """
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as why:
            raise FaultyInput([Fault(str(file), 0, 0, f"cannot be read: {why}")]) from None
        return cls.of(lines, str(file))

    @classmethod
    def of(cls, lines: Iterable[str], name: str) -> Recording:
        """As `read`, from lines."""
        recording = cls()
        splitters: dict[tuple[int, str], FrameSplitter] = {}
        asked: dict[tuple[int, int, int], tuple[float, bytes]] = {}  # by link, transaction and unit
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                t_s, link, direction = float(entry["t"]), int(entry["conn"]), str(entry["dir"])
                data = bytes.fromhex(entry["hex"])
                if direction not in ("req", "rsp"):
                    raise ValueError(f"dir {direction!r}")
                frames = splitters.setdefault((link, direction), FrameSplitter()).feed(data)
            except (KeyError, TypeError, ValueError, FramingLost) as why:
                raise FaultyInput([Fault(name, number, 1, f"t, conn, dir, hex wanted: {why}")]) from None
            recording.lasts_s = max(recording.lasts_s, t_s)
            for transaction, unit, pdu in frames:
                key = link, transaction, unit
                if direction == "req":
                    if key in asked:
                        recording._unanswered(*asked.pop(key), unit)
                    asked[key] = (t_s, pdu)
                elif key in asked:  # an answer to nothing was a stranger then and is one now
                    sent_s, request = asked.pop(key)
                    recording._answered(unit, request, sent_s, Reply(pdu, t_s - sent_s))
        for (_, _, unit), (sent_s, request) in asked.items():
            recording._unanswered(sent_s, request, unit)
        return recording

    def reply(self, unit: int, request: bytes, t_s: float) -> Reply | None:
        """What the device would say at a moment of the recording; None: nothing."""
        past = self._exchanges.get((unit, request))
        if past is not None:
            reply = past.at(t_s)
            assert reply is None or isinstance(reply, Reply)
            return reply
        function = request[0] if request else 0
        if unit not in self._units:
            return _refusal(function, _TARGET_SILENT)
        if function not in READING_FUNCTIONS or len(request) != 5:
            return _refusal(function, _ILLEGAL_FUNCTION)
        address, count = int.from_bytes(request[1:3], "big"), int.from_bytes(request[3:5], "big")
        pasts = [self._registers.get((unit, function, address + i)) for i in range(count)]
        if not pasts or any(past is None for past in pasts):
            return _refusal(function, _ILLEGAL_ADDRESS)
        seen = [past.at(t_s) for past in pasts if past is not None]
        size = reply_size(function, count)
        if function in BIT_FUNCTIONS:
            bits = sum(1 << i for i, bit in enumerate(seen) if bit)
            data = bits.to_bytes(size, "little")
        else:
            data = b"".join(word for word in seen if isinstance(word, bytes))
        if size > 0xFF:
            return _refusal(function, _ILLEGAL_ADDRESS)
        return Reply(bytes((function, size)) + data, 0.0)

    def _answered(self, unit: int, request: bytes, sent_s: float, reply: Reply) -> None:
        self.requests += 1
        self._units.add(unit)
        self._exchanges.setdefault((unit, request), _Past()).add(sent_s, reply)
        function = request[0] if request else 0
        if function not in READING_FUNCTIONS or len(request) != 5 or reply.pdu[:1] != request[:1]:
            return
        address, count = int.from_bytes(request[1:3], "big"), int.from_bytes(request[3:5], "big")
        data = reply.pdu[2:]
        if len(data) != reply_size(function, count):
            return  # kept as the answer it was, but no register can be known from it
        for i in range(count):
            past = self._registers.setdefault((unit, function, address + i), _Past())
            if function in BIT_FUNCTIONS:
                past.add(sent_s, bool(data[i // 8] >> (i % 8) & 1))
            else:
                past.add(sent_s, data[2 * i : 2 * i + 2])

    def _unanswered(self, sent_s: float, request: bytes, unit: int) -> None:
        self.requests += 1
        self.unanswered += 1
        self._exchanges.setdefault((unit, request), _Past()).add(sent_s, None)


def _refusal(function: int, code: int) -> Reply:
    return Reply(bytes((function | 0x80, code)), 0.0)


class ReplayServer:
    """A Modbus TCP server that is the recorded device; `async with` it. `port` is the real one where 0 was given."""

    def __init__(
        self, recording: Recording, host: str = "127.0.0.1", port: int = 0, speed: float = 1.0
    ) -> None:
        self.host, self.port = host, port
        self._recording = recording
        self._speed = speed
        self._began_s = 0.0
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._began_s = time.monotonic()
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
        splitter = FrameSplitter()
        with suppress(ConnectionError, FramingLost):  # a peer may leave, or be none
            while data := await reader.read(4096):
                for transaction, unit, pdu in splitter.feed(data):
                    t_s = (time.monotonic() - self._began_s) * self._speed % self._recording.lasts_s
                    reply = self._recording.reply(unit, pdu, t_s)
                    if reply is None:
                        continue
                    await asyncio.sleep(reply.after_s / self._speed)
                    head = transaction.to_bytes(2, "big") + b"\0\0" + (len(reply.pdu) + 1).to_bytes(2, "big")
                    writer.write(head + bytes((unit,)) + reply.pdu)
        self._links.discard(writer)
        writer.close()
