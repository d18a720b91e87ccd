"""The bytes between ecmc and a Modbus connection of the plant, kept as they went over the wire.

The plant's own driver does the asking, so that a recording holds exactly what
the plant would see, its failures too. One JSON object a line: seconds since the
start, number of the link, direction, bytes; `collector/tools/replay.py` reads it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collector.drivers.modbus.build import connection_transport, modbus_driver
from collector.drivers.modbus.mbap import MbapTransport
from core.errors import BadRequest, DeviceUnreachable
from core.plant.model import Plant

Said = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording holds."""

    links: int
    requests: int
    replies: int
    values: int


async def record(
    plant: Plant, connection: str, file: Path, seconds: float, said: Said = lambda what, part: None
) -> Recorded:
    """Poll a connection as the plant does for a while and keep the traffic in a new file.

    Raises:
        BadRequest: No such connection, no Modbus frames with transaction ids on it, or the file cannot be made.
        DeviceUnreachable: Not once could the connection be made.
    """
    found = plant.connection_by_id.get(connection)
    if found is None:
        raise BadRequest(f"connection {connection!r}: the plant has none of that name")
    transport = connection_transport(found) if found.protocol.startswith("modbus") else None
    if not isinstance(transport, MbapTransport):
        raise BadRequest(
            f"connection {connection}: {found.protocol} is not recorded, only Modbus TCP and TLS"
        )
    seen: Counter[str] = Counter()
    began_s = time.monotonic()
    try:
        out = file.open("x", encoding="ascii")
    except OSError as why:
        raise BadRequest(f"{file}: {why.strerror}") from None

    def keep(direction: str, data: bytes) -> None:
        seen[direction] += 1
        if data:
            t_s = round(time.monotonic() - began_s, 6)
            entry = {"t": t_s, "conn": seen["open"], "dir": direction, "hex": data.hex()}
            out.write(json.dumps(entry, separators=(",", ":")) + "\n")

    transport.tap = keep
    driver = modbus_driver(plant, found, transport)
    why_not: DeviceUnreachable | None = None
    with out:
        while (left_s := began_s + seconds - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s), driver:
                    while True:
                        seen["values"] += len(await driver.read())
                        said(f"{seen['req']} requests", (time.monotonic() - began_s) / seconds)
            except TimeoutError:
                break
            except DeviceUnreachable as why:
                why_not = why
                await asyncio.sleep(min(1.0, max(0.0, left_s)))
    if not seen["open"] and why_not is not None:
        file.unlink()  # noqa: ASYNC240 - an empty file
        raise why_not
    return Recorded(seen["open"], seen["req"], seen["rsp"], seen["values"])
