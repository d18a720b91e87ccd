"""What was learned of a device outlives a restart, and a device nobody ever reached is said to be so."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from modbus_field import FieldDevice, Request, plant_of, point, read_until, rows, source, statuses, values

from collector.drivers.modbus import ModbusDriver, modbus_driver
from collector.drivers.modbus.build import connection_units
from collector.drivers.modbus.learned import CostMeter, Learned
from collector.drivers.modbus.plan import Cost
from collector.run import Collectors, make_driver
from collector.spool import Spool
from core import quality
from core.clock import SystemClock
from core.health import Health
from core.plant.model import Plant


def driver_with_memory(plant: Plant, folder: Path) -> ModbusDriver:
    return modbus_driver(plant, plant.connections[0], learned=folder)


async def one_hole(request: Request) -> None:
    if request.address <= 37 < request.address + request.count:
        request.refuse(2)
    else:
        request.send(bytes((3, 2 * request.count)) + bytes(2 * request.count))


async def test_a_refused_register_is_not_asked_for_again_after_a_restart(
    device: FieldDevice, tmp_path: Path
) -> None:
    device.answer = one_hole
    plant = plant_of({"m": [point(f"r{address}", source(address)) for address in range(100)]}, device.port)
    async with driver_with_memory(plant, tmp_path) as driver:
        await read_until(driver, lambda seen: len(values(seen, "r99")) >= 2)
    before = len(device.requests)

    async with driver_with_memory(plant, tmp_path) as driver:
        samples = await read_until(driver, lambda seen: len(values(seen, "r99")) >= 2)
        state = driver.devices()["m"]

    assert before > 6  # taking the block apart cost requests
    assert {(r.address, r.count) for r in device.requests[before:]} == {(0, 37), (38, 62)}
    assert statuses(samples, "r37") == [quality.BAD_CONFIGURATION_ERROR]
    assert "r37" in state.detail


async def test_what_is_remembered_as_refused_is_asked_again_a_minute_later(
    device: FieldDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.answer = one_hole
    plant = plant_of({"m": [point("good", source(10)), point("r37", source(37))]}, device.port)
    async with driver_with_memory(plant, tmp_path) as driver:
        await read_until(driver, lambda seen: len(values(seen, "good")) >= 2)
    device.answer = device.answer_well
    device.words[37] = 7
    monkeypatch.setattr("collector.drivers.modbus.driver.FIRST_RECHECK_NS", 200_000_000)

    async with driver_with_memory(plant, tmp_path) as driver:
        samples = await read_until(driver, lambda seen: 7.0 in values(seen, "r37"))

    assert statuses(samples, "r37")[0] == quality.BAD_CONFIGURATION_ERROR
    known = json.loads((tmp_path / "mb.json").read_text())["devices"].get("m", {"refused": {}})["refused"]
    assert all(not refused["fields"] for refused in known.values())


async def test_another_device_at_the_same_place_in_the_plant_is_learned_anew(
    device: FieldDevice, tmp_path: Path
) -> None:
    device.answer = one_hole
    points = [point("good", source(10)), point("r37", source(37))]
    plant = plant_of({"m": points}, device.port)
    async with driver_with_memory(plant, tmp_path) as driver:
        await read_until(driver, lambda seen: len(values(seen, "good")) >= 1)
    device.answer = device.answer_well

    async with driver_with_memory(plant_of({"m": points}, device.port, units={"m": 9}), tmp_path) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 2)

    assert statuses(samples, "r37") == [quality.GOOD]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 1, "devices": {"m": {"is": 3}}}', '{"version": 9}']
)
async def test_a_file_that_makes_no_sense_is_learned_anew(
    device: FieldDevice, tmp_path: Path, text: str
) -> None:
    (tmp_path / "mb.json").write_text(text)
    device.words[10] = 5

    async with driver_with_memory(plant_of({"m": [point("a", source(10))]}, device.port), tmp_path) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 1)

    assert values(samples, "a") == [5]


async def test_a_folder_that_cannot_be_written_costs_nothing_but_the_memory(
    device: FieldDevice, tmp_path: Path
) -> None:
    (tmp_path / "learned").write_text("a file")
    device.answer = one_hole
    plant = plant_of({"m": [point("good", source(10)), point("r37", source(37))]}, device.port)

    async with driver_with_memory(plant, tmp_path / "learned") as driver:
        samples = await read_until(driver, lambda seen: len(values(seen, "good")) >= 2)

    assert statuses(samples, "r37") == [quality.BAD_CONFIGURATION_ERROR]


def test_costs_are_the_line_under_the_fastest_answers() -> None:
    meter = CostMeter()
    chance = np.random.default_rng(1)
    for count in (2, 20, 60):
        for _ in range(200):
            meter.add(count, int(5e6 + 1e5 * count + chance.exponential(2e6)))

    cost = meter.cost()

    assert cost is not None
    assert cost.request == pytest.approx(5e-3, rel=0.05)
    assert cost.register == pytest.approx(1e-4, rel=0.1)


def test_costs_are_not_made_up_from_one_length_or_few_answers() -> None:
    meter = CostMeter()
    for _ in range(100):
        meter.add(10, 5_000_000)
        meter.add(12, 5_100_000)
    assert meter.cost() is None
    meter.add(60, 9_000_000)

    assert meter.cost() is None


async def test_costs_learned_before_a_restart_lay_out_the_requests_after_it(
    device: FieldDevice, tmp_path: Path
) -> None:
    """A slow line behind the gateway: a hole of 30 registers read along costs more than a second request."""

    async def slow_by_length(request: Request) -> None:
        await asyncio.sleep(0.001 + 0.0004 * request.count)
        request.send(device.pdu(request))

    device.answer = slow_by_length
    points = [point("a", source(0), 0.02), point("b", source(31), 0.02), point("c", source(500), 0.02)]
    plant = plant_of({"m": points}, device.port)
    assert [planned.block.count for planned in connection_units(plant, plant.connections[0])[0].planned] == [
        32,
        1,
    ]
    async with driver_with_memory(plant, tmp_path) as driver:
        await read_until(driver, lambda seen: len(values(seen, "c")) >= 25 and len(values(seen, "a")) >= 25)

    memory = Learned(plant.connections[0], tmp_path)
    units = connection_units(plant, plant.connections[0], memory)

    cost = memory.cost(plant.devices[0])
    assert cost is not None
    assert 0.1 < cost.register / cost.request < 0.5
    assert [planned.block.count for planned in units[0].planned] == [1, 1, 1]


def test_small_changes_of_a_cost_are_not_written_again(tmp_path: Path) -> None:
    plant = plant_of({"m": [point("a", source(0))]}, 1)
    learned = Learned(plant.connections[0], tmp_path)
    device = plant.devices[0]
    learned.keep({"m": (device, {}, Cost(1.0, 0.1), {})})
    written = (tmp_path / "mb.json").read_text()
    learned.keep({"m": (device, {}, Cost(1.0, 0.11), {})})
    assert (tmp_path / "mb.json").read_text() == written

    learned.keep({"m": (device, {}, Cost(1.0, 0.2), {})})

    assert Learned(plant.connections[0], tmp_path).cost(device) == Cost(1.0, 0.2)
    assert Learned(replace(plant.connections[0], options={"host": "else"}), tmp_path).cost(device) is None


async def test_points_of_a_device_that_was_never_reached_are_bad_once_and_not_absent(
    device: FieldDevice, tmp_path: Path
) -> None:
    plant = plant_of({"m": [point("a", source(0)), point("b", source(5))]}, device.port)
    await device.stop()
    async with Spool(tmp_path / "spool", sync_interval_s=0.0) as spool:
        collectors = Collectors(plant, spool, Health(), partial(make_driver, learned=tmp_path / "learned"))
        began_ns = SystemClock().now_ns() // 1000 * 1000
        await collectors.start()
        try:
            batch, _ = await asyncio.wait_for(spool.read(100, 0.3), 5)
            unreached = rows(batch)
            await asyncio.sleep(0.8)  # some more tries, about which nothing new can be said
            assert spool.depth_rows == 2
            await device.start(device.port)
            later: list[tuple[str, int, float, int]] = []
            async with asyncio.timeout(15):
                while len(later) < 2:
                    later += rows((await spool.read(100, 0.1))[0])
        finally:
            await collectors.stop()

    assert [(name, status) for name, _, _, status in unreached] == [
        ("a", quality.BAD_NOT_CONNECTED),
        ("b", quality.BAD_NOT_CONNECTED),
    ]
    assert all(time_ns >= began_ns for _, time_ns, _, _ in unreached)
    assert statuses(later, "a")[0] == quality.GOOD
