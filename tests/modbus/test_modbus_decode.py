"""Every type and order of registers, as the driver's decode plan reads them."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modbus_field import source

from collector.drivers.modbus.decode import DecodePlan, Reading, kind_of
from core import quality
from core.plant.model import ModbusSource, Order

TIME = np.array([1_795_000_000_000_000_000], dtype=np.int64)
FORMATS = {
    "int16": ">h",
    "uint16": ">H",
    "int32": ">i",
    "uint32": ">I",
    "int64": ">q",
    "uint64": ">Q",
    "float32": ">f",
    "float64": ">d",
    "acc32": ">I",
    "enum16": ">H",
    "bitfield16": ">H",
}


def decoded(registers: bytes, where: ModbusSource, **reading: object) -> tuple[float, int]:
    """Value and status of one reading whose registers stand at the start of a block."""
    image = np.frombuffer(b"\0" + registers, dtype=np.uint8).copy()
    plan = DecodePlan([Reading(point=0, source=where, block=0, position=1, **reading)])  # type: ignore[arg-type]
    _, _, value, status = plan.decode(image, (0,), TIME)
    return float(value[0]), int(status[0])


def in_order(big: bytes, byte_order: Order, word_order: Order) -> bytes:
    """Big-endian bytes as a device with other orders sends them."""
    words = [big[i : i + 2] for i in range(0, len(big), 2)]
    if word_order is Order.LITTLE:
        words.reverse()
    if byte_order is Order.LITTLE:
        words = [word[::-1] for word in words]
    return b"".join(words)


orders = st.sampled_from([Order.BIG, Order.LITTLE])


@given(st.sampled_from(sorted(FORMATS)), st.data(), orders, orders)
def test_every_type_and_order_gives_the_number_that_was_encoded(
    type_: str, data: st.DataObject, byte_order: Order, word_order: Order
) -> None:
    big = data.draw(
        st.binary(min_size=struct.calcsize(FORMATS[type_]), max_size=struct.calcsize(FORMATS[type_]))
    )
    (number,) = struct.unpack(FORMATS[type_], big)
    where = source(0, type_, words=len(big) // 2, byte_order=byte_order, word_order=word_order)

    value, status = decoded(in_order(big, byte_order, word_order), where)

    if math.isfinite(number):
        assert value == float(number)
        assert status == quality.GOOD
    else:
        assert math.isnan(value)
        assert status == quality.BAD_SENSOR_FAILURE


def test_the_four_orders_of_a_float_by_their_letters() -> None:
    abcd = struct.pack(">f", 123.456)
    a, b, c, d = (bytes((byte,)) for byte in abcd)
    big, little = Order.BIG, Order.LITTLE
    sent = {
        (big, big): a + b + c + d,
        (big, little): c + d + a + b,
        (little, big): b + a + d + c,
        (little, little): d + c + b + a,
    }

    values = [
        decoded(wire, source(0, "float32", byte_order=byte, word_order=word))[0]
        for (byte, word), wire in sent.items()
    ]

    assert values == [pytest.approx(123.456, rel=1e-6)] * 4


@given(st.integers(-(2**63), 2**64 - 1), st.sampled_from([1, 10, 100, 1000, 1_000_000]))
@example(2**53 - 1, 1)
@example(2**53 + 3, 10)  # rounded before it is scaled, 1/8 too much
@example(2**64 - 1, 1000)
@example(-(2**63), 100)
def test_a_count_of_64_bits_is_the_nearest_number_to_what_was_counted(count: int, divide: int) -> None:
    type_, wire = ("int64", struct.pack(">q", count)) if count < 0 else ("uint64", struct.pack(">Q", count))

    value, status = decoded(wire, source(0, type_, scale=1 / divide))

    assert (value, status) == (float(Fraction(count, divide)), quality.GOOD)


def test_a_decimal_scale_gives_the_number_on_the_meters_display() -> None:
    shown = [
        decoded(struct.pack(">I", raw), source(0, "uint32", scale=scale))[0]
        for raw, scale in [(2301, 0.1), (99_999_999, 0.01), (1_000_037, 0.001)]
    ]

    assert shown == [230.1, 999_999.99, 1_000.037]


def test_scale_and_offset_with_a_sign() -> None:
    value, _ = decoded(struct.pack(">h", -25), source(0, "int16", scale=-0.5, offset=3.0))

    assert value == 15.5


@given(st.integers(0, 10**12 - 1), orders)
def test_bcd_totals_of_twelve_digits(number: int, word_order: Order) -> None:
    wire = in_order(bytes.fromhex(f"{number:012d}"), Order.BIG, word_order)

    value, status = decoded(wire, source(0, "bcd12", word_order=word_order))

    assert (value, status) == (number, quality.GOOD)


@pytest.mark.parametrize(
    ("type_", "wire"), [("bcd16", "12A4"), ("bcd32", "1234567F"), ("bcd12", "F00000000000")]
)
def test_a_bcd_digit_above_nine_is_a_decoding_error(type_: str, wire: str) -> None:
    value, status = decoded(bytes.fromhex(wire), source(0, type_))

    assert math.isnan(value)
    assert status == quality.BAD_DECODING_ERROR


def test_bits_of_a_register_and_coils() -> None:
    word = struct.pack(">H", 0b1000_0000_0000_0100)

    bits = [decoded(word, source(0, "bit", bit=bit))[0] for bit in (0, 2, 15)]
    field_bit = decoded(word, source(0, "bitfield16", bit=15))[0]
    coils = [decoded(b"\x05", source(0, "bit", function=1), coil_bit=bit)[0] for bit in range(3)]

    assert bits == [0, 1, 1]
    assert field_bit == 1
    assert coils == [1, 0, 1]


@pytest.mark.parametrize(
    ("type_", "wire", "patterns"),
    [
        ("int16", "8000", (0x8000,)),
        ("int16", "8000", (-32768,)),
        ("uint32", "FFFFFFFF", (0x80000000, 0xFFFFFFFF)),
        ("uint64", "FFFFFFFFFFFFFFFF", (0xFFFFFFFFFFFFFFFF,)),
        ("float32", "7F7FFFFF", (0x7F7FFFFF,)),
        ("bcd32", "FFFFFFFF", (0xFFFFFFFF,)),
    ],
)
def test_a_not_available_pattern_is_no_value(type_: str, wire: str, patterns: tuple[int, ...]) -> None:
    value, status = decoded(bytes.fromhex(wire), source(0, type_, invalid=patterns))

    assert math.isnan(value)
    assert status == quality.BAD_SENSOR_FAILURE


@pytest.mark.parametrize("wire", ["7FC00000", "7F800001", "7F800000", "FF800000"])
def test_a_float_that_is_no_number_is_no_value(wire: str) -> None:
    value, status = decoded(bytes.fromhex(wire), source(0, "float32"))

    assert math.isnan(value)
    assert status == quality.BAD_SENSOR_FAILURE


def test_a_delivered_number_can_mean_not_available() -> None:
    value, status = decoded(struct.pack(">h", -1), source(0, "int16", scale=0.1), invalid_values=(-0.1,))

    assert math.isnan(value)
    assert status == quality.BAD_SENSOR_FAILURE


@pytest.mark.parametrize(
    ("raw", "status"), [(99, quality.BAD_OUT_OF_RANGE), (100, quality.GOOD), (201, quality.BAD_OUT_OF_RANGE)]
)
def test_a_number_out_of_range_is_kept_and_marked(raw: int, status: int) -> None:
    assert decoded(struct.pack(">H", raw), source(0), low=100.0, high=200.0) == (raw, status)


@pytest.mark.parametrize(("power", "value"), [(-2, 123.45), (0, 12345.0), (3, 12_345_000.0)])
def test_a_scale_register_moves_the_point(power: int, value: float) -> None:
    wire = struct.pack(">Hh", 12345, power)

    assert decoded(wire, source(0, scale_address=1), scale_position=3) == (value, quality.GOOD)


@pytest.mark.parametrize("power", [-32768, 11, -11])
def test_an_unusable_scale_register_gives_no_value(power: int) -> None:
    value, status = decoded(struct.pack(">Hh", 12345, power), source(0, scale_address=1), scale_position=3)

    assert math.isnan(value)
    assert status == quality.BAD_SENSOR_FAILURE


def test_only_the_answered_blocks_are_decoded_each_with_its_time() -> None:
    image = np.frombuffer(b"\0" + struct.pack(">HHf", 1, 2, 3.0), dtype=np.uint8).copy()
    plan = DecodePlan(
        [
            Reading(10, source(0), block=0, position=1),
            Reading(11, source(5), block=1, position=3),
            Reading(12, source(9, "float32"), block=2, position=5),
        ]
    )

    point, time_ns, value, _ = plan.decode(image, (0, 2), np.array([100, 200], dtype=np.int64))

    assert sorted(zip(point.tolist(), time_ns.tolist(), value.tolist(), strict=True)) == [
        (10, 100, 1.0),
        (12, 200, 3.0),
    ]


def test_a_text_is_not_a_measuring_point() -> None:
    with pytest.raises(ValueError, match="string is no number"):
        kind_of(source(7, "string"))


@given(
    st.binary(min_size=8, max_size=8),
    st.sampled_from([*sorted(FORMATS), "bcd16", "bcd32", "bcd12", "bit", "sunssf"]),
)
def test_any_bytes_decode_to_a_good_number_or_none(wire: bytes, type_: str) -> None:
    value, status = decoded(wire, source(0, type_))

    assert math.isfinite(value) == (status == quality.GOOD)
