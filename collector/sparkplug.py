"""Numbers out of Sparkplug B payloads (Eclipse Sparkplug 3.0, chapter 6).

Integers travel unsigned whatever their datatype says: a negative one is a two's
complement, of its own width or of the field's. What does not fit the datatype
is nobody's value.
"""

from __future__ import annotations

import math
import zlib
from enum import IntEnum
from typing import Any, Final

from google.protobuf.message import DecodeError

from collector.drivers import sparkplug_pb2 as pb
from core import quality

COMPRESSED: Final = "SPBV1.0_COMPRESSED"
REBIRTH: Final = "Node Control/Rebirth"
LARGEST_BYTES: Final = 16 << 20  # of a payload unpacked


class Datatype(IntEnum):
    """Those with a number (6.4.16)."""

    INT8 = 1
    INT16 = 2
    INT32 = 3
    INT64 = 4
    UINT8 = 5
    UINT16 = 6
    UINT32 = 7
    UINT64 = 8
    FLOAT = 9
    DOUBLE = 10
    BOOLEAN = 11


_SIGNED: Final = {1: 8, 2: 16, 3: 32, 4: 64}
_UNSIGNED: Final = {5: 8, 6: 16, 7: 32, 8: 64}
_FIELD_BITS: Final = {"int_value": 32, "long_value": 64}
_NUMBERS: Final = frozenset(Datatype)


def payload_of(message: bytes) -> Any:
    """The payload of a message, unpacked where it is compressed.

    Raises:
        ValueError: It is none.
    """
    payload = _parsed(message)
    if payload.uuid != COMPRESSED:
        return payload
    named = [m.string_value for m in payload.metrics if m.name == "algorithm"]
    algorithm = named[0].upper() if named else "DEFLATE"
    if algorithm not in ("DEFLATE", "GZIP"):
        raise ValueError(f"compressed by {algorithm!r}, wanted DEFLATE or GZIP")
    unpack = zlib.decompressobj(zlib.MAX_WBITS | (16 if algorithm == "GZIP" else 0))
    try:
        body = unpack.decompress(payload.body, LARGEST_BYTES)
    except zlib.error as why:
        raise ValueError(f"compressed payload: {why}") from why
    if not unpack.eof:
        raise ValueError(f"compressed payload: incomplete, or more than {LARGEST_BYTES} bytes unpacked")
    inner = _parsed(body)
    if payload.HasField("seq"):  # the message's own, should the packed one have none
        inner.seq = payload.seq
    if not inner.HasField("timestamp") and payload.HasField("timestamp"):
        inner.timestamp = payload.timestamp
    return inner


def _parsed(message: bytes) -> Any:
    payload = pb.Payload()
    try:
        payload.ParseFromString(message)
        payload.uuid, [metric.name for metric in payload.metrics]
    except (DecodeError, UnicodeDecodeError) as why:
        raise ValueError(f"no Sparkplug payload: {why}") from why
    return payload


def name_of(datatype: int) -> str:
    """As people write it: Int32, UInt64, Float."""
    return (
        Datatype(datatype).name.capitalize().replace("Uint", "UInt") if is_number(datatype) else "no number"
    )


def is_number(datatype: int) -> bool:
    """Whether values of a datatype can be a point's."""
    return datatype in _NUMBERS


def says_its_own_type(metric: Any) -> bool:
    """Whether a metric's number can be read without its birth: integers need the datatype, for their sign."""
    return metric.HasField("datatype") or metric.WhichOneof("value") in (
        "float_value",
        "double_value",
        "boolean_value",
    )


def number_of(metric: Any, datatype: int) -> tuple[float, int]:
    """A metric's number and status; NaN and bad where it holds none.

    Args:
        metric: With its value.
        datatype: From the birth, or 0 where only the value's field tells.
    """
    field = metric.WhichOneof("value")
    if metric.is_null:
        return math.nan, quality.BAD_SENSOR_FAILURE
    if field in ("float_value", "double_value"):
        if datatype not in (0, Datatype.FLOAT, Datatype.DOUBLE):
            return math.nan, quality.BAD_DECODING_ERROR
        number = getattr(metric, field)
        return (
            (number, quality_of(metric)) if math.isfinite(number) else (math.nan, quality.BAD_SENSOR_FAILURE)
        )
    if field == "boolean_value":
        if datatype not in (0, Datatype.BOOLEAN):
            return math.nan, quality.BAD_DECODING_ERROR
        return float(metric.boolean_value), quality_of(metric)
    if field not in _FIELD_BITS or (datatype not in _SIGNED and datatype not in _UNSIGNED):
        return math.nan, quality.BAD_DECODING_ERROR if is_number(
            datatype
        ) else quality.BAD_CONFIGURATION_ERROR
    raw = getattr(metric, field)
    if datatype in _SIGNED:
        bits = _SIGNED[datatype]
        if raw >> (bits - 1) == 1:
            raw -= 1 << bits
        elif raw >> (_FIELD_BITS[field] - 1) == 1:
            raw -= 1 << _FIELD_BITS[field]
        fits = -(1 << (bits - 1)) <= raw < 1 << (bits - 1)
    else:
        fits = raw < 1 << _UNSIGNED[datatype]
    return (float(raw), quality_of(metric)) if fits else (math.nan, quality.BAD_OUT_OF_RANGE)


def quality_of(metric: Any) -> int:
    """The status of the property `Quality`: 0 bad, 192 good, 500 stale, or the byte of OPC DA; good without one."""
    if not metric.HasField("properties"):
        return quality.GOOD
    for key, value in zip(metric.properties.keys, metric.properties.values, strict=False):
        if key.lower() == "quality" and value.WhichOneof("value") in ("int_value", "long_value"):
            code = value.int_value if value.HasField("int_value") else value.long_value
            if code == 500:
                return quality.UNCERTAIN_LAST_USABLE_VALUE
            if code < 256 and code & 0xC0 == 0xC0:
                return quality.GOOD
            return quality.UNCERTAIN if code < 256 and code & 0xC0 == 0x40 else quality.BAD
    return quality.GOOD


def rebirth_request(time_ms: int) -> bytes:
    """The payload of a node command that asks for births again (6.4.24): all a host ever commands here."""
    payload = pb.Payload(timestamp=time_ms)
    payload.metrics.add(name=REBIRTH, timestamp=time_ms, datatype=Datatype.BOOLEAN, boolean_value=True)
    data: bytes = payload.SerializeToString()
    return data
