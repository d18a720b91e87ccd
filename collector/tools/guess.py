"""What a register holds, found from the number on the meter's display.

Every data type is tried in every byte and word order, for functions 3 and 4,
one address either side, and for the powers of ten meters use. What comes out as
the number shown is ranked: first by how well it fits, then by how ordinary it
is. A two-digit display fits many readings of the same words, so the list says
how many there are; a number with more digits leaves one or two.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Final

from collector.drivers.modbus.transport import (
    READ_HOLDING_REGISTERS,
    READ_INPUT_REGISTERS,
    BadReply,
    ModbusRefused,
    Transport,
)
from core.errors import BadRequest, DeviceRefused

WITHIN: Final = 0.01  # of the number shown: a meter goes on counting while somebody reads its display
MOST_EXPONENT: Final = 6
_LONGEST: Final = 4  # words of the widest type
_FORMATS: Final = {
    "uint16": ("H", 1),
    "int16": ("h", 1),
    "uint32": ("I", 2),
    "int32": ("i", 2),
    "float32": ("f", 2),
    "uint64": ("Q", 4),
    "int64": ("q", 4),
    "float64": ("d", 4),
    "bcd16": ("", 1),
    "bcd32": ("", 2),
    "bcd12": ("", 3),
}
_ODDITY: Final = {"uint64": 2, "int64": 2, "float64": 2, "bcd16": 2, "bcd32": 2, "bcd12": 3}


@dataclass(frozen=True, slots=True)
class Display:
    """A number as a display shows it; `half_step` is half of its last digit's worth."""

    number: float
    half_step: float

    @classmethod
    def of(cls, text: str) -> Display:
        """The number of a text; its last digit says how exact it is.

        Raises:
            BadRequest: It is no number, or 0, which too many registers hold.
        """
        try:
            shown = Decimal(text.strip())
        except InvalidOperation:
            raise BadRequest(f"--shows {text!r}: a number wanted, as it stands on the display") from None
        exponent = shown.as_tuple().exponent
        if not isinstance(exponent, int) or shown == 0:
            raise BadRequest(f"--shows {text}: a number other than 0 wanted; 0 fits every empty register")
        return cls(float(shown), 0.5 * 10.0 ** min(exponent, 0))


@dataclass(frozen=True, slots=True)
class Guess:
    """One reading of the words that gives the number shown.

    Attributes:
        address: On the wire, counted from 0; `offset` is how far from the one asked about.
        scale: What the raw number is multiplied by.
        also: Other types that read the same words the same way, such as int32 beside uint32.
        exact: Whether every digit shown is met.
    """

    function: int
    address: int
    offset: int
    type: str
    words: int
    byte_order: str
    word_order: str
    scale: float
    raw: float
    value: float
    exact: bool
    also: tuple[str, ...] = ()

    @property
    def oddity(self) -> int:
        """How far from the ordinary: own address, big endian, a short type, a whole power such as 0.1."""
        exponent = round(math.log10(self.scale))
        return (
            4 * (self.offset != 0)
            + 3 * (self.byte_order == "little")
            + (self.word_order == "little")
            + _ODDITY.get(self.type, 0)
            + (abs(exponent) if exponent <= 0 else 2 * exponent)
            + (2 if self.type.startswith("float") and exponent not in (-3, 0, 3) else 0)
        )


async def guess(transport: Transport, unit: int, address: int, display: Display) -> list[Guess]:
    """The readings of a device's words around `address` that give what its display shows, likeliest first.

    Raises:
        DeviceUnreachable: No answer.
        DeviceRefused: Neither function reads a word there.
    """
    found: list[Guess] = []
    refused = ""
    readable = False
    for function in (READ_HOLDING_REGISTERS, READ_INPUT_REGISTERS):
        words, why = await _words_around(transport, unit, function, address)
        readable |= bool(words)
        refused = why or refused
        found += readings(words, function, address, display)
    if not readable:
        raise DeviceRefused(refused)
    return sorted(found, key=lambda one: (not one.exact, one.oddity, _distance(one, display)))


def readings(words: dict[int, bytes], function: int, address: int, display: Display) -> list[Guess]:
    """Every reading of `words` (two bytes each, by address) that comes out as the number shown."""
    found: dict[tuple[object, ...], Guess] = {}
    for offset in (0, 1, -1):
        start = address + offset
        for kind, (_, count) in _FORMATS.items():
            raw = [words.get(start + i, b"") for i in range(count)]
            if not all(raw):
                continue
            for byte_order, word_order, ordered in _orders(raw):
                number = _number(kind, ordered)
                if number is None:
                    continue
                for scale, value, exact in _scales(number, display):
                    key = (start, count, byte_order, word_order, scale, value)
                    twin = found.get(key)
                    if twin is None:
                        found[key] = Guess(
                            function, start, offset, kind, count, byte_order, word_order, scale, number, value, exact
                        )  # fmt: skip
                    else:
                        found[key] = replace(twin, also=(*twin.also, kind))
    return list(found.values())


def _orders(words: list[bytes]) -> Iterator[tuple[str, str, bytes]]:
    """(byte order, word order, bytes most significant first) of every order that makes a difference."""
    for byte_order in ("big", "little"):
        turned = words if byte_order == "big" else [word[::-1] for word in words]
        yield byte_order, "big", b"".join(turned)
        if len(words) > 1:
            yield byte_order, "little", b"".join(reversed(turned))


def _number(kind: str, data: bytes) -> float | None:
    if not _FORMATS[kind][0]:
        digits = data.hex()
        return float(digits) if digits.isdecimal() else None
    number = float(struct.unpack(f">{_FORMATS[kind][0]}", data)[0])
    return number if math.isfinite(number) and number != 0 else None


def _scales(number: float, display: Display) -> Iterator[tuple[float, float, bool]]:
    """(scale, value, whether exact) of the powers of ten that bring a raw number to the one shown."""
    if number == 0 or (number < 0) != (display.number < 0):
        return
    exponent = round(math.log10(abs(display.number)) - math.log10(abs(number)))
    if abs(exponent) > MOST_EXPONENT:
        return
    scale = 10.0**exponent
    value = number * scale if exponent >= 0 else number / 10.0**-exponent
    off = abs(value - display.number)
    exact = off <= display.half_step * (1 + 1e-6)
    if exact or off <= WITHIN * abs(display.number):
        yield scale, value, exact


def _distance(one: Guess, display: Display) -> float:
    return abs(one.value - display.number)


async def _words_around(
    transport: Transport, unit: int, function: int, address: int
) -> tuple[dict[int, bytes], str]:
    """The words from one before `address` to the end of the widest type one behind, and the last refusal."""
    first, last = max(address - 1, 0), min(address + _LONGEST, 0xFFFF)
    why = ""
    words: dict[int, bytes] = {}
    # What a device refuses as a whole it may give in parts; a part is never shorter than one word.
    spans = [(first, last - first + 1)]
    while spans:
        start, count = spans.pop()
        try:
            data = await transport.request(unit, function, start, count)
        except (ModbusRefused, BadReply) as refused:
            why = str(refused)
            if count > 1:
                half = count // 2
                spans += [(start, half), (start + half, count - half)]
            continue
        words |= {start + i: data[2 * i : 2 * i + 2] for i in range(count)}
    return words, why
