"""Read-only by construction: what leaves every kind of link, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from lines import certificate, serial_line
from modbus_field import crc16, plant_of, point, source

import collector
from collector.drivers.modbus.build import connection_transport
from core.errors import DeviceUnreachable
from core.plant.model import Connection, Protocol

UNIT, ADDRESS, COUNT = 7, 0x0102, 3
READS = [bytes((function, 1, 2, 0, COUNT)) for function in (1, 2, 3, 4)]
IDENTITY = bytes((43, 14, 1, 0))


def over_tcp(pdus: list[bytes]) -> bytes:
    """As Modbus TCP frames them, transactions counted from 1."""
    return b"".join(
        number.to_bytes(2, "big") + bytes((0, 0, 0, len(pdu) + 1, UNIT)) + pdu
        for number, pdu in enumerate(pdus, 1)
    )


def on_a_line(pdus: list[bytes]) -> bytes:
    """As Modbus RTU frames them."""
    frames = [bytes((UNIT,)) + pdu for pdu in pdus]
    return b"".join(frame + crc16(frame) for frame in frames)


@asynccontextmanager
async def listener(heard: bytearray, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A port that keeps what it is told and says nothing."""

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(4096):
                heard.extend(data)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=tls)
    yield server.sockets[0].getsockname()[1]
    server.close()


@asynccontextmanager
async def link(kind: str, heard: bytearray, folder: Path) -> AsyncIterator[Connection]:
    def of(tcp_port: int, protocol: Protocol, **options: object) -> Connection:
        points = {"m": [point("a", source(0))]}
        return plant_of(points, tcp_port, protocol=protocol, **{"timeout_s": 0.05, **options}).connections[0]

    if kind == "serial":
        async with serial_line(heard) as (ours, _):
            yield of(0, Protocol.MODBUS_RTU, port=ours, baud=115200)
    elif kind == "tls":
        certificate_file, key_file = certificate(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate_file, key_file)
        async with listener(heard, context) as port:
            yield of(port, Protocol.MODBUS_TLS, ca_file=str(certificate_file), server_name="localhost")
    else:
        async with listener(heard) as port:
            protocol = Protocol.MODBUS_RTU_TCP if kind == "rtu-tcp" else Protocol.MODBUS_TCP
            yield of(port, protocol, client="pymodbus" if kind == "pymodbus" else "mbap")


@pytest.mark.parametrize("kind", ["mbap", "pymodbus", "tls", "rtu-tcp", "serial"])
async def test_of_all_functions_only_the_four_that_read_and_the_question_who_is_there_leave(
    kind: str, tmp_path: Path
) -> None:
    heard = bytearray()
    async with link(kind, heard, tmp_path) as connection:
        transport = connection_transport(connection)
        await transport.connect()
        for function in range(256):
            if function in (1, 2, 3, 4):
                with pytest.raises(DeviceUnreachable):
                    await transport.request(UNIT, function, ADDRESS, COUNT)
            else:
                with pytest.raises(ValueError, match="does not read"):
                    await transport.request(UNIT, function, ADDRESS, COUNT)
        with pytest.raises(DeviceUnreachable):
            await transport.identify(UNIT)
        await transport.close()

    framed = on_a_line if kind in ("rtu-tcp", "serial") else over_tcp
    assert bytes(heard) == framed([*READS, IDENTITY])


def sources() -> Iterator[Path]:
    yield from Path(collector.__file__).parent.rglob("*.py")


def test_no_source_of_the_collector_names_a_call_that_writes_to_a_modbus_device() -> None:
    writing = re.compile(r"\.(write_(coil|register|file)|mask_write|readwrite_|diag_|execute\b)")

    named = [f"{path.name}: {found[0]}" for path in sources() for found in writing.finditer(path.read_text())]

    assert named == []
