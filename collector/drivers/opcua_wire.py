"""Publish and read answers of an OPC UA server, from bytes straight into columns (Part 6, 5.2).

The library makes a dozen objects of each value. Here a number is one `unpack` by
the layout its first two bytes name; what has no fixed size, an array or a text,
is left to the library, one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from struct import Struct
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import (
    Primitives,
    extensionobject_from_binary,
    nodeid_from_binary,
    struct_from_binary,
    variant_from_binary,
)

from core.clock import NS_PER_S, time_ns_of
from core.samples import Floats, Times

NO_TIME: Final = -(2**62)  # ns; of a timestamp that is not there, or at an end of its range (Part 6, 5.2.2.5)
NS_PER_TICK: Final = 100
TICKS_AT_EPOCH: Final = 116_444_736_000_000_000
_TICKS_PER_YEAR: Final = 366 * 86_400 * NS_PER_S // NS_PER_TICK
_LAST_TICK: Final = 2_650_467_743_990_000_000  # the end of 9999
_FAR_TICKS: Final = 4 * 10**16  # 127 years: what differs by more from 1970 is as good as that


@dataclass(slots=True, eq=False)
class Values:
    """Values as a server gave them, in its order.

    Attributes:
        handle: Shape (n,), whose value it is.
        number: Shape (n,), NaN where it is none.
        code: Shape (n,), the 32-bit status.
        source_ns, server_ns: Shape (n,), UTC, NO_TIME where there is none.
        other: What is no number (an array, a text), by row.
    """

    handle: npt.NDArray[np.int64]
    number: Floats
    code: npt.NDArray[np.int64]
    source_ns: Times
    server_ns: Times
    other: dict[int, Any]

    def __len__(self) -> int:
        return int(self.handle.size)


@dataclass(slots=True)
class PublishAnswer:
    """One notification message of a subscription (Part 4, 5.13.5); of a keep-alive, `is_alive_only`."""

    subscription: int
    sequence: int
    published_ns: int
    more: bool = False
    is_alive_only: bool = True
    changes: list[Values] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # of the subscription itself


# (number, code, source ticks, server ticks)
_Row = tuple[float, int, int, int]


class _Layout(NamedTuple):
    """How a data value goes on: all of a number's by its two first bytes, the rest behind anything else's value.

    The library takes the picoseconds from behind both times, where none are (Part 6, 5.2.2.17).
    """

    size: int
    unpack: Callable[[bytes, int], tuple[Any, ...]]
    ordered: Callable[..., _Row]


_SIGNS: Final = {1: "?", 2: "b", 3: "B", 4: "h", 5: "H", 6: "i", 7: "I", 8: "q", 9: "Q", 10: "f", 11: "d"}
_ORDERED: Final[dict[int, Callable[..., _Row]]] = {  # by the bits of status, source and server time
    0b0000: lambda v: (v, 0, 0, 0),
    0b0010: lambda v, c: (v, c, 0, 0),
    0b0100: lambda v, s: (v, 0, s, 0),
    0b0110: lambda v, c, s: (v, c, s, 0),
    0b1000: lambda v, t: (v, 0, 0, t),
    0b1010: lambda v, c, t: (v, c, 0, t),
    0b1100: lambda v, s, t: (v, 0, s, t),
    0b1110: lambda v, c, s, t: (v, c, s, t),
}
_PARTS: Final = ((0x02, "I"), (0x04, "q"), (0x10, "2x"), (0x08, "q"), (0x20, "2x"))


def _layout(mask: int, value: str) -> _Layout:
    form = Struct(f"<{value}" + "".join(part for bit, part in _PARTS if mask & bit))
    return _Layout(form.size, form.unpack_from, _ORDERED[mask & 0b1110])


_NUMBERS: Final = {
    bytes((mask, kind)): _layout(mask, f"2x{sign}")
    for mask in range(0x01, 0x40, 2)
    for kind, sign in _SIGNS.items()
}
_UINT32: Final = Struct("<I")
_INT32: Final = Struct("<i")
_INT64: Final = Struct("<q")
_BEHIND: Final = {mask: _layout(mask, "") for mask in range(0x40)}


def publish_answer(data: Any) -> PublishAnswer:
    """A PublishResponse.

    Args:
        data: The library's buffer, at the type of the message.

    Raises: as the library does for a bad result; anything at all where the bytes are no such message.
    """
    raw = _after_header(data)
    subscription = int(Primitives.UInt32.unpack(raw))
    raw.skip(4 * _length(raw))  # the messages it could send again
    more = bool(Primitives.Boolean.unpack(raw))
    answer = _notification(raw, subscription)
    answer.more = more
    return answer


def republished(data: Any, subscription: int) -> PublishAnswer:
    """A RepublishResponse; see `publish_answer`."""
    return _notification(_after_header(data), subscription)


def read_answer(data: Any, handles: Sequence[int]) -> Values:
    """A ReadResponse, a value for each handle; see `publish_answer`."""
    raw = _after_header(data)
    count = _length(raw)
    if count != len(handles):
        raise ValueError(f"{len(handles)} values wanted, {count} came back")
    return _values(bytes(raw), 0, count, handles)[0]


def values_of(values: Iterable[tuple[int, ua.DataValue]]) -> Values:
    """Of (handle, value) as the library reads them."""
    handles: list[int] = []
    rows: list[_Row] = []
    other: dict[int, Any] = {}
    for i, (handle, value) in enumerate(values):
        number = _number(value.Value.Value if value.Value is not None else None, i, other)
        code = int(value.StatusCode.value) if value.StatusCode is not None else 0
        handles.append(handle)
        rows.append((number, code, _ticks(value.SourceTimestamp), _ticks(value.ServerTimestamp)))
    return _columns(handles, rows, other)


def _after_header(data: Any) -> Any:
    raw = Buffer(bytes(data))
    nodeid_from_binary(raw)
    struct_from_binary(ua.ResponseHeader, raw).ServiceResult.check()
    return raw


def _length(raw: Any) -> int:
    return max(0, int(Primitives.Int32.unpack(raw)))


def _notification(raw: Any, subscription: int) -> PublishAnswer:
    sequence = int(Primitives.UInt32.unpack(raw))
    (ticks,) = _INT64.unpack(raw.read(8))
    answer = PublishAnswer(subscription, sequence, int(_ns(np.array([ticks]))[0]))
    count = _length(raw)
    answer.is_alive_only = count == 0
    for _ in range(count):
        start = raw.cur_pos
        kind = nodeid_from_binary(raw)
        raw.skip(1)  # that a body follows, in bytes
        size = int(Primitives.Int32.unpack(raw))
        if kind.NamespaceIndex == 0 and kind.Identifier == _DATA_CHANGE:
            content = raw.read(size)
            (items,) = _INT32.unpack_from(content)
            answer.changes.append(_values(content, _INT32.size, items, None)[0])
            continue
        raw.rewind(start)
        notification = extensionobject_from_binary(raw)
        if isinstance(notification, ua.StatusChangeNotification):
            answer.statuses.append(int(ua.StatusCode(notification.Status).value))
    return answer


_DATA_CHANGE: Final = int(ua.ObjectIds.DataChangeNotification_Encoding_DefaultBinary)


def _values(data: bytes, at: int, count: int, handles: Sequence[int] | None) -> tuple[Values, int]:
    """`count` data values from `at` on, each behind its handle where none are given; and where they end."""
    own: list[int] = []
    rows: list[_Row] = []
    other: dict[int, Any] = {}
    for i in range(count):
        if handles is None:
            own.append(_UINT32.unpack_from(data, at)[0])
            at += _UINT32.size
        number = _NUMBERS.get(data[at : at + 2])
        if number is not None:
            rows.append(number.ordered(*number.unpack(data, at)))
            at += number.size
            continue
        mask, value = data[at], np.nan
        at += 1
        if mask & 0x01:
            buffer = Buffer(data, at)
            value = _number(variant_from_binary(buffer).Value, i, other)
            at = buffer.cur_pos
        behind = _BEHIND[mask]
        rows.append(behind.ordered(value, *behind.unpack(data, at)))
        at += behind.size
    return _columns(own if handles is None else handles, rows, other), at


def _number(content: Any, row: int, other: dict[int, Any]) -> float:
    if isinstance(content, int | float):
        return float(content)
    if content is not None:
        other[row] = content
    return np.nan


def _columns(handles: Sequence[int], rows: Sequence[_Row], other: dict[int, Any]) -> Values:
    number, code, source, server = zip(*rows, strict=True) if rows else ((), (), (), ())
    return Values(
        np.array(handles, dtype=np.int64),
        np.array(number, dtype=np.float64),
        np.array(code, dtype=np.int64),
        _ns(np.array(source, dtype=np.int64)),
        _ns(np.array(server, dtype=np.int64)),
        other,
    )


def _ns(ticks: npt.NDArray[np.int64]) -> Times:
    given = (ticks > _TICKS_PER_YEAR) & (ticks < _LAST_TICK - _TICKS_PER_YEAR)
    since = np.clip(ticks, TICKS_AT_EPOCH - _FAR_TICKS, TICKS_AT_EPOCH + _FAR_TICKS) - TICKS_AT_EPOCH
    return np.where(given, since * NS_PER_TICK, NO_TIME)


def _ticks(moment: datetime | None) -> int:
    if moment is None or not 1601 < moment.year < 9999:
        return 0
    return time_ns_of(moment) // NS_PER_TICK + TICKS_AT_EPOCH
