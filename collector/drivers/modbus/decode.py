"""Registers into numbers: one gather a data type over all the answers of a tick.

Every block has its place in one byte image of the connection; an answer is
copied there and nothing is looked at until the tick ends. The plan holds, for
each data type, where the bytes of every value stand, most significant first,
so byte and word order cost nothing at run time. Values are never touched one by
one in Python.

A scale such as 0.1 is applied as a division by 10, which is what the meter's
display does: 2301 becomes 230.1 and not 230.10000000000002. A count of 64 bits
is scaled as the whole number it is, so that it is rounded once, to the nearest
value the column can hold, and never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from core.plant.model import ModbusSource, Order
from core.quality import BAD_DECODING_ERROR, BAD_OUT_OF_RANGE, BAD_SENSOR_FAILURE
from core.samples import Flags, Floats, Indices, Statuses, Times

Bytes = npt.NDArray[np.uint8]
Positions = npt.NDArray[np.intp]

FIRST_FREE: Final = 1  # the image's first byte is always 0: what shorter numbers are padded with
NO_SCALE: Final = b"\x80\x00"  # what a scale register holds that nobody has read yet
MAX_POWER: Final = 10  # of ten, in a SunSpec scale register (SunSpec Information Model, sunssf)

_KIND_OF_TYPE: Final = {
    "uint16": "u2",
    "int16": "i2",
    "enum16": "u2",
    "bitfield16": "u2",
    "sunssf": "i2",
    "uint32": "u4",
    "int32": "i4",
    "acc32": "u4",
    "uint64": "u8",
    "int64": "i8",
    "acc64": "u8",
    "float32": "f4",
    "float64": "f8",
    "bcd16": "bcd",
    "bcd32": "bcd",
    "bcd12": "bcd",
    "bit": "bit",
}
_WIDTH: Final = {"u2": 2, "i2": 2, "u4": 4, "i4": 4, "u8": 8, "i8": 8, "f4": 4, "f8": 8, "bcd": 8, "bit": 2}
_WIDE: Final = ("u8", "i8")
_EXACT: Final = 2**53  # every whole number up to here is a float64
_PLACE_VALUES: Final = 100 ** np.arange(7, -1, -1, dtype=np.int64)
_POWERS: Final = 10.0 ** np.arange(MAX_POWER + 1)


@dataclass(frozen=True, slots=True)
class Reading:
    """One value of the plan.

    Attributes:
        point: Its index in the plant's point table.
        source: Type, orders, scale and invalid patterns.
        block: Number of the block whose answer brings it.
        position: Of its first byte in the image (of its byte, for coils).
        coil_bit: Bit within that byte, for functions 1 and 2.
        scale_position: Of its scale register in the image, if it has one.
    """

    point: int
    source: ModbusSource
    block: int
    position: int
    coil_bit: int | None = None
    scale_position: int | None = None
    low: float | None = None
    high: float | None = None
    invalid_values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Gather:
    """The values of one data type: byte positions (n, width), and raw patterns that mean "not available".

    `scales` (n, 2), multiply and divide, stands here for wide integers only; the columns leave theirs to the gather.
    """

    kind: str
    index: Positions
    shift: npt.NDArray[np.uint16]
    scales: Floats
    invalid_row: Positions
    invalid_raw: npt.NDArray[np.uint64]

    def take(self, chosen: Flags) -> _Gather:
        invalid = chosen[self.invalid_row]
        return _Gather(
            self.kind,
            self.index[chosen],
            self.shift[chosen],
            self.scales[chosen] if self.scales.size else self.scales,
            _renumbered(self.invalid_row[invalid], chosen),
            self.invalid_raw[invalid],
        )


@dataclass(frozen=True, slots=True)
class _Columns:
    """What is done to the gathered numbers, in the order of the gathers; shape (n,) but where said otherwise."""

    point: Indices
    block: Positions  # in `take`'s result: which of the answered blocks
    multiply: Floats
    divide: Floats
    offset: Floats
    low: Floats
    high: Floats
    power_row: Positions  # (k,) rows with a scale register, at power_index (k, 2)
    power_index: Positions
    invalid_row: Positions  # (m,) rows with a delivered number that means "not available"
    invalid_value: Floats

    def take(self, chosen: Flags, block: Positions) -> _Columns:
        power, invalid = chosen[self.power_row], chosen[self.invalid_row]
        return _Columns(
            self.point[chosen],
            block[chosen],
            self.multiply[chosen],
            self.divide[chosen],
            self.offset[chosen],
            self.low[chosen],
            self.high[chosen],
            _renumbered(self.power_row[power], chosen),
            self.power_index[power],
            _renumbered(self.invalid_row[invalid], chosen),
            self.invalid_value[invalid],
        )


class _Cut:
    """The part of the plan that one set of blocks feeds; knows which steps change nothing there."""

    def __init__(self, gathers: list[_Gather], columns: _Columns) -> None:
        self.gathers = gathers
        self.columns = columns
        self.scaled = bool((columns.multiply != 1).any() or (columns.divide != 1).any())
        self.shifted = bool((columns.offset != 0).any())
        self.bounded = bool(np.isfinite(columns.low).any() or np.isfinite(columns.high).any())


def new_image(size: int) -> Bytes:
    return np.zeros(size, dtype=np.uint8)


def kind_of(source: ModbusSource) -> str:
    """The data type class of a source.

    Raises:
        ValueError: A type that is no number.
    """
    if source.type in ("uint16", "bitfield16") and source.bit is not None:
        return "bit"
    try:
        return _KIND_OF_TYPE[source.type]
    except KeyError:
        raise ValueError(f"address {source.address}: type {source.type} is no number") from None


def byte_positions(source: ModbusSource, first: int) -> list[int]:
    """Image positions of a value's bytes, most significant first."""
    last_word = source.words - 1
    positions = []
    for k in range(2 * source.words):
        word, byte = divmod(k, 2)
        if source.word_order is Order.LITTLE:
            word = last_word - word
        if source.byte_order is Order.LITTLE:
            byte = 1 - byte
        positions.append(first + 2 * word + byte)
    return positions


