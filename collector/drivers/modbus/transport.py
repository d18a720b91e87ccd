"""What a Modbus link has to offer, and everything ecmc may ever ask over one.

`read_pdu` is the only place a request is made, and it knows the four reading
functions and no other: nothing that writes can leave a driver.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, Protocol

from core.errors import DeviceRefused, DeviceUnreachable

READ_COILS: Final = 1
READ_DISCRETE_INPUTS: Final = 2
READ_HOLDING_REGISTERS: Final = 3
READ_INPUT_REGISTERS: Final = 4
BIT_FUNCTIONS: Final = frozenset({READ_COILS, READ_DISCRETE_INPUTS})
READING_FUNCTIONS: Final = BIT_FUNCTIONS | {READ_HOLDING_REGISTERS, READ_INPUT_REGISTERS}
MAX_REGISTERS: Final = 125  # Modbus application protocol V1.1b3, 6.3
MAX_BITS: Final = 2000  # the same, 6.1

ILLEGAL_FUNCTION: Final = 1
ILLEGAL_ADDRESS: Final = 2
ILLEGAL_VALUE: Final = 3
ACKNOWLEDGE: Final = 5
BUSY: Final = 6
GATEWAY_PATH_UNAVAILABLE: Final = 10
GATEWAY_TARGET_SILENT: Final = 11
_EXCEPTION_NAMES: Final = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge",
    6: "device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target did not respond",
}


class LinkLost(DeviceUnreachable):
    """The connection itself is gone; nothing more can be asked over it."""


class DeviceSilent(DeviceUnreachable):
    """No answer within the timeout; the connection still stands."""


class BadReply(DeviceUnreachable):
    """An answer that does not fit the question."""


class ModbusRefused(DeviceRefused):
    """The device answered with a Modbus exception; `code` says which."""

    def __init__(self, what: str, code: int) -> None:
        self.code = code
        super().__init__(f"{what}: exception {code} ({_EXCEPTION_NAMES.get(code, 'unknown')})")


class Transport(Protocol):
    """One link. `counters` are running totals of what went wrong below the driver's sight."""

    counters: Counter[str]

    async def connect(self) -> None:
        """Open the link anew, whatever it was before; LinkLost where that fails."""

    async def request(self, unit: int, function: int, address: int, count: int) -> bytes:
        """The bytes of `count` registers (two each, as on the wire) or bits (packed, lowest bit first).

        Raises:
            LinkLost: The connection is closed or was closed while waiting.
            DeviceSilent: No answer in time.
            BadReply: The answer has another function, unit or length than asked for.
            ModbusRefused: The device answered with an exception.
            ValueError: The request itself is not a reading one, or out of range.
        """

    async def close(self) -> None: ...


def read_pdu(function: int, address: int, count: int) -> bytes:
    """The request for `count` registers or bits from `address`.

    Raises:
        ValueError: The function does not read, or the range is impossible.
    """
    if function not in READING_FUNCTIONS:
        raise ValueError(f"function {function} does not read; ecmc sends {sorted(READING_FUNCTIONS)} only")
    most = MAX_BITS if function in BIT_FUNCTIONS else MAX_REGISTERS
    if not (1 <= count <= most and address >= 0 and address + count <= 0x10000):
        raise ValueError(f"function {function} cannot read {count} from address {address}")
    return bytes((function, address >> 8, address & 0xFF, count >> 8, count & 0xFF))


def reply_size(function: int, count: int) -> int:
    """How many data bytes the answer must carry."""
    return (count + 7) // 8 if function in BIT_FUNCTIONS else 2 * count


def named(unit: int, function: int, address: int, count: int) -> str:
    """A request as messages name it."""
    return f"unit {unit} function {function} address {address} count {count}"
