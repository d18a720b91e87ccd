"""Read-only by construction: which services ecmc asks a server for, from the bytes it sends."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
from asyncua import ua

from collector.drivers.opcua import OpcuaDriver
from collector.tools.browse import browse
from core.errors import DeviceUnreachable
from core.plant.model import OpcuaSource, Plant

POINTS = {
    name: OpcuaSource(f"nsu=urn:plant:line1;s={node}", element=element)
    for name, node, element in [("a", "Stored", None), ("b", "Voltage", 1), ("c", "Nowhere", None)]
}
SESSION = {"CreateSession", "ActivateSession", "CloseSession", "GetEndpoints"}
READING = {"Read", "HistoryRead", "Browse", "BrowseNext"}
WATCHING = {"CreateSubscription", "CreateMonitoredItems", "Publish", "DeleteSubscriptions"}


def services(sent: bytearray) -> set[str]:
    """The services asked for over one connection without security (Part 6, 6.7.2 and 7.1.2)."""
    names = {}
    for name in vars(ua.ObjectIds):
        if name.endswith("Request_Encoding_DefaultBinary"):
            names[getattr(ua.ObjectIds, name)] = name.removesuffix("Request_Encoding_DefaultBinary")
    found, at = set(), 0
    while at < len(sent):
        kind, size = bytes(sent[at : at + 3]), struct.unpack_from("<I", sent, at + 4)[0]
        if kind == b"MSG":
            encoding, _, number = struct.unpack_from("<BBH", sent, at + 24)
            assert encoding == 1  # a node id of four bytes, as all of these are
            found.add(names[number])
        at += size
    return found


@pytest.mark.parametrize("mode", ["subscribe", "read"])
async def test_whatever_happens_nothing_is_asked_for_that_writes(
    server: Any,
    wire: Callable[[int], Any],
    plant_of: Callable[..., Plant],
    mode: str,
) -> None:
    async with wire(server.port) as line:
        plant = plant_of(line.port, POINTS, mode=mode)
        driver = OpcuaDriver(plant, plant.connections[0])
        async with asyncio.timeout(15):
            async with driver:
                while "a" not in (await driver.read()).names():
                    pass
                line.cut()
                with contextlib.suppress(DeviceUnreachable):
                    while True:
                        await driver.read()
            line.heal()
            async with driver:
                await driver.read()
                assert driver._closing_gap is not None
                await driver._closing_gap
            await browse(plant, "ua1", 1.0)
        asked = set[str]().union(*map(services, line.sent))

    wanted = {"CreateSession", "ActivateSession", "CloseSession", "Read", "HistoryRead", "Browse"}
    assert wanted <= asked <= SESSION | READING | WATCHING
    assert ("Publish" in asked) == (mode == "subscribe")
