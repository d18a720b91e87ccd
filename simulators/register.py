"""A value as a device's registers hold it: the way back from decoding.

A register shows less than the truth: whole counts of its step, rounded down for
a counter, seven digits for a float32, and it begins again at zero where its
width ends. `held` gives the value as whoever reads it will see it, in bulk;
`words` the registers on the wire.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from core.plant.model import Kind, ModbusSource, Order, Point
from core.samples import Floats

# Powers of ten a SunSpec device of this plant's size reports in, by the point's unit.
_EXPONENT: Final = {"A": -1, "V": -1, "kW": 1, "kVA": 1, "kvar": 1, "Hz": -2, "1": -1, "kWh": 0, "kvarh": 0}
_BCD_DIGITS: Final = {"bcd16": 4, "bcd32": 8, "bcd12": 12}
_SIGNED: Final = frozenset({"int16", "int32", "int64", "sunssf"})
_JUST_BELOW: Final = 1e-6  # of a count: floating point must not cost a counter a whole one


def exponent_of(point: Point) -> int:
    """What the point's SunSpec scale register holds; 0 where it has none."""
    source = point.source
    if not isinstance(source, ModbusSource) or source.scale_address is None:
        return 0
    return _EXPONENT.get(point.unit, -1)


def raw(point: Point, value: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The number in the register for each value, shape as `value`; NaN stays NaN."""
    source = _modbus(point)
    wanted = np.asarray(value, dtype=np.float64)
    if point.counter_modulus is not None:
        wanted = wanted % point.counter_modulus
    counts = (wanted - source.offset) / (source.scale * 10.0 ** exponent_of(point))
    if source.type == "float32":
        return counts.astype(np.float32).astype(np.float64)
    if source.type == "float64":
        return counts
    least, end = _range(source)
    if point.kind is Kind.COUNTER:
        return np.floor(counts + _JUST_BELOW) % end
    return np.clip(np.rint(counts), least, end - 1)


def held(point: Point, value: npt.ArrayLike) -> Floats:
    """The value a reader of the register gets, in the point's unit, shape as `value`."""
    source = _modbus(point)
    return raw(point, value) * (source.scale * 10.0 ** exponent_of(point)) + source.offset


def words(point: Point, value: float) -> list[int]:
    """The registers that hold a value, in the order they stand on the wire.

    A missing value (NaN) is the type's "not available" pattern, NaN in a float, else zero.
    """
    source = _modbus(point)
    counts = float(raw(point, value))
    if source.type in ("float32", "float64"):
        data = np.array(counts, dtype=">f4" if source.type == "float32" else ">f8").tobytes()
    elif np.isnan(counts):
        data = (source.invalid[0] if source.invalid else 0).to_bytes(2 * source.words, "big")
    elif source.type in _BCD_DIGITS:
        data = bytes.fromhex(f"{int(counts):0{4 * source.words}d}")
    elif source.type == "bit":
        data = (int(counts) << (source.bit or 0)).to_bytes(2, "big")
    else:
        data = int(counts).to_bytes(2 * source.words, "big", signed=source.type in _SIGNED)
    pairs = [data[at : at + 2] for at in range(0, len(data), 2)]
    if source.byte_order is Order.LITTLE:
        pairs = [pair[::-1] for pair in pairs]
    if source.word_order is Order.LITTLE:
        pairs.reverse()
    return [int.from_bytes(pair, "big") for pair in pairs]


def _range(source: ModbusSource) -> tuple[float, float]:
    """The least count and the one after the largest."""
    if source.type == "bit":
        return 0.0, 2.0
    if source.type in _BCD_DIGITS:
        return 0.0, 10.0 ** _BCD_DIGITS[source.type]
    bits = 16 * source.words
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if source.type in _SIGNED else (0.0, 2.0**bits)


def _modbus(point: Point) -> ModbusSource:
    if not isinstance(point.source, ModbusSource):
        raise TypeError(f"point {point.id} is no Modbus register")
    return point.source
