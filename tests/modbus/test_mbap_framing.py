"""The MBAP parser against recorded traffic and against anything at all."""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.drivers.modbus.mbap import FrameSplitter, FramingLost, MbapTransport, _Link, reply_data
from collector.drivers.modbus.transport import BadReply, ModbusRefused, read_pdu
from core.errors import EcmcError

TRACES = Path(__file__).parents[2] / "simulators" / "recordings" / "traces"


def frame(transaction: int, unit: int, pdu: bytes) -> bytes:
    return struct.pack(">HHHB", transaction, 0, len(pdu) + 1, unit) + pdu


@pytest.mark.parametrize("name", sorted(path.name for path in TRACES.glob("*.jsonl")))
def test_recorded_streams_are_cut_into_the_recorded_frames(name: str) -> None:
    records = [json.loads(line) for line in (TRACES / name).read_text().splitlines()]
    responses = [bytes.fromhex(record["hex"]) for record in records if record["dir"] == "rsp"]
    splitter = FrameSplitter()

    frames = []
    stream = b"".join(responses)
    for start in range(0, len(stream), 11):
        frames += splitter.feed(stream[start : start + 11])

    assert [frame(*each) for each in frames] == responses


@pytest.mark.parametrize("name", sorted(path.name for path in TRACES.glob("*.jsonl")))
def test_recorded_reads_give_the_recorded_data_or_refusal(name: str) -> None:
    asked: dict[tuple[int, int], bytes] = {}
    checked = 0
    for line in (TRACES / name).read_text().splitlines():
        record = json.loads(line)
        for transaction, unit, pdu in FrameSplitter().feed(bytes.fromhex(record["hex"])):
            if record["dir"] == "req":
                asked[record["conn"], transaction] = pdu
                continue
            question = asked.pop((record["conn"], transaction), b"")
            if len(question) != 5 or question[0] not in (1, 2, 3, 4) or question[3:] == b"\0\0":
                continue
            function, address, count = struct.unpack(">BHH", question)
            if pdu[0] & 0x80:
                with pytest.raises(ModbusRefused) as refusal:
                    reply_data(pdu, unit, function, address, count)
                assert refusal.value.code == pdu[1]
            else:
                assert reply_data(pdu, unit, function, address, count) == pdu[2:]
            checked += 1

    assert checked > 0 or name == "modbus_all_function_codes.jsonl"


@given(
    st.lists(
        st.tuples(st.integers(0, 65535), st.integers(0, 255), st.binary(min_size=1, max_size=253)), max_size=8
    ),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_frames_survive_any_chopping(frames: list[tuple[int, int, bytes]], chops: list[int]) -> None:
    stream = b"".join(frame(*each) for each in frames)
    splitter = FrameSplitter()

    seen = []
    start = 0
    while start < len(stream):
        size = chops[start % len(chops)]
        seen += splitter.feed(stream[start : start + size])
        start += size

    assert seen == frames


@given(st.lists(st.binary(max_size=300), max_size=10))
def test_any_bytes_are_frames_or_a_lost_stream(chunks: list[bytes]) -> None:
    splitter = FrameSplitter()

    try:
        frames = [each for chunk in chunks for each in splitter.feed(chunk)]
    except FramingLost:
        return

    stream = b"".join(chunks)
    assert stream.startswith(b"".join(frame(*each) for each in frames))


@given(st.binary(max_size=260), st.sampled_from([1, 2, 3, 4]), st.integers(1, 125))
def test_any_reply_is_exactly_what_was_asked_or_an_error(pdu: bytes, function: int, count: int) -> None:
    try:
        data = reply_data(pdu, 1, function, 0, count)
    except (BadReply, ModbusRefused):
        return

    assert pdu == bytes((function, len(data))) + data
    assert len(data) == (2 * count if function > 2 else (count + 7) // 8)


@pytest.mark.parametrize(
    ("function", "address", "count"), [(3, 0, 0), (3, 0, 126), (1, 0, 2001), (4, 65535, 2), (3, -1, 1)]
)
def test_an_impossible_range_is_never_sent(function: int, address: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot read"):
        read_pdu(function, address, count)


@pytest.mark.parametrize("function", sorted(set(range(256)) - {1, 2, 3, 4}))
def test_no_other_function_can_be_framed(function: int) -> None:
    with pytest.raises(ValueError, match="does not read"):
        read_pdu(function, 0, 1)


ASKED = [(1, 3, 0, 2), (7, 4, 100, 3), (7, 1, 5, 20)]  # unit, function, address, count; transactions 1, 2, 3


class DeafSocket(asyncio.Transport):
    """Takes what is sent and says nothing."""

    def write(self, data: object) -> None: ...

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None: ...


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer to one of the questions, right but for what is drawn otherwise."""
    which = draw(st.integers(0, 2))
    unit, function, _, count = ASKED[which]
    size = 2 * count if function > 2 else (count + 7) // 8
    data = draw(st.binary(min_size=size, max_size=size))
    right = frame(which + 1, unit, bytes((function, size)) + data)
    wrong = draw(
        st.sampled_from(["", "", "transaction", "unit", "pdu", "exception", "cut", "longer", "bit", "noise"])
    )
    if wrong == "transaction":
        return frame(draw(st.integers(0, 65535)), unit, bytes((function, size)) + data)
    if wrong == "unit":
        return frame(which + 1, draw(st.integers(0, 255)), bytes((function, size)) + data)
    if wrong == "pdu":
        return frame(which + 1, unit, draw(st.binary(min_size=1, max_size=253)))
    if wrong == "exception":
        return frame(which + 1, unit, bytes((function | 0x80, draw(st.integers(0, 255)))))
    if wrong == "cut":
        return right[: draw(st.integers(0, len(right)))]
    if wrong == "longer":
        return right + draw(st.binary(max_size=8))
    if wrong == "bit":
        at = draw(st.integers(0, 8 * len(right) - 1))
        return (int.from_bytes(right, "big") ^ 1 << at).to_bytes(len(right), "big")
    return draw(st.binary(max_size=40)) if wrong == "noise" else right


@given(st.lists(answers(), max_size=6), st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_whatever_comes_back_a_question_is_answered_by_its_own_answer_or_fails_plainly(
    peer: list[bytes], chops: list[int]
) -> None:
    stream = b"".join(peer)

    async def talk() -> list[bytes | BaseException]:
        transport = MbapTransport("127.0.0.1", 502)
        link = transport._link = _Link(Counter(), 60.0, None)
        link.connection_made(DeafSocket())
        waiting = [asyncio.ensure_future(transport.request(*asked)) for asked in ASKED]
        await asyncio.sleep(0)
        start = 0
        while start < len(stream):
            size = chops[start % len(chops)]
            link.data_received(stream[start : start + size])
            start += size
        link.connection_lost(None)
        return await asyncio.gather(*waiting, return_exceptions=True)

    outcomes = asyncio.run(talk())

    for transaction, ((unit, function, _, _), outcome) in enumerate(zip(ASKED, outcomes, strict=True), 1):
        if isinstance(outcome, bytes):
            assert frame(transaction, unit, bytes((function, len(outcome))) + outcome) in stream
        else:
            assert isinstance(outcome, EcmcError)
