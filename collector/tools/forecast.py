"""What a plant will ask its Modbus devices, told before anything connects.

The requests are those the driver begins with: it plans them here as there. Only
where the models of a SunSpec device stand is not known yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from collector.drivers.modbus.build import connection_units
from collector.drivers.modbus.plan import serial_cost
from collector.drivers.modbus.unit import Unit
from core.plant.model import Connection, Plant, Protocol
from core.plant.profile import MODBUS

BUSY_TO_NOTE: Final = 0.7  # of a line's time: above, every retry costs somebody a poll
_USUAL_BAUD: Final = 9600
_MODELS_APART: Final = 4000


@dataclass(frozen=True, slots=True)
class Asked:
    """One request that comes again.

    Attributes:
        address: On the wire, counted from 0; of a SunSpec device from the id register of `model`.
        line_s: How long it keeps a serial line busy; None over Ethernet, where the device alone decides.
    """

    connection: str
    device: str
    unit: int
    function: int
    address: int
    count: int
    period_s: float
    points: tuple[str, ...]
    model: int | None = None
    line_s: float | None = None


def requests(plant: Plant) -> list[Asked]:
    """Every request of the plant's Modbus connections, in the order of connections, devices and addresses."""
    asked = []
    for connection in plant.connections:
        if connection.protocol in MODBUS:
            for unit in connection_units(plant, connection):
                asked += _requests_of(unit, connection)
    return asked


def requests_per_s(asked: Sequence[Asked]) -> dict[str, float]:
    """By connection."""
    per_s: dict[str, float] = {}
    for one in asked:
        per_s[one.connection] = per_s.get(one.connection, 0.0) + 1 / one.period_s
    return per_s


def busy(asked: Sequence[Asked]) -> dict[str, float]:
    """Share of its time that each serial line is busy; above 1 not all can be asked in time."""
    share: dict[str, float] = {}
    for one in asked:
        if one.line_s is not None:
            share[one.connection] = share.get(one.connection, 0.0) + one.line_s / one.period_s
    return share


def lines_said(plant: Plant, share: Mapping[str, float]) -> list[str]:
    """How busy each serial line will be, in words."""
    said = []
    for connection, part in share.items():
        baud = _baud(plant.connection_by_id[connection])
        text = f"{connection} at {baud} baud: {part:.0%} of the line's time is asked for"
        if part > 1:
            text += ", more than there is: polls will be skipped; longer periods or a faster line are needed"
        said.append(f"note: {text}" if part > BUSY_TO_NOTE else text)
    return said


def _requests_of(unit: Unit, connection: Connection) -> list[Asked]:
    models = dict.fromkeys(unit.models_wanted)
    if models:
        unit.stand_at({model: _MODELS_APART * number for number, model in enumerate(models)})
        unit.replan()
    serial = connection.protocol in (Protocol.MODBUS_RTU, Protocol.MODBUS_RTU_TCP)
    pause_s = connection.options.get("pause_s", 0.0)
    assert isinstance(pause_s, int | float)  # the loader typed it
    cost = serial_cost(_baud(connection))
    asked = []
    for planned in unit.planned:
        block = planned.block
        number, address = divmod(block.address, _MODELS_APART) if models else (0, block.address)
        asked.append(
            Asked(
                connection.id,
                unit.device.id,
                unit.device.unit_id,
                block.function,
                address,
                block.count,
                planned.period_ns / 1e9,
                tuple(register.point.id for register in planned.registers),
                list(models)[number] if models else None,
                cost.request + cost.register * block.count + pause_s if serial else None,
            )
        )
    return asked


def _baud(connection: Connection) -> int:
    baud = connection.options.get("baud", _USUAL_BAUD)
    assert isinstance(baud, int)  # the loader typed it
    return baud
