"""Numbers out of Sparkplug payloads, and the fuzz: nothing sent makes a good-quality wrong value or stops the host."""

from __future__ import annotations

import gzip
import math
import time
import zlib
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collector.drivers import sparkplug_pb2 as pb
from collector.drivers.broker import Columns, Message
from collector.drivers.sparkplug import SparkplugDriver
from collector.sparkplug import COMPRESSED, number_of, payload_of
from core import quality
from core.plant.model import Connection, Device, Kind, Label, MqttSource, Plant, Point, Protocol

INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64, FLOAT, DOUBLE, BOOLEAN, STRING = range(1, 13)
BITS = {INT8: 8, INT16: 16, INT32: 32, INT64: 64, UINT8: 8, UINT16: 16, UINT32: 32, UINT64: 64}
NAMES = ("Energy/Active Power", "Energy/Import", "State")


@pytest.mark.parametrize(
    ("datatype", "fields", "number"),
    [
        (INT32, {"int_value": 4_294_967_291}, -5.0),
        (INT32, {"long_value": 2**64 - 5}, -5.0),
        (INT32, {"int_value": 70_000}, 70_000.0),
        (INT8, {"int_value": 0xFB}, -5.0),
        (INT8, {"int_value": 0xFFFFFFFB}, -5.0),
        (INT8, {"int_value": 127}, 127.0),
        (INT16, {"int_value": 0x8000}, -32768.0),
        (INT64, {"long_value": 2**64 - 1}, -1.0),
        (UINT8, {"int_value": 255}, 255.0),
        (UINT32, {"long_value": 4_000_000_000}, 4e9),
        (UINT64, {"long_value": 2**53}, 2.0**53),
        (FLOAT, {"float_value": 0.5}, 0.5),
        (FLOAT, {"double_value": 0.1}, 0.1),
        (BOOLEAN, {"boolean_value": True}, 1.0),
        (0, {"double_value": 2.25}, 2.25),
    ],
)
def test_a_number_is_what_its_datatype_says(datatype: int, fields: dict[str, Any], number: float) -> None:
    assert number_of(pb.Metric(**fields), datatype) == (number, quality.GOOD)


@pytest.mark.parametrize(
    ("datatype", "fields", "status"),
    [
        (INT8, {"int_value": 300}, quality.BAD_OUT_OF_RANGE),
        (UINT8, {"int_value": 256}, quality.BAD_OUT_OF_RANGE),
        (UINT16, {"int_value": 0xFFFFFFFF}, quality.BAD_OUT_OF_RANGE),
        (INT32, {"long_value": 2**31 + 2**40}, quality.BAD_OUT_OF_RANGE),
        (INT32, {"float_value": 1.0}, quality.BAD_DECODING_ERROR),
        (DOUBLE, {"int_value": 1}, quality.BAD_DECODING_ERROR),
        (BOOLEAN, {"int_value": 1}, quality.BAD_DECODING_ERROR),
        (FLOAT, {"boolean_value": True}, quality.BAD_DECODING_ERROR),
        (FLOAT, {}, quality.BAD_DECODING_ERROR),
        (0, {"int_value": 1}, quality.BAD_CONFIGURATION_ERROR),
        (STRING, {"string_value": "12"}, quality.BAD_CONFIGURATION_ERROR),
        (FLOAT, {"float_value": math.nan}, quality.BAD_SENSOR_FAILURE),
        (DOUBLE, {"double_value": math.inf}, quality.BAD_SENSOR_FAILURE),
        (DOUBLE, {"is_null": True}, quality.BAD_SENSOR_FAILURE),
        (DOUBLE, {"is_null": True, "double_value": 0.0}, quality.BAD_SENSOR_FAILURE),
    ],
)
def test_what_does_not_fit_its_datatype_is_nobody_s_value(
    datatype: int, fields: dict[str, Any], status: int
) -> None:
    number, seen = number_of(pb.Metric(**fields), datatype)

    assert (math.isnan(number), seen) == (True, status)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (192, quality.GOOD), (216, quality.GOOD), (500, quality.UNCERTAIN_LAST_USABLE_VALUE), (64, quality.UNCERTAIN),
        (0, quality.BAD), (24, quality.BAD), (1000, quality.BAD),
    ],
)  # fmt: skip
def test_the_quality_property_becomes_the_status(code: int, status: int) -> None:
    properties = pb.PropertySet(keys=["Quality"], values=[pb.PropertyValue(type=INT32, int_value=code)])

    assert number_of(pb.Metric(double_value=1.0, properties=properties), DOUBLE) == (1.0, status)


