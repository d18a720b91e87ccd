"""The MBAP parser against recorded traffic and against anything at all."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collector.drivers.modbus.mbap import FrameSplitter, FramingLost, reply_data
from collector.drivers.modbus.transport import BadReply, ModbusRefused, read_pdu

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
