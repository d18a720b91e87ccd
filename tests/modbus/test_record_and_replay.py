"""Raw traffic kept by `record` and served again by `replay` as the device it was taken from."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from modbus_field import FieldDevice, Request, driver_of, plant_of, point, read_until, source, values

from collector.drivers.modbus.mbap import MbapTransport
from collector.drivers.modbus.transport import DeviceSilent, ModbusRefused
from collector.tools.record import record
from collector.tools.replay import Recording, ReplayServer
from core.errors import BadRequest, DeviceUnreachable, FaultyInput
from core.plant.model import Protocol

TRACES = Path(__file__).parents[2] / "simulators" / "recordings" / "traces"


async def test_a_plant_reads_from_the_replay_what_it_read_from_the_device(
    device: FieldDevice, tmp_path: Path
) -> None:
    points = [point("a", source(10, "float32")), point("b", source(20, "int16")), point("c", source(30))]
    device.words = {10: 0x4291, 11: 0xA000, 20: 0xFFF0, 30: 7}
    file = tmp_path / "traffic.jsonl"

    recorded = await record(plant_of({"m": points}, device.port), "mb", file, 0.5)
    await device.stop()
    async with ReplayServer(Recording.read(file)) as served:
        # Another plan asks in other blocks; the registers are the same.
        async with driver_of(plant_of({"m": points[1:]}, served.port)) as some:
            parted = await read_until(some, lambda seen: len(seen) >= 2)
        async with driver_of(plant_of({"m": points}, served.port)) as whole:
            together = await read_until(whole, lambda seen: len(seen) >= 3)

    assert recorded.links == 1
    assert recorded.values >= 9
    assert (values(together, "a")[0], values(together, "b")[0], values(together, "c")[0]) == (72.8125, -16, 7)
    assert (values(parted, "b")[0], values(parted, "c")[0]) == (-16, 7)


def test_only_reading_leaves_while_recording() -> None:
    with pytest.raises(BadRequest, match="only Modbus TCP"):
        asyncio.run(record(plant_of({}, 1, protocol=Protocol.MODBUS_RTU_TCP), "mb", Path("x"), 1.0))


async def test_nobody_there_leaves_no_file_and_an_old_one_is_not_touched(tmp_path: Path) -> None:
    plant = plant_of({"m": [point("a", source(1))]}, 1)
    there = tmp_path / "there.jsonl"
    there.write_text("kept")

    with pytest.raises(DeviceUnreachable):
        await record(plant, "mb", tmp_path / "new.jsonl", 0.2)
    with pytest.raises(BadRequest, match="exists"):
        await record(plant, "mb", there, 0.2)

    assert there.read_text() == "kept"
    assert not (tmp_path / "new.jsonl").exists()


async def test_refusals_and_silence_are_replayed_too(device: FieldDevice, tmp_path: Path) -> None:
    async def manners(request: Request) -> None:
        if request.unit == 2:
            return
        if request.address <= 50 < request.address + request.count:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = manners
    plant = plant_of(
        {"m": [point("a", source(1)), point("x", source(50))], "dead": [point("d", source(5))]},
        device.port,
        timeout_s=0.1,
    )
    file = tmp_path / "traffic.jsonl"
    await record(plant, "mb", file, 0.6)

    recording = Recording.read(file)
    async with ReplayServer(recording) as served:
        link = MbapTransport("127.0.0.1", served.port, timeout_s=0.1)
        await link.connect()
        with pytest.raises(ModbusRefused, match="illegal data address"):
            await link.request(1, 3, 50, 1)
        with pytest.raises(DeviceSilent):
            await link.request(2, 3, 5, 1)
        with pytest.raises(ModbusRefused, match="gateway target"):
            await link.request(9, 3, 1, 1)
        await link.close()

    assert recording.unanswered >= 1


@pytest.mark.parametrize("name", sorted(path.name for path in TRACES.glob("*.jsonl")))
def test_every_recorded_answer_of_public_captures_is_given_again(name: str) -> None:
    lines = (TRACES / name).read_text().splitlines()
    recording = Recording.of(lines, name)
    asked: dict[tuple[int, bytes], tuple[float, bytes]] = {}
    right = compared = 0
    for line in lines:
        entry = json.loads(line)
        frame = bytes.fromhex(entry["hex"])
        key = entry["conn"], frame[:2] + frame[6:7]
        if int.from_bytes(frame[4:6], "big") != len(frame) - 6:
            continue
        if entry["dir"] == "req":
            asked[key] = entry["t"], frame
        elif key in asked:
            sent_s, request = asked.pop(key)
            reply = recording.reply(request[6], request[7:], sent_s)
            compared += 1
            right += reply is not None and reply.pdu == frame[7:]

    assert compared >= 0.9 * (recording.requests - recording.unanswered)
    assert right >= compared - 1  # one master of the captures uses a transaction id twice at a time


def test_registers_move_on_with_the_time_of_the_recording() -> None:
    def frame(pdu: bytes, transaction: int) -> str:
        return (struct.pack(">HHHB", transaction, 0, len(pdu) + 1, 1) + pdu).hex()

    ask = bytes((3, 0, 9, 0, 2))
    lines = []
    for second in range(3):
        answer = bytes((3, 4)) + struct.pack(">HH", 0, 100 + second)
        lines.append(json.dumps({"t": second, "conn": 1, "dir": "req", "hex": frame(ask, second)}))
        lines.append(json.dumps({"t": second + 0.1, "conn": 1, "dir": "rsp", "hex": frame(answer, second)}))

    recording = Recording.of(lines, "made")
    replies = [recording.reply(1, bytes((3, 0, 10, 0, 1)), t_s) for t_s in (0.5, 1.5, 2.05)]

    assert [reply.pdu[2:] for reply in replies if reply] == [b"\0\x64", b"\0\x65", b"\0\x66"]
    exact = recording.reply(1, ask, 0.0)
    assert exact is not None
    assert exact.after_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        '{"t":0,"conn":1,"dir":"up","hex":""}',
        '{"t":0,"conn":1,"dir":"req","hex":"00010001000601"}',
    ],
)
def test_a_line_that_is_no_record_is_said_with_its_number(line: str) -> None:
    with pytest.raises(FaultyInput) as refused:
        Recording.of(["", line], "made")

    assert refused.value.faults[0].line == 2


async def test_the_command_serves_until_it_is_told_to_stop() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from ecmc.cli import main; main()",
        "replay", str(TRACES / "modbus_poll_4units.jsonl"), stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    said = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
    link = MbapTransport("127.0.0.1", int(said.split(":")[1]), timeout_s=3.0)
    await link.connect()
    data = await link.request(1, 4, 0, 14)
    await link.close()
    process.send_signal(2)
    await asyncio.wait_for(process.wait(), 10)

    assert said.startswith("device 127.0.0.1:")
    assert len(data) == 28
