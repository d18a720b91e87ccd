"""A Modbus TCP port named on the command line, as a link."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from collector.drivers.modbus.mbap import MbapTransport
from core.errors import BadRequest

MODBUS_PORT = 502


def host_and_port(text: str) -> tuple[str, int]:
    """`meter.plant:1502`, `10.0.0.7` (port 502) or `[fe80::1]:502`.

    Raises:
        BadRequest: The port is no number, or no port.
    """
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(MODBUS_PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise BadRequest(f"{text!r}: HOST or HOST:PORT wanted")
    return host.removeprefix("[").removesuffix("]"), int(port)


@asynccontextmanager
async def modbus_link(target: str, timeout_s: float) -> AsyncIterator[MbapTransport]:
    """A connected transport to HOST:PORT, closed at the end; LinkLost where nobody takes the connection."""
    host, port = host_and_port(target)
    transport = MbapTransport(host, port, timeout_s=timeout_s)
    await transport.connect()
    try:
        yield transport
    finally:
        await transport.close()