class DecodePlan:
    """All values of a connection, compiled; decodes those whose blocks were answered."""

    def __init__(self, readings: Sequence[Reading]) -> None:
        by_kind: dict[str, list[Reading]] = {}
        for reading in readings:
            by_kind.setdefault(kind_of(reading.source), []).append(reading)
        self._gathers = [_gather_of(kind, part) for kind, part in by_kind.items()]
        self._columns = _columns_of([reading for part in by_kind.values() for reading in part])
        self._blocks = 1 + max((reading.block for reading in readings), default=-1)
        self._cuts: dict[tuple[int, ...], _Cut] = {}

    def decode(
        self, image: Bytes, blocks: tuple[int, ...], time_ns: Times
    ) -> tuple[Indices, Times, Floats, Statuses]:
        """Point, time, value and status of every value that the answered blocks carry.

        Args:
            image: Shape (size,), the connection's bytes.
            blocks: The blocks answered, each once.
            time_ns: Shape (len(blocks),): when each was read.

        Returns:
            Columns of shape (n,). NaN with BadSensorFailure where the device says
            "not available" (its pattern, a NaN, an unusable scale register), with
            BadDecodingError where a BCD digit is none. A number outside low..high
            is kept, with BadOutOfRange.
        """
        cut = self._cuts.get(blocks)
        if cut is None:
            if len(self._cuts) >= 256:  # sets of blocks that fall due together are few and come again
                self._cuts.clear()
            cut = self._cuts[blocks] = self._cut_for(blocks)
        columns = cut.columns
        value: Floats = np.empty(columns.point.size)
        status: Statuses = np.zeros(columns.point.size, dtype=np.int16)
        start = 0
        with np.errstate(invalid="ignore", over="ignore"):
            for gather in cut.gathers:
                end = start + len(gather.index)
                _gather(image, gather, value[start:end], status[start:end])
                start = end
            if cut.scaled:
                value *= columns.multiply
                value /= columns.divide
            if columns.power_row.size:
                _apply_powers(image, columns, value)
            if cut.shifted:
                value += columns.offset
        if columns.invalid_row.size:
            hit = columns.invalid_row[value[columns.invalid_row] == columns.invalid_value]
            value[hit] = np.nan
        present = np.isfinite(value)
        if not present.all():
            value[~present] = np.nan
            status[~present & (status == 0)] = BAD_SENSOR_FAILURE
        if cut.bounded:
            status[(value < columns.low) | (value > columns.high)] = BAD_OUT_OF_RANGE
        return columns.point, time_ns[columns.block], value, status

    def _cut_for(self, blocks: tuple[int, ...]) -> _Cut:
        # A block that brings nothing but scale registers feeds no value, wherever it stands.
        number = np.full(max(self._blocks, 1 + max(blocks, default=-1)), -1, dtype=np.intp)
        number[list(blocks)] = np.arange(len(blocks))
        block = number[self._columns.block]
        chosen = block >= 0
        gathers, start = [], 0
        for gather in self._gathers:
            end = start + len(gather.index)
            if chosen[start:end].any():
                gathers.append(gather.take(chosen[start:end]))
            start = end
        return _Cut(gathers, self._columns.take(chosen, block))


