"""What a register's type alone tells: its words, its steps, where it wraps, what means "nothing"."""

from __future__ import annotations

import re
import struct
from decimal import Decimal, InvalidOperation
from typing import Final

WORDS: Final = {
    "int16": 1,
    "uint16": 1,
    "int32": 2,
    "uint32": 2,
    "int64": 4,
    "uint64": 4,
    "float32": 2,
    "float64": 4,
    "bcd16": 1,
    "bcd32": 2,
    "bcd12": 3,
    "bit": 1,
    "acc32": 2,
    "enum16": 1,
    "bitfield16": 1,
    "sunssf": 1,
}
FLOATS: Final = frozenset({"float32", "float64"})

# Counts until the register is back at zero. Signed and 64-bit registers are left out:
# what the first do past their middle is the maker's choice, the others never get there.
_COUNTS: Final = {
    "uint16": 2**16,
    "uint32": 2**32,
    "acc32": 2**32,
    "bcd16": 10**4,
    "bcd32": 10**8,
    "bcd12": 10**12,
}
# Quantities on the far side of measuring transformers, by name.
_BY_CURRENT: Final = re.compile(r"current_(l[123]|avg|total)$")
_BY_VOLTAGE: Final = re.compile(r"voltage_(l\d+|ln_avg|ll_avg)$")
_BY_BOTH: Final = re.compile(r"(active|reactive|apparent)_(power|energy)_|grid_power$|load_power$")


def transformer_ratio(quantity: str, ct_ratio: float, vt_ratio: float) -> float:
    """What a reading of a quantity is multiplied by: CT for currents, VT for voltages, both for power and energy."""
    if _BY_CURRENT.match(quantity):
        return ct_ratio
    if _BY_VOLTAGE.match(quantity):
        return vt_ratio
    return ct_ratio * vt_ratio if _BY_BOTH.match(quantity) else 1.0


def wraps_at(type_: str, scale: float) -> float | None:
    """Where a counter of this type comes back to zero, in scaled units; None where the type does not say."""
    counts = _COUNTS.get(type_)
    return None if counts is None else counts * abs(scale)


def shown_maximum(text: str) -> tuple[float, float, float]:
    """A counter's largest shown value as written: itself, where it wraps, one step.

    `999999.99` wraps at 1,000,000.00, since its last decimal place is its step.

    Raises:
        ValueError: Not a positive decimal number.
    """
    try:
        largest = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"counter_max is {text!r}, wanted a number such as 999999.99") from None
    if not largest.is_finite() or largest <= 0:
        raise ValueError(f"counter_max is {text!r}, wanted a number above 0")
    exponent = int(largest.as_tuple().exponent)
    step = Decimal(1).scaleb(min(0, exponent))
    return float(largest), float(largest + step), float(step)


def raw_pattern(text: str, type_: str) -> int:
    """The unsigned bits of a "not available" value, as the register's number: hex as it stands, a number encoded.

    Raises:
        ValueError: Neither, or it does not fit the register.
    """
    bits = 16 * WORDS[type_]
    if type_ in FLOATS and not text.lower().startswith("0x"):
        return int.from_bytes(struct.pack(">f" if bits == 32 else ">d", float(text)), "big")
    number: int = int(text, 0)
    if not -(2 ** (bits - 1)) <= number < 2**bits:
        raise ValueError(f"{text} does not fit a {type_}")
    return number % (1 << bits)
