"""What a Modbus link has to offer, and everything ecmc may ever ask over one.

`read_pdu` and `identity_pdu` are the only places a request is made. They know the
four reading functions and the question who a device is, and nothing else: nothing
that writes can leave a driver.
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
IDENTIFY: Final = 43
_DEVICE_IDENTIFICATION: Final = 14  # function 43 has a second use, 13, which can write; it is not spoken here
_BASIC_OBJECTS: Final = 1
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
    """The device answered with a Modbus exception; `code` says which, `reason` what it means."""

    def __init__(self, what: str, code: int) -> None:
        self.code = code
        self.reason = _EXCEPTION_NAMES.get(code, "unknown")
        super().__init__(f"{what}: exception {code} ({self.reason})")


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

    async def identify(self, unit: int) -> dict[int, str]:
        """Who the device says it is: text by object id (0 vendor, 1 product code, 2 revision; rarely more).

        Raises as `request`; most devices refuse.
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


def identity_pdu(first_object: int = 0) -> bytes:
    """The request for the basic identification objects from `first_object`."""
    return bytes((IDENTIFY, _DEVICE_IDENTIFICATION, _BASIC_OBJECTS, first_object))


def identity_objects(pdu: bytes, unit: int) -> tuple[dict[int, str], int | None]:
    """The objects of an answer to `identity_pdu`, and from where to ask on (None: that was all).

    Source: Modbus application protocol V1.1b3, 6.21.

    Raises:
        ModbusRefused: The answer is an exception.
        BadReply: It is no such answer.
    """
    what = f"unit {unit} function {IDENTIFY}"
    if len(pdu) == 2 and pdu[0] == IDENTIFY | 0x80:
        raise ModbusRefused(what, pdu[1])
    if len(pdu) < 7 or pdu[:2] != bytes((IDENTIFY, _DEVICE_IDENTIFICATION)):
        raise BadReply(f"{what}: {pdu[:7].hex() or 'nothing'} is no device identification")
    more, follows, count = pdu[4], pdu[5], pdu[6]
    objects: dict[int, str] = {}
    at = 7
    for _ in range(count):
        if at + 2 > len(pdu) or at + 2 + pdu[at + 1] > len(pdu):
            raise BadReply(f"{what}: {count} objects announced, the answer ends in number {len(objects) + 1}")
        end = at + 2 + pdu[at + 1]
        objects[pdu[at]] = pdu[at + 2 : end].decode("utf-8", "replace").strip("\0 ")
        at = end
    return objects, follows if more == 0xFF else None


def reply_size(function: int, count: int) -> int:
    """How many data bytes the answer must carry."""
    return (count + 7) // 8 if function in BIT_FUNCTIONS else 2 * count


def named(unit: int, function: int, address: int, count: int) -> str:
    """A request as messages name it."""
    return f"unit {unit} function {function} address {address} count {count}"
