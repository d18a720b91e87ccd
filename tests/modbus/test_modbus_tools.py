"""The engineer's tools against scriptable devices: scan, guess and probe."""

from __future__ import annotations

import asyncio
import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from modbus_field import FieldDevice, Request, plant_of, point, source

from collector.drivers.modbus.decode import DecodePlan, Reading, new_image
from collector.tools.guess import Display, Guess, guess, readings
from collector.tools.link import host_and_port, modbus_link
from collector.tools.probe import probe_device
from collector.tools.scan import Found, all_alike, scan_units, unit_range
from core.errors import BadRequest, DeviceRefused
from core.plant.model import Order

WORDS_OF = {"H": 1, "h": 1, "I": 2, "i": 2, "f": 2, "q": 4, "d": 4}


def put(device: FieldDevice, address: int, data: bytes) -> None:
    for i in range(0, len(data), 2):
        device.words[address + i // 2] = int.from_bytes(data[i : i + 2], "big")


async def scanned(device: FieldDevice, units: str, timeout_s: float = 0.15) -> list[Found]:
    async with modbus_link(f"127.0.0.1:{device.port}", timeout_s) as link:
        return [found async for _, found in scan_units(link, unit_range(units)) if found is not None]


async def guessed(device: FieldDevice, address: int, shows: str) -> list[Guess]:
    async with modbus_link(f"127.0.0.1:{device.port}", 1.0) as link:
        return await guess(link, 1, address, Display.of(shows))


def only_reading(received: bytes) -> bool:
    """Whether every request among the bytes is one of functions 1 to 4, or 43 with 14, which asks for the identity."""
    while received:
        length = int.from_bytes(received[4:6], "big")
        if not (received[7] in (1, 2, 3, 4) or received[7:9] == bytes((43, 14))):
            return False
        received = received[6 + length :]
    return True


async def test_a_scan_tells_who_answers_who_refuses_and_who_is_not_there(device: FieldDevice) -> None:
    device.identity = {0: b"Acme", 1: b"EM100"}

    async def manners(request: Request) -> None:
        if request.unit == 3:
            request.refuse(2)  # it is there, and has nothing at address 0
        elif request.unit == 4:
            request.refuse(11)  # the gateway says: nobody
        elif request.unit == 5 and request.function != 4:
            return  # silent but for one function
        elif request.unit != 6:
            request.send(device.pdu(request))

    device.answer = manners

    found = {one.unit: one for one in await scanned(device, "2-6")}

    assert list(found) == [2, 3, 5]
    assert found[2].identity == {"vendor": "Acme", "product": "EM100"}
    assert found[2].functions == dict.fromkeys((1, 2, 3, 4), "data")
    assert found[3].functions == dict.fromkeys((1, 2, 3, 4), "illegal data address")
    assert found[5].functions[4] == "data"
    assert only_reading(bytes(device.received))


async def test_a_scan_survives_a_gateway_that_hangs_up_on_absent_units(device: FieldDevice) -> None:
    async def manners(request: Request) -> None:
        if request.unit == 2:
            request.writer.close()
        else:
            request.send(device.pdu(request))

    device.answer = manners

    assert [one.unit for one in await scanned(device, "1-3")] == [1, 3]


async def test_a_scan_says_when_one_device_takes_every_unit_for_its_own(device: FieldDevice) -> None:
    assert all_alike(await scanned(device, "1-4"))


async def test_a_scan_walks_sunspec_models_and_reads_who_the_device_is(device: FieldDevice) -> None:
    texts = b"Acme".ljust(32, b"\0") + b"PV 9".ljust(32, b"\0") + bytes(16) + b"2.1".ljust(16, b"\0")
    put(device, 40000, b"SunS" + struct.pack(">HH", 1, 66) + texts + b"SN7".ljust(32, b"\0") + bytes(4))
    put(device, 40070, struct.pack(">HHH", 103, 1, 0) + struct.pack(">HH", 0xFFFF, 0))

    found = (await scanned(device, "1"))[0]

    assert found.sunspec_models == (1, 103)
    assert found.identity == {"vendor": "Acme", "product": "PV 9", "revision": "2.1", "serial number": "SN7"}


@pytest.mark.parametrize("text", ["", "1-", "5-2", "256", "a"])
def test_units_that_cannot_be_meant_are_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        unit_range(text)


def test_a_target_is_a_host_with_or_without_a_port() -> None:
    assert host_and_port("10.0.0.7") == ("10.0.0.7", 502)
    assert host_and_port("meter:1502") == ("meter", 1502)
    assert host_and_port("[::1]:15020") == ("::1", 15020)
    with pytest.raises(BadRequest):
        host_and_port("meter:x")


@pytest.mark.parametrize(
    ("code", "raw", "shows", "type_", "scale"),
    [
        ("f", 1234.5, "1234.5", "float32", 1.0),
        ("I", 12345, "1234.5", "uint32", 0.1),
        ("i", -70211, "-702.11", "int32", 0.01),
        ("H", 2301, "230.1", "uint16", 0.1),
        ("d", 987654.321, "987654.321", "float64", 1.0),
        ("q", 98765432101, "98765432.101", "uint64", 0.001),
        ("I", 45, "45000", "uint32", 1000.0),
    ],
)
@pytest.mark.parametrize(
    "orders", [("big", "big"), ("big", "little"), ("little", "big"), ("little", "little")]
)
async def test_the_number_on_the_display_gives_type_order_and_scale(
    device: FieldDevice, code: str, raw: float, shows: str, type_: str, scale: float, orders: tuple[str, str]
) -> None:
    """A wrong word order is what `guess` is for: what it names first reads the number shown."""
    words = [struct.pack(f">{code}", raw)[i : i + 2] for i in range(0, 2 * WORDS_OF[code], 2)]
    byte_order, word_order = orders
    if byte_order == "little":
        words = [word[::-1] for word in words]
    if word_order == "little":
        words.reverse()
    put(device, 100, b"".join(words))

    found = await guessed(device, 100, shows)

    meant = [
        one
        for one in found
        if type_ in (one.type, *one.also)
        and one.offset == 0
        and one.byte_order == byte_order
        and (one.word_order == word_order or one.words == 1)
        and one.scale == pytest.approx(scale)
    ]
    assert meant
    assert meant[0].exact
    if orders == ("big", "big"):
        # What stands before it can only be a shorter reading of the very same words.
        first = found[0]
        assert first is meant[0] or (first.words < meant[0].words and first.value == meant[0].value)


async def test_the_first_guess_reads_the_number_when_the_plant_uses_it(device: FieldDevice) -> None:
    put(device, 7, struct.pack(">f", 50.02)[2:] + struct.pack(">f", 50.02)[:2])

    best = (await guessed(device, 7, "50.02"))[0]

    where = source(
        best.address, best.type, words=best.words, byte_order=Order(best.byte_order),
        word_order=Order(best.word_order), scale=best.scale,
    )  # fmt: skip
    image = new_image(1 + 2 * best.words)
    data = b"".join(device.words[best.address + i].to_bytes(2, "big") for i in range(best.words))
    image[1:] = list(data)
    value = DecodePlan([Reading(0, where, 0, 1)]).decode(image, (0,), np.zeros(1, dtype=np.int64))[2]
    assert value[0] == pytest.approx(50.02, abs=0.005)


async def test_a_manual_that_counts_from_one_is_found_out(device: FieldDevice) -> None:
    put(device, 20, struct.pack(">f", 417.25))

    best = (await guessed(device, 21, "417.25"))[0]

    assert (best.address, best.offset, best.type, best.scale) == (20, -1, "float32", 1.0)


async def test_digits_of_ten_in_four_bits_are_recognised(device: FieldDevice) -> None:
    put(device, 5, bytes.fromhex("00123456"))

    assert (await guessed(device, 5, "1234.56"))[0].type == "bcd32"


async def test_a_device_that_answers_single_registers_only_is_guessed_all_the_same(
    device: FieldDevice,
) -> None:
    put(device, 10, struct.pack(">f", 1234.5))

    async def in_small_bites(request: Request) -> None:
        if request.count > 2 or request.address < 10 or request.function == 4:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = in_small_bites

    best = (await guessed(device, 10, "1234.5"))[0]

    assert (best.function, best.type) == (3, "float32")


async def test_where_nothing_can_be_read_the_refusal_is_said(device: FieldDevice) -> None:
    async def refusing(request: Request) -> None:
        request.refuse(2)

    device.answer = refusing

    with pytest.raises(DeviceRefused, match="illegal data address"):
        await guessed(device, 10, "1234.5")


def test_a_display_of_nothing_or_of_zero_is_refused() -> None:
    for shows in ("", "0.00", "abc", "inf"):
        with pytest.raises(BadRequest):
            Display.of(shows)


def test_a_value_that_moved_on_since_it_was_read_is_found_but_marked() -> None:
    words = {0: struct.pack(">H", 2312)}

    found = readings(words, 3, 0, Display.of("230.1"))

    assert [(one.type, one.exact) for one in found] == [("uint16", False)]


async def test_a_probe_finds_limits_costs_and_how_many_at_once(device: FieldDevice) -> None:
    points = [point(f"p{i}", source(100 + i)) for i in range(10)]
    plant = plant_of({"m": points}, device.port)
    device.identity = {0: b"Acme"}

    async def slow_by_length(request: Request) -> None:
        if request.function == 3 and request.count > 60:
            request.refuse(3)
            return
        await asyncio.sleep(0.002 + 0.0001 * request.count)
        request.send(device.pdu(request))

    device.answer = slow_by_length
    steps: list[float] = []

    probed = await probe_device(plant, "m", lambda what, part: steps.append(part))

    assert (probed.most_registers, probed.most_why) == (60, "illegal data value")
    assert probed.round_trip_p50_ms >= 3.0
    assert probed.round_trip_p99_ms >= probed.round_trip_p50_ms
    assert 0.07 < probed.register_ms < 0.2
    assert 1.5 < probed.request_ms < 6
    assert [one.requests for one in probed.in_flight] == [1, 2, 4, 8]
    assert all(one.failed == 0 for one in probed.in_flight)
    assert probed.identity == {0: "Acme"}
    assert steps == sorted(steps)
    assert only_reading(bytes(device.received))


async def test_a_device_that_loses_what_comes_at_once_is_advised_one_at_a_time(device: FieldDevice) -> None:
    plant = plant_of({"m": [point("p", source(1))]}, device.port, timeout_s=0.1)
    waiting = 0

    async def one_at_a_time(request: Request) -> None:
        nonlocal waiting

        async def later() -> None:
            nonlocal waiting
            await asyncio.sleep(0.001)
            waiting -= 1
            request.send(device.pdu(request))

        if waiting:
            return
        waiting += 1
        asyncio.get_running_loop().create_task(later())

    device.answer = one_at_a_time

    probed = await probe_device(plant, "m")

    assert probed.in_flight_advised == 1
    assert probed.in_flight[-1].failed


async def test_a_device_the_plant_does_not_have_is_named(device: FieldDevice) -> None:
    with pytest.raises(BadRequest, match="'x'"):
        await probe_device(plant_of({"m": [point("p", source(1))]}, device.port), "x")


async def ecmc(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from ecmc.cli import main; main()", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_the_commands_print_tables_and_json_and_say_who_was_not_there(
    device: FieldDevice, tmp_path: Path
) -> None:
    put(device, 0, struct.pack(">f", 1234.5))
    target = f"127.0.0.1:{device.port}"

    guessed_json, scanned_table, nobody = await asyncio.gather(
        ecmc("guess", target, "1", "0", "--shows", "1234.5", "--json"),
        ecmc("scan", target, "--units", "1-2"),
        ecmc("scan", "127.0.0.1:1"),
    )

    assert guessed_json[0] == 0
    best = json.loads(guessed_json[1])["guesses"][0]
    assert (best["type"], best["word_order"], best["scale"]) == ("float32", "big", 1.0)
    assert scanned_table[0] == 0
    assert scanned_table[1].startswith(f"{target}: 2 of 2 units answer\n")
    assert nobody[0] == 2
    assert "127.0.0.1:1" in nobody[2]