@pytest.mark.parametrize(
    ("algorithm", "pack"), [("GZIP", gzip.compress), ("DEFLATE", zlib.compress), ("", zlib.compress)]
)
def test_a_compressed_payload_is_unpacked(algorithm: str, pack: Any) -> None:
    inner = pb.Payload(metrics=[pb.Metric(name="P", double_value=1.5)])
    outer = pb.Payload(uuid=COMPRESSED, seq=9, timestamp=77, body=pack(inner.SerializeToString()))
    if algorithm:
        outer.metrics.add(name="algorithm", datatype=STRING, string_value=algorithm)

    payload = payload_of(outer.SerializeToString())

    assert (payload.seq, payload.timestamp) == (9, 77)
    assert payload.metrics[0].double_value == 1.5


@pytest.mark.parametrize(
    "body",
    [zlib.compress(bytes(20 << 20)), zlib.compress(b"\x12")[:-1], b"no", b""],
    ids=["bomb", "cut", "junk", "empty"],
)
def test_a_body_that_cannot_be_unpacked_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="compressed payload"):
        payload_of(pb.Payload(uuid=COMPRESSED, body=body).SerializeToString())


@given(st.sampled_from(sorted(BITS)), st.integers(0, 2**64 - 1), st.booleans())
def test_a_good_integer_is_its_two_s_complement_and_within_its_width(
    datatype: int, raw: int, is_long: bool
) -> None:
    raw = raw if is_long else raw & 0xFFFFFFFF
    metric = pb.Metric(long_value=raw) if is_long else pb.Metric(int_value=raw)

    number, status = number_of(metric, datatype)

    bits, field_bits = BITS[datatype], 64 if is_long else 32
    signed = datatype in (INT8, INT16, INT32, INT64)
    meant = {raw, raw - (1 << field_bits)} if signed else {raw}
    meant |= {raw - (1 << bits)} if signed and raw < 1 << bits else set()
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    fitting = {float(value) for value in meant if low <= value <= high}
    assert (status == quality.GOOD) == bool(fitting)
    assert status != quality.GOOD or number in fitting


# ---- fuzz of the whole host


def host() -> SparkplugDriver:
    points = tuple(
        Point(f"p{k}", "active_power_total", "kW", Kind.GAUGE, "gw", MqttSource("N/D", name))
        for k, name in enumerate(NAMES)
    )
    connection = Connection("sp", Protocol.SPARKPLUG, {"host": "127.0.0.1", "port": 1, "group": "G"})
    plant = Plant(
        id="t", name=Label("测", "t"), zone=ZoneInfo("UTC"), region="CN", base_interval_s=60, method_sets=(), areas=(),
        connections=(connection,), devices=(Device("gw", "sp", None, tuple(p.id for p in points)),), points=points,
        nodes=(), edges=(), alerts=(), folder="", fingerprint="",
    )  # fmt: skip
    return SparkplugDriver(plant, connection)


def take(driver: SparkplugDriver, kind: str, payload: bytes) -> Columns:
    columns = Columns()
    topic = "spBv1.0/G/" + kind + "/N" + ("/D" if kind[0] == "D" else "")
    driver._take(Message(topic, payload, 0, 0, False, time.time_ns()), columns)
    driver._delivery.batch(columns.slots, columns.times_ns, columns.raws, columns.statuses)
    return columns


