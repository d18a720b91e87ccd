"""Answers from bytes to columns: what the library would read, and never a good value the bytes do not hold."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from asyncua import ua
from asyncua.common.utils import Buffer
from asyncua.ua.ua_binary import struct_to_binary
from hypothesis import given, settings
from hypothesis import strategies as st

from collector.drivers.opcua_decode import Feeds, Node
from collector.drivers.opcua_publish import Publisher
from collector.drivers.opcua_wire import NO_TIME, PublishAnswer, Values, publish_answer, read_answer
from core import quality
from core.samples import NS_PER_S

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
NOW_NS = int(NOW.timestamp()) * NS_PER_S

kinds = ua.VariantType
numbers = st.one_of(
    st.tuples(st.just(kinds.Double), st.floats()),
    st.tuples(st.just(kinds.Float), st.floats(width=32)),
    st.tuples(st.just(kinds.Boolean), st.booleans()),
    *(
        st.tuples(st.just(kind), st.integers(low, high))
        for kind, low, high in [
            (kinds.SByte, -(2**7), 2**7 - 1), (kinds.Byte, 0, 2**8 - 1),
            (kinds.Int16, -(2**15), 2**15 - 1), (kinds.UInt16, 0, 2**16 - 1),
            (kinds.Int32, -(2**31), 2**31 - 1), (kinds.UInt32, 0, 2**32 - 1),
            (kinds.Int64, -(2**63), 2**63 - 1), (kinds.UInt64, 0, 2**64 - 1),
        ]
    ),
)  # fmt: skip
others = st.one_of(
    st.tuples(st.just(kinds.String), st.text(max_size=5)),
    st.tuples(st.just(kinds.Double), st.lists(st.floats(), min_size=1, max_size=3)),
    st.tuples(st.just(kinds.DateTime), st.just(NOW)),
)
moments = st.none() | st.integers(0, 10**6).map(lambda us: NOW + timedelta(microseconds=us))


@st.composite
def data_values(draw: st.DrawFn) -> ua.DataValue:
    kind, content = draw(numbers | others)
    code = draw(st.sampled_from([None, 0, 0x40000000, 0x808C0000, 0x480]))
    return ua.DataValue(
        draw(st.sampled_from([ua.Variant(content, kind), None])),
        None if code is None else ua.StatusCode(code),
        SourceTimestamp=draw(moments),
        ServerTimestamp=draw(moments),
    )


def published(values: Sequence[tuple[int, ua.DataValue]], sequence: int = 1, subscription: int = 7) -> bytes:
    response = ua.PublishResponse()
    response.Parameters.SubscriptionId = ua.UInt32(subscription)
    response.Parameters.AvailableSequenceNumbers = [ua.UInt32(sequence)]
    response.Parameters.NotificationMessage.SequenceNumber = ua.UInt32(sequence)
    items = [ua.MonitoredItemNotification(ua.UInt32(handle), value) for handle, value in values]
    response.Parameters.NotificationMessage.NotificationData = (
        [ua.DataChangeNotification(MonitoredItems=items)] if items else []
    )
    return bytes(struct_to_binary(response))


def read(values: Sequence[ua.DataValue]) -> bytes:
    response = ua.ReadResponse()
    response.Results = list(values)
    return bytes(struct_to_binary(response))


def told(values: Values) -> list[tuple[int, Any, int, int, int]]:
    columns = (values.handle, values.number, values.code, values.source_ns, values.server_ns)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [(h, values.other.get(i, n), c, s, t) for i, (h, n, c, s, t) in enumerate(rows)]


def expected(handle: int, value: ua.DataValue) -> tuple[int, Any, int, int, int]:
    content = value.Value.Value if value.Value is not None else None
    content = math.nan if content is None else content
    times = [
        NO_TIME if moment is None else NOW_NS + (moment - NOW).microseconds * 1000 + (moment - NOW).seconds * NS_PER_S
        for moment in (value.SourceTimestamp, value.ServerTimestamp)
    ]  # fmt: skip
    return (
        handle,
        float(content) if isinstance(content, int | float) else content,
        0 if value.StatusCode is None else value.StatusCode.value,
        *times,
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), data_values()), max_size=8))
def test_an_answer_says_what_was_put_into_it(values: list[tuple[int, ua.DataValue]]) -> None:
    changed = [row for change in publish_answer(Buffer(published(values))).changes for row in told(change)]
    polled = told(read_answer(Buffer(read([value for _, value in values])), [handle for handle, _ in values]))

    wanted = [expected(handle, value) for handle, value in values]
    for rows in (changed, polled):
        np.testing.assert_equal(rows, wanted)


def test_picoseconds_stand_behind_the_time_they_belong_to() -> None:
    ticks = NOW_NS // 100 + 116_444_736_000_000_000
    plain, value = (
        ua.DataValue(ua.Variant(2.5, kinds.Double)),
        struct.pack("<BBdIqHqH", 0x3F, 11, 2.5, 0, ticks, 7, ticks + 10, 9),
    )
    whole, short = published([(3, plain)]), struct_to_binary(plain)
    at = whole.index(struct.pack("<I", 3) + short)
    (length,) = struct.unpack_from("<i", whole, at - 8)  # of the notification, before the count of its items
    longer = struct.pack("<i", length + len(value) - len(short))
    whole = whole[: at - 8] + longer + whole[at - 4 : at + 4] + value + whole[at + 4 + len(short) :]

    (change,) = publish_answer(Buffer(whole)).changes

    assert told(change) == [(3, 2.5, 0, NOW_NS, NOW_NS + 1000)]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), data_values()), min_size=1, max_size=4), st.data())
def test_damaged_answers_are_refused_or_read_to_their_end(
    values: list[tuple[int, ua.DataValue]], data: st.DataObject
) -> None:
    whole = bytearray(published(values))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])

    try:
        answer = publish_answer(Buffer(cut))
    except (ua.UaError, ValueError, TypeError, LookupError, OverflowError, struct.error):
        return  # the publisher loses the link at any of them, so the gap is marked
    for change in answer.changes:
        assert 0 < len(change) <= len(cut) or len(change) == 0


def test_a_scalar_feeds_every_point_of_its_node_and_no_element() -> None:
    feeds = Feeds([Node("a", [(0, None), (2, None), (1, 4)], 1.0, 0.0), Node("b", [(3, None)], 1.0, 0.0)])
    double = ua.DataValue(ua.Variant(2.5, kinds.Double), SourceTimestamp=NOW)
    (values,) = publish_answer(Buffer(published([(0, double), (1, double), (1, double)]))).changes

    rows = feeds.rows_of(values, NOW_NS, np.zeros(4, dtype=np.int16), standing=False)

    assert rows.slot.tolist() == [0, 2, 1, 3, 3]
    assert rows.raw.tolist() == [2.5] * 5
    assert rows.status.tolist() == [0, 0, quality.BAD_CONFIGURATION_ERROR, 0, 0]


@pytest.mark.parametrize(
    ("content", "number", "status"),
    [
        ("12.5", 12.5, quality.GOOD),
        ("1_000", math.nan, quality.BAD_DECODING_ERROR),
        ("--", math.nan, quality.BAD_SENSOR_FAILURE),
        ([1.0, 2.0], math.nan, quality.BAD_CONFIGURATION_ERROR),
        (NOW, math.nan, quality.BAD_DECODING_ERROR),
    ],
)
def test_what_is_no_number_is_a_text_that_says_one_or_bad(content: Any, number: float, status: int) -> None:
    feeds = Feeds([Node("a", [(0, None)], 1.0, 0.0)])
    values = read_answer(Buffer(read([ua.DataValue(ua.Variant(content))])), [0])

    rows = feeds.rows_of(values, NOW_NS, np.zeros(1, dtype=np.int16), standing=True)

    np.testing.assert_equal([*rows.raw, *rows.status], [number, status])


class Line:
    """A session whose server answers what stands in a list, and sends again what it is asked for and has."""

    where = "ua1"

    def __init__(self, answers: list[bytes | Exception], kept: dict[int, bytes]) -> None:
        self._answers = answers
        self._kept = kept
        self.again_s = 0.0
        self.at_once = self.most_at_once = 0
        self.acknowledged: list[int] = []

    async def send(self, request: Any, _timeout_s: float | None = None) -> Any:
        if isinstance(request, ua.CreateSubscriptionRequest):
            response = ua.CreateSubscriptionResponse()
            response.Parameters.SubscriptionId = ua.UInt32(7)
            return Buffer(struct_to_binary(response))
        if isinstance(request, ua.RepublishRequest):
            number = request.Parameters.RetransmitSequenceNumber
            await asyncio.sleep(self.again_s)
            if number not in self._kept:
                raise ua.uaerrors.BadMessageNotAvailable
            return Buffer(self._kept[number])
        self.acknowledged += [one.SequenceNumber for one in request.Parameters.SubscriptionAcknowledgements]
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if not self._answers:
                await asyncio.Event().wait()
            answer = self._answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return Buffer(answer)
        finally:
            self.at_once -= 1


def numbered(*sequences: int) -> list[bytes]:
    return [
        published([(0, ua.DataValue(ua.Variant(float(number), kinds.Double)))], number)
        for number in sequences
    ]


def republish(number: int) -> bytes:
    response = ua.RepublishResponse()
    response.NotificationMessage.SequenceNumber = ua.UInt32(number)
    item = ua.MonitoredItemNotification(ua.UInt32(0), ua.DataValue(ua.Variant(float(number), kinds.Double)))
    response.NotificationMessage.NotificationData = [ua.DataChangeNotification(MonitoredItems=[item])]
    return bytes(struct_to_binary(response))


async def heard(line: Line) -> tuple[list[float], list[str]]:
    """The numbers published, and what was said when the link was given up."""
    got: list[float] = []
    lost: list[str] = []

    def take(answer: PublishAnswer) -> None:
        for change in answer.changes:
            got.extend(change.number.tolist())

    has_room = asyncio.Event()
    has_room.set()
    publisher = Publisher(line, lost.append, has_room)  # type: ignore[arg-type]
    await publisher.subscribe(ua.CreateSubscriptionParameters(), take)
    await asyncio.sleep(3 * line.again_s)
    for _ in range(100):
        await asyncio.sleep(0)
    await publisher.close()
    return got, lost


async def test_a_missing_message_is_asked_for_again_and_put_in_its_place() -> None:
    line = Line([*numbered(1, 2, 5), published([], 6), *numbered(6)], {3: republish(3), 4: republish(4)})

    got, lost = await heard(line)

    assert (got, lost) == ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [])
    assert sorted(line.acknowledged) == [1, 2, 3, 4, 5, 6]


async def test_what_comes_while_a_message_is_asked_for_again_waits_for_it() -> None:
    line = Line(numbered(1, 3, 4, 5), {2: republish(2)})
    line.again_s = 0.02

    got, lost = await heard(line)

    assert (got, lost) == ([1.0, 2.0, 3.0, 4.0, 5.0], [])


async def test_a_message_the_server_no_longer_has_is_a_lost_link() -> None:
    got, lost = await heard(Line(numbered(1, 3), {}))

    assert got == [1.0]
    assert "BadMessageNotAvailable" in lost[0]


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\x01\x00\x3d\x03", published([(0, ua.DataValue())])[:-9]],
    ids=["empty", "cut in its type", "cut in its values"],
)
async def test_an_answer_nobody_can_read_is_a_lost_link(garbage: bytes) -> None:
    got, lost = await heard(Line([*numbered(1), garbage, *numbered(2)], {}))

    assert got[0] == 1.0
    assert lost[0].startswith("publish answer: ")


async def test_the_numbering_goes_round() -> None:
    got, lost = await heard(Line(numbered(2**32 - 2, 2**32 - 1, 1, 2), {}))

    assert (len(got), lost) == (4, [])


async def test_a_server_that_takes_one_request_at_a_time_gets_one() -> None:
    refusal = ua.uaerrors.BadTooManyPublishRequests()
    line = Line([*numbered(1), refusal, *numbered(2, 3)], {})

    got, lost = await heard(line)

    assert (sorted(got), lost) == ([1.0, 2.0, 3.0], [])
    assert line.most_at_once == 2
    assert line.at_once <= 1
