"""What a connection has to offer that no point of the plant reads yet, as rows of a point list.

One module a protocol, `browse_<protocol>.py`, each with `browse(plant, connection,
seconds, said)`; Modbus has nothing to browse, that is what `scan` and `guess` are for.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import BadRequest
from core.plant.model import Plant, Protocol
from core.plant.pointlist import COLUMNS, MORE_COLUMNS

Said = Callable[[str, float], None]  # what is being done, and how far it is (0..1)


@dataclass(frozen=True, slots=True)
class Offer:
    """One value somebody could make a point of.

    Attributes:
        cells: Its cells of a point list row, by column name: where it is found, and what is known about it.
        shows: What it says now.
        note: Anything else worth seeing beside it.
        used: Whether a point of the plant reads it already.
    """

    cells: dict[str, str]
    shows: str
    note: str = ""
    used: bool = False


async def browse(
    plant: Plant, connection: str, seconds: float, said: Said = lambda what, part: None
) -> list[Offer]:
    """What a connection of the plant offers.

    Args:
        seconds: How long to listen, where there is nothing to ask.

    Raises:
        BadRequest: No such connection, or its protocol has nothing to browse.
        DeviceUnreachable: The other side cannot be reached.
        DeviceRefused: It does not let us in.
    """
    found = plant.connection_by_id.get(connection)
    if found is None:
        known = ", ".join(plant.connection_by_id) or "none"
        raise BadRequest(f"connection {connection!r}: the plant has none of that name, but {known}")
    if found.protocol is Protocol.MQTT:
        from collector.tools import browse_mqtt

        return await browse_mqtt.browse(plant, found, seconds, said)
    if found.protocol is Protocol.SPARKPLUG:
        from collector.tools import browse_sparkplug

        return await browse_sparkplug.browse(plant, found, seconds, said)
    if found.protocol is Protocol.OPCUA:
        from collector.tools import browse_opcua

        return await browse_opcua.browse(plant, found, seconds, said)
    raise BadRequest(f"connection {connection}: {found.protocol} has nothing to browse")


def write_point_list(offers: Sequence[Offer], file: Path) -> None:
    """The offers as a point list to be filled in; a file that is there already is not overwritten.

    Raises:
        BadRequest: The file cannot be made.
    """
    try:
        with file.open("x", newline="", encoding="utf-8-sig") as out:
            named = {column for offer in offers for column in offer.cells}
            writer = csv.DictWriter(out, (*COLUMNS, *(c for c in MORE_COLUMNS if c in named)))
            writer.writeheader()
            writer.writerows(offer.cells for offer in offers)
    except OSError as why:
        raise BadRequest(f"{file}: {why.strerror}") from None