KINDS = ("NBIRTH", "NDATA", "NDEATH", "NCMD", "DBIRTH", "DDATA", "DDEATH")
metrics = st.builds(
    lambda name, alias, datatype, value, time_ms, null, old: pb.Metric(
        **{
            key: field
            for key, field in {
                "name": name, "alias": alias, "datatype": datatype, "timestamp": time_ms, "is_null": null,
                "is_historical": old, value[0]: value[1],
            }.items()
            if field is not None
        }
    ),
    st.none() | st.sampled_from([*NAMES, "bdSeq", "", "Other"]),
    st.none() | st.integers(0, 5) | st.integers(0, 2**64 - 1),
    st.none() | st.integers(0, 40) | st.integers(0, 2**32 - 1),
    st.one_of(
        st.tuples(st.just("int_value"), st.integers(0, 2**32 - 1)),
        st.tuples(st.just("long_value"), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("float_value"), st.floats(width=32)),
        st.tuples(st.just("double_value"), st.floats()),
        st.tuples(st.just("boolean_value"), st.booleans()),
        st.tuples(st.just("string_value"), st.text(max_size=5)),
        st.tuples(st.just("template_value"), st.binary(max_size=5)),
    ),
    st.none() | st.integers(0, 2**64 - 1),
    st.none() | st.booleans(),
    st.none() | st.booleans(),
)  # fmt: skip
payloads = st.builds(
    lambda seq, time_ms, content, uuid, body: pb.Payload(
        **({} if seq is None else {"seq": seq}), timestamp=time_ms, metrics=content, uuid=uuid, body=body
    ).SerializeToString(),
    st.none() | st.integers(0, 3) | st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.lists(metrics, max_size=6),
    st.sampled_from(["", "", COMPRESSED]),
    st.binary(max_size=8),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.one_of(payloads, st.binary(max_size=60))), max_size=12))
def test_no_input_stops_the_host(messages: list[tuple[str, bytes]]) -> None:
    driver = host()
    for kind, payload in messages:
        take(driver, kind, payload)
        driver._tend(Columns())
    take(driver, "NBIRTH", pb.Payload(seq=0, timestamp=time.time_ns() // 10**6).SerializeToString())
    named = pb.Metric(name=NAMES[0], alias=1, datatype=DOUBLE, double_value=42.0)
    columns = take(
        driver,
        "DBIRTH",
        pb.Payload(seq=1, timestamp=time.time_ns() // 10**6, metrics=[named]).SerializeToString(),
    )

    assert (0, 42.0, quality.GOOD) in zip(columns.slots, columns.raws, columns.statuses, strict=True)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_whatever_is_lost_no_value_gets_another_s_name(data: st.DataObject) -> None:
    """An edge node shuffles its aliases with each birth; any of its messages but its will is lost on the way."""
    driver, seq, table = host(), 0, {name: k for k, name in enumerate(NAMES)}
    for step in range(data.draw(st.integers(1, 25))):
        doing = (
            data.draw(st.sampled_from(["birth", "device birth", "data", "data", "data"])) if step else "birth"
        )
        sent: list[tuple[str, bytes]] = []
        if doing == "birth":
            take(driver, "NDEATH", b"")  # of QoS 1, so the broker loses none
            sent.append(("NBIRTH", pb.Payload(seq=0).SerializeToString()))
            seq = 1
        if doing in ("birth", "device birth"):
            table = dict(zip(NAMES, data.draw(st.permutations(range(len(NAMES)))), strict=True))
            born = [
                pb.Metric(name=name, alias=table[name], datatype=DOUBLE, double_value=1000.0 * k)
                for k, name in enumerate(NAMES)
            ]
            sent.append(("DBIRTH", pb.Payload(seq=seq, metrics=born).SerializeToString()))
        else:
            k = data.draw(st.integers(0, len(NAMES) - 1))
            told = pb.Metric(alias=table[NAMES[k]], double_value=1000.0 * k + step)
            sent.append(("DDATA", pb.Payload(seq=seq, metrics=[told]).SerializeToString()))
        seq = (seq + 1) % 256
        for kind, payload in sent:
            if data.draw(st.integers(0, 4)):
                columns = take(driver, kind, payload)
                for slot, raw, status in zip(columns.slots, columns.raws, columns.statuses, strict=True):
                    assert status < 0 or raw // 1000 == slot