def _columns_of(readings: Sequence[Reading]) -> _Columns:
    scales = [(1.0, 1.0) if kind_of(one.source) in _WIDE else _ratio(one.source.scale) for one in readings]
    powers = [(row, one.scale_position) for row, one in enumerate(readings) if one.scale_position is not None]
    invalid = [(row, number) for row, one in enumerate(readings) for number in one.invalid_values]
    return _Columns(
        point=np.array([one.point for one in readings], dtype=np.int32),
        block=np.array([one.block for one in readings], dtype=np.intp),
        multiply=np.array([multiply for multiply, _ in scales], dtype=np.float64),
        divide=np.array([divide for _, divide in scales], dtype=np.float64),
        offset=np.array([one.source.offset for one in readings], dtype=np.float64),
        low=np.array([-np.inf if one.low is None else one.low for one in readings], dtype=np.float64),
        high=np.array([np.inf if one.high is None else one.high for one in readings], dtype=np.float64),
        power_row=np.array([row for row, _ in powers], dtype=np.intp),
        power_index=np.array([(at, at + 1) for _, at in powers], dtype=np.intp).reshape(-1, 2),
        invalid_row=np.array([row for row, _ in invalid], dtype=np.intp),
        invalid_value=np.array([number for _, number in invalid], dtype=np.float64),
    )


def _renumbered(rows: Positions, chosen: Flags) -> Positions:
    """Where rows stand once only the chosen ones are left."""
    return (np.cumsum(chosen) - 1)[rows]


def _gather_of(kind: str, readings: Sequence[Reading]) -> _Gather:
    width = _WIDTH[kind]
    index = np.zeros((len(readings), width), dtype=np.intp)  # position 0 always holds 0
    shift = np.zeros(len(readings), dtype=np.uint16)
    invalid: list[tuple[int, int]] = []
    for row, reading in enumerate(readings):
        source = reading.source
        if reading.coil_bit is not None:
            index[row, -1] = reading.position
            shift[row] = reading.coil_bit
        else:
            positions = byte_positions(source, reading.position)
            index[row, width - len(positions) :] = positions
            shift[row] = source.bit or 0
        bits = 16 * source.words
        invalid += [(row, pattern % (1 << bits)) for pattern in source.invalid]
    return _Gather(
        kind,
        index,
        shift,
        np.array([_ratio(one.source.scale) for one in readings if kind in _WIDE]).reshape(-1, 2),
        np.array([row for row, _ in invalid], dtype=np.intp),
        np.array([raw for _, raw in invalid], dtype=np.uint64),
    )


def _gather(image: Bytes, gather: _Gather, value: Floats, status: Statuses) -> None:
    raw = image[gather.index]
    width = raw.shape[1]
    if gather.kind == "bcd":
        high, low = raw >> 4, raw & 0x0F
        value[:] = (high * np.int64(10) + low) @ _PLACE_VALUES
        wrong = ((high > 9) | (low > 9)).any(axis=1)
        value[wrong] = np.nan
        status[wrong] = BAD_DECODING_ERROR
    elif gather.kind == "bit":
        value[:] = (raw.view(">u2")[:, 0] >> gather.shift) & 1
    elif gather.kind in _WIDE:
        _scale_wide(raw.view(f">{gather.kind}")[:, 0], gather.scales, value)
    else:
        value[:] = raw.view(f">{gather.kind}")[:, 0]
    if gather.invalid_row.size:
        seen = raw.view(f">u{width}")[gather.invalid_row, 0]
        hit = gather.invalid_row[seen == gather.invalid_raw]
        value[hit] = np.nan
        status[hit] = BAD_SENSOR_FAILURE


def _scale_wide(counts: npt.NDArray[np.int64 | np.uint64], scales: Floats, value: Floats) -> None:
    value[:] = counts
    value *= scales[:, 0]
    value /= scales[:, 1]
    for row in np.flatnonzero((counts > _EXACT) | (counts < -_EXACT)):  # no meter's register, in a lifetime
        multiply, divide = map(Fraction, scales[row].tolist())
        value[row] = float(int(counts[row]) * multiply / divide)


def _apply_powers(image: Bytes, columns: _Columns, value: Floats) -> None:
    power = image[columns.power_index].view(">i2")[:, 0].astype(np.intp)
    usable = np.abs(power) <= MAX_POWER
    power[~usable] = 0
    scaled = value[columns.power_row] * _POWERS[np.maximum(power, 0)] / _POWERS[np.maximum(-power, 0)]
    scaled[~usable] = np.nan
    value[columns.power_row] = scaled


@lru_cache(maxsize=4096)
def _ratio(scale: float) -> tuple[float, float]:
    """A scale as (multiply by, divide by) in whole numbers where it is such a fraction."""
    fraction = Fraction(scale).limit_denominator(1_000_000)
    if fraction.numerator and fraction.numerator / fraction.denominator == scale:
        return float(fraction.numerator), float(fraction.denominator)
    return scale, 1.0
