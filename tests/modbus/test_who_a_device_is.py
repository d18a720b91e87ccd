"""Texts a device carries: read, shown, and what follows when they say that it is another device."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from modbus_field import FieldDevice, Request, plant_of, point, read_until, source, statuses, values

from collector.drivers.modbus import ModbusDriver, modbus_driver
from collector.drivers.modbus.identity import text_of
from core import quality
from core.plant.model import ModbusSource, Order, Plant
from core.plant.profile import ProfileShelf

SERIAL_AT = 500


def serial(device: FieldDevice, text: str, at: int = SERIAL_AT) -> None:
    wire = text.encode().ljust(8, b"\0")
    device.words |= {at + i: int.from_bytes(wire[2 * i : 2 * i + 2], "big") for i in range(4)}


def meter(device: FieldDevice) -> Plant:
    texts = {"serial_number": source(SERIAL_AT, "string", words=4)}
    return plant_of(
        {"m": [point("a", source(0)), point("b", source(50))]},
        device.port,
        device_options={"m": {"texts": texts}},
        timeout_s=0.1,
    )


def driver_with_memory(plant: Plant, folder: Path) -> ModbusDriver:
    return modbus_driver(plant, plant.connections[0], learned=folder)


@pytest.mark.parametrize(
    ("byte_order", "word_order", "wire"),
    [
        ("big", "big", b"SN-4711\0"),
        ("little", "big", b"NS4-17\x001"),
        ("big", "little", b"1\x0071-4SN"),
    ],
)
def test_a_text_comes_in_any_order_of_its_bytes(byte_order: str, word_order: str, wire: bytes) -> None:
    where = source(0, "string", words=4, byte_order=Order(byte_order), word_order=Order(word_order))

    assert text_of(wire, where) == "SN-4711"


def test_a_number_is_a_text_too_and_nothing_is_none() -> None:
    where = source(0, "uint32")

    assert text_of(struct.pack(">I", 21_004_711), where) == "21004711"
    assert text_of(b"\xff\xff\xff\xff", where) == ""
    assert text_of(b"\xff" * 8, source(0, "string", words=4)) == ""
    assert text_of(b"   \0garbage", source(0, "string", words=5)) == ""


async def test_a_device_exchanged_in_an_outage_is_said_to_be_another_and_learned_anew(
    device: FieldDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.schedule.PROBE_FIRST_NS", 50_000_000)
    device.words = {0: 1, 50: 2}
    serial(device, "SN-1")
    silent, refusing = False, True

    async def old_model(request: Request) -> None:
        if silent:
            return
        if refusing and request.address <= 50 < request.address + request.count:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = old_model
    async with modbus_driver(meter(device), meter(device).connections[0]) as driver:
        await read_until(driver, lambda seen: bool(statuses(seen, "b")) and bool(values(seen, "a")))
        before = driver.devices()["m"]
        silent = True
        await read_until(driver, lambda seen: quality.BAD_NO_COMMUNICATION in statuses(seen, "a"))
        serial(device, "SN-2")
        silent = refusing = False
        after = await read_until(driver, lambda seen: 2 in values(seen, "b"))
        state = driver.devices()["m"]

    assert (before.identity, before.warning) == ({"serial_number": "SN-1"}, "")
    assert state.identity == {"serial_number": "SN-2"}
    assert state.counters["exchanges"] == 1
    assert "serial_number 'SN-2' instead of 'SN-1'" in state.warning
    assert statuses(after, "b")[-1] == quality.GOOD


async def test_no_value_of_a_device_that_is_back_is_scaled_as_before_its_outage(
    device: FieldDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.schedule.PROBE_FIRST_NS", 50_000_000)
    device.words = {0: 40, 100: 1}  # 40 times ten
    silent = slow = False

    async def answer(request: Request) -> None:
        if silent:
            return
        if slow and request.address == 100:
            await asyncio.sleep(0.4)  # longer than a tick
        request.send(device.pdu(request))

    device.answer = answer
    plant = plant_of({"m": [point("a", source(0, scale_address=100))]}, device.port, timeout_s=0.6)
    async with modbus_driver(plant, plant.connections[0]) as driver:
        await read_until(driver, lambda seen: 400 in values(seen, "a"))
        silent = True
        await read_until(driver, lambda seen: quality.BAD_NO_COMMUNICATION in statuses(seen, "a"))
        device.words[100] = 2
        silent, slow = False, True
        after = await read_until(driver, lambda seen: 4000 in values(seen, "a"))

    assert 400 not in values(after, "a")


async def test_a_device_exchanged_while_nobody_looked_is_noticed_at_the_next_start(
    device: FieldDevice, tmp_path: Path
) -> None:
    serial(device, "SN-1")
    async with driver_with_memory(meter(device), tmp_path) as driver:
        await read_until(driver, lambda seen: len(seen) >= 2)
    async with driver_with_memory(meter(device), tmp_path) as driver:
        await read_until(driver, lambda seen: len(seen) >= 2)
        same = driver.devices()["m"]
    serial(device, "SN-2")

    async with driver_with_memory(meter(device), tmp_path) as driver:
        await read_until(driver, lambda seen: len(seen) >= 2)
        other = driver.devices()["m"]

    assert (same.identity, same.warning) == ({"serial_number": "SN-1"}, "")
    assert "SN-2" in other.warning


async def test_a_device_that_refuses_its_texts_is_read_all_the_same(device: FieldDevice) -> None:
    async def no_texts(request: Request) -> None:
        if request.address >= SERIAL_AT:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = no_texts
    async with modbus_driver(meter(device), meter(device).connections[0]) as driver:
        samples = await read_until(driver, lambda seen: len(values(seen, "a")) >= 3)
        state = driver.devices()["m"]

    assert set(statuses(samples, "a")) == {quality.GOOD}
    assert (state.up, dict(state.identity), state.warning) == (True, {}, "")


async def test_a_text_a_device_is_silent_about_takes_no_other_with_it_and_is_no_failure(
    device: FieldDevice,
) -> None:
    async def one_text(request: Request) -> None:
        if request.address <= SERIAL_AT:
            request.send(device.pdu(request))

    device.answer = one_text
    serial(device, "SN-1")
    texts = {
        "serial_number": source(SERIAL_AT, "string", words=4),
        "revision": source(600, "string", words=4),
    }
    plant = plant_of(
        {"m": [point("a", source(0))]}, device.port, device_options={"m": {"texts": texts}}, timeout_s=0.1
    )
    async with modbus_driver(plant, plant.connections[0]) as driver:
        await read_until(driver, lambda seen: len(values(seen, "a")) >= 1)
        state = driver.devices()["m"]

    assert (state.up, dict(state.identity)) == (True, {"serial_number": "SN-1"})
    assert state.counters["timeouts"] == 1


async def test_a_sunspec_device_says_who_it_is_in_its_common_model(device: FieldDevice) -> None:
    texts = b"Acme".ljust(32, b"\0") + b"PV 9".ljust(32, b"\0") + bytes(16) + b"2.1".ljust(16, b"\0")
    wire = b"SunS" + struct.pack(">HH", 1, 66) + texts + b"SN7".ljust(32, b"\0") + bytes(4)
    wire += struct.pack(">HHH", 103, 1, 42) + struct.pack(">HH", 0xFFFF, 0)
    device.words = {40_000 + i // 2: int.from_bytes(wire[i : i + 2], "big") for i in range(0, len(wire), 2)}
    inverter = point("p", replace(source(2), sunspec_model=103))
    plant = plant_of({"pv": [inverter]}, device.port)

    async with modbus_driver(plant, plant.connections[0]) as driver:
        await read_until(driver, lambda seen: values(seen, "p") == [42])
        state = driver.devices()["pv"]

    assert state.identity == {"vendor": "Acme", "product": "PV 9", "revision": "2.1", "serial number": "SN7"}


def profile(folder: Path, texts: str) -> tuple[dict[str, ModbusSource], list[str]]:
    """A profile's texts, and its faults."""
    (folder / "acme.yaml").write_text(
        "schema: ecmc.device_profile/1\nid: acme\naddress_base: 1\ndefaults: {word_order: little}\n"
        f"texts:\n{texts}points:\n  - {{quantity: frequency, address: 71, type: float32}}\n"
    )
    (folder / "_quantities.yaml").write_text("quantities:\n  frequency: {unit: Hz, kind: gauge, zh: 频率}\n")
    faults: list = []
    read = ProfileShelf([folder], faults).get("acme")
    named = read.options.get("texts", {}) if read else {}
    assert isinstance(named, dict)
    return named, [str(fault) for fault in faults]


def test_a_profile_says_where_its_texts_stand(tmp_path: Path) -> None:
    texts, faults = profile(
        tmp_path,
        "  - {text: serial_number, address: 101, words: 8, word_order: big}\n"
        "  - {text: made, address: 121, type: uint32}\n",
    )

    assert faults == []
    assert texts == {
        "serial_number": source(100, "string", words=8),
        "made": source(120, "uint32", word_order=Order.LITTLE),
    }


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{text: serial_number, address: 101}", "words"),
        ("{text: made, address: 121, type: uint32, words: 3}", "words is 3, a uint32 has 2"),
        ("{text: made, address: 65530, words: 20}", "end beyond 65535"),
        ("{text: made, address: 1, words: 2, type: float32}", "float32"),
    ],
)
def test_a_text_that_cannot_be_meant_is_a_fault(tmp_path: Path, text: str, why: str) -> None:
    _, faults = profile(tmp_path, f"  - {text}\n")

    assert len(faults) == 1
    assert why in faults[0]
