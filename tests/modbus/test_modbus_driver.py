"""What the Modbus driver hands over: times, reports, SunSpec devices, and how it learns."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace

import pytest
from modbus_field import (
    FieldDevice,
    Request,
    driver_of,
    plant_of,
    point,
    read_for,
    read_until,
    source,
    statuses,
    values,
)

from collector.drivers.modbus import driver as driver_module
from collector.drivers.modbus import modbus_driver
from core import quality
from core.errors import EcmcError
from core.plant.model import Edge, Node, NodeKind, Origin, PointMeter, Role
from core.samples import NS_PER_S


def sunspec_point(
    name: str, address: int, type_: str = "uint16", scale_address: int | None = None, model: int = 103
):
    return point(name, source(address, type_, scale_address=scale_address, sunspec_model=model))


def sunspec_words(start: int, models: dict[int, list[int]]) -> dict[int, int]:
    """Registers of a SunSpec device: the marker, then each model's id, length and content."""
    words = [0x5375, 0x6E53]
    for model, content in models.items():
        words += [model, len(content), *content]
    words += [0xFFFF, 0]
    return {start + i: word for i, word in enumerate(words)}


async def test_the_time_is_the_middle_between_question_and_answer(device: FieldDevice, client: str) -> None:
    async def slow(request: Request) -> None:
        await asyncio.sleep(0.1)
        request.send(device.pdu(request))

    device.answer = slow
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client, timeout_s=1.0)

    async with driver_of(plant) as driver:
        ((_, time_ns, _, _),) = await read_until(driver, lambda seen: len(seen) >= 1)
        received_ns = time.time_ns()

    assert 0.045 < (received_ns - time_ns) / NS_PER_S < 0.095


async def test_unchanged_values_are_delivered_at_every_poll(device: FieldDevice) -> None:
    plant = plant_of({"m": [point("a", source(0), period_s=0.05)]}, device.port)

    async with driver_of(plant) as driver:
        samples = await read_for(driver, 0.5)

    assert len(samples) >= 8


async def test_with_a_deadband_only_what_moved_is_delivered(device: FieldDevice) -> None:
    async def rising(request: Request) -> None:
        device.words[0] = 100 + len(device.requests)
        request.send(device.pdu(request))

    device.answer = rising
    plant = plant_of({"m": [point("a", source(0), period_s=0.05, deadband=2.5)]}, device.port)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 4)

    assert values(samples, "a") == [101, 104, 107, 110]


async def test_a_sunspec_model_is_found_where_it_stands(device: FieldDevice, client: str) -> None:
    device.words = sunspec_words(40000, {1: [0] * 66, 120: [7] * 26, 103: [0, 0, 1234, 65535, 65534]})
    points = [sunspec_point("a", 4, scale_address=5), sunspec_point("b", 4, scale_address=6)]

    async with driver_of(plant_of({"m": points}, device.port, client=client)) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 2)

    assert values(samples, "a") == [123.4]
    assert values(samples, "b") == [12.34]


async def test_a_sunspec_model_that_moved_is_found_again_when_the_device_comes_back(
    device: FieldDevice,
) -> None:
    device.words = sunspec_words(40000, {1: [0] * 66, 103: [11, 11]})
    silent = False

    async def sometimes_silent(request: Request) -> None:
        if not silent:
            request.send(device.pdu(request))

    device.answer = sometimes_silent
    async with driver_of(plant_of({"m": [sunspec_point("a", 2)]}, device.port)) as driver:
        await read_until(driver, lambda seen: len(seen) >= 1)
        silent = True
        await read_until(driver, lambda seen: quality.BAD_NO_COMMUNICATION in statuses(seen, "a"))
        device.words = sunspec_words(40000, {1: [0] * 66, 120: [99] * 26, 103: [22, 22]})
        silent = False
        samples = await read_until(driver, lambda seen: 22 in values(seen, "a"))

    assert values(samples, "a")[-1] == 22


async def test_a_missing_sunspec_model_is_a_configuration_error_of_its_points_alone(
    device: FieldDevice,
) -> None:
    device.words = sunspec_words(40000, {1: [0] * 66, 103: [5, 5]})
    points = [sunspec_point("a", 2), sunspec_point("b", 2, model=802)]

    async with driver_of(plant_of({"m": points}, device.port)) as driver:
        samples = await read_until(driver, lambda seen: len(values(seen, "a")) >= 3)

    assert statuses(samples, "b") == [quality.BAD_CONFIGURATION_ERROR]
    assert set(values(samples, "a")) == {5}


async def test_a_device_that_is_no_sunspec_device_is_not_asked_without_end(device: FieldDevice) -> None:
    async with driver_of(plant_of({"m": [sunspec_point("a", 2)]}, device.port)) as driver:
        samples = await read_for(driver, 0.6)

    assert statuses(samples, "a") == [quality.BAD_CONFIGURATION_ERROR]
    assert len(device.requests) <= 6


async def test_a_refused_register_that_answers_later_joins_again(
    device: FieldDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "RECHECK_NS", NS_PER_S // 2)
    device.words = {0: 1, 1: 2}
    refusing = True

    async def option_not_installed(request: Request) -> None:
        if refusing and request.address + request.count > 1:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = option_not_installed
    async with driver_of(
        plant_of({"m": [point("a", source(0)), point("b", source(1))]}, device.port)
    ) as driver:
        before = await read_until(driver, lambda seen: bool(statuses(seen, "b")))
        refusing = False
        after = await read_until(driver, lambda seen: bool(values(seen, "b")))

    assert statuses(before, "b") == [quality.BAD_CONFIGURATION_ERROR]
    assert values(after, "b") == [2]


async def test_a_refused_scale_register_takes_its_point_along(device: FieldDevice) -> None:
    device.words = {0: 1, 1: 2}

    async def no_scale(request: Request) -> None:
        if request.address + request.count > 100:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = no_scale
    points = [point("a", source(0)), point("b", source(1, scale_address=100))]

    async with driver_of(plant_of({"m": points}, device.port)) as driver:
        samples = await read_until(driver, lambda seen: len(values(seen, "a")) >= 3)

    assert statuses(samples, "b")[-1] == quality.BAD_CONFIGURATION_ERROR
    assert all(math.isnan(value) for value in values(samples, "b"))


async def test_periods_of_one_device_are_kept_apart(device: FieldDevice) -> None:
    device.words = {0: 1, 1: 2}
    points = [point("fast", source(0), period_s=0.1), point("slow", source(1), period_s=0.5)]

    async with driver_of(plant_of({"m": points}, device.port)) as driver:
        samples = await read_for(driver, 1.3)

    assert 12 <= len(values(samples, "fast")) <= 15
    assert 3 <= len(values(samples, "slow")) <= 4


async def test_requests_in_flight_share_the_wait(device: FieldDevice) -> None:
    async def answer_later(request: Request) -> None:
        asyncio.get_running_loop().call_later(0.05, request.send, device.pdu(request))

    device.answer = answer_later
    points = [point(f"p{n}", source(1000 * n), period_s=10.0) for n in range(8)]
    loop = asyncio.get_running_loop()

    async with driver_of(plant_of({"m": points}, device.port, in_flight=4)) as driver:
        began_s = loop.time()
        await read_until(driver, lambda seen: len(seen) >= 8)
        took_s = loop.time() - began_s

    assert 0.1 <= took_s < 0.3  # one after the other they take 0.4 s


async def test_the_counters_of_a_device_say_what_happened(device: FieldDevice) -> None:
    async def every_third_refused(request: Request) -> None:
        if len(device.requests) % 3 == 0:
            request.refuse(4)
        else:
            request.send(device.pdu(request))

    device.answer = every_third_refused
    async with driver_of(plant_of({"m": [point("a", source(0), period_s=0.05)]}, device.port)) as driver:
        await read_until(driver, lambda seen: len(seen) >= 9)
        counters = driver.devices()["m"].counters

    assert counters["requests"] == len(device.requests)
    assert counters["refused"] == len(device.requests) // 3
    assert counters["missed_ticks"] == 0


async def test_a_clock_set_back_an_hour_stops_nothing_and_is_counted(
    device: FieldDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LOOK_NS", NS_PER_S // 5)
    ahead_ns = 0
    monkeypatch.setattr("core.clock.SystemClock.now_ns", lambda self: time.time_ns() + ahead_ns)

    async with driver_of(plant_of({"m": [point("a", source(0))]}, device.port)) as driver:
        before = await read_until(driver, lambda seen: len(seen) >= 2)
        ahead_ns = -3600 * NS_PER_S
        after = await read_for(driver, 1.0)
        steps = driver.counters["clock_steps"]

    assert steps == 1
    assert len(after) >= 8
    assert after[-1][1] < before[0][1]


async def test_polls_there_is_no_time_for_are_said_of_their_device(
    device: FieldDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver_module, "LOOK_NS", NS_PER_S // 4)

    async def slow(request: Request) -> None:
        await asyncio.sleep(0.1)
        request.send(device.pdu(request))

    device.answer = slow
    async with driver_of(plant_of({"m": [point("a", source(0), period_s=0.04)]}, device.port)) as driver:
        await read_for(driver, 0.6)
        overloaded = driver.devices()["m"]
        device.answer = device.answer_well
        await read_for(driver, 0.6)
        well = driver.devices()["m"]

    assert overloaded.up
    assert "polls skipped in the last 0.25 s" in overloaded.warning
    assert well.warning == ""


async def test_under_overload_the_meter_at_the_fence_keeps_its_rate(device: FieldDevice) -> None:
    async def slow(request: Request) -> None:
        await asyncio.sleep(0.05)
        request.send(device.pdu(request))

    device.answer = slow
    names = ["grid", *(f"m{n}" for n in range(5))]
    plant = plant_of({name: [point(name, source(0), period_s=0.2)] for name in names}, device.port)
    plant = replace(
        plant,
        nodes=(
            Node("utility", NodeKind.SOURCE, "electricity", origin=Origin.PURCHASED),
            Node("hall", NodeKind.LOAD, "electricity"),
        ),
        edges=(Edge("e", "utility", "hall", PointMeter("grid", Role.REGISTER), "electricity"),),
    )

    async with driver_of(plant) as driver:
        samples = await read_for(driver, 1.5)
        missed = {name: state.counters["missed_ticks"] for name, state in driver.devices().items()}

    assert missed["grid"] == 0
    assert len(values(samples, "grid")) >= 7
    assert sum(missed.values()) >= 5
    assert all(values(samples, name) for name in names)


async def test_costs_measured_while_it_runs_change_the_requests(
    device: FieldDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow line behind the gateway: a hole of 30 registers read along costs more than a second request."""
    monkeypatch.setattr(driver_module, "LOOK_NS", NS_PER_S // 4)
    monkeypatch.setattr("collector.drivers.modbus.learned.ANSWERS_TO_TRUST", 5)

    async def slow_by_length(request: Request) -> None:
        await asyncio.sleep(0.001 + 0.0004 * request.count)
        request.send(device.pdu(request))

    device.words = {0: 1, 31: 2, 500: 3}
    device.answer = slow_by_length
    points = [point("a", source(0), 0.04), point("b", source(31), 0.04), point("c", source(500), 0.04)]

    async with driver_of(plant_of({"m": points}, device.port)) as driver:
        samples = await read_until(
            driver, lambda seen: {r.address for r in device.requests[-3:]} == {0, 31, 500}
        )
        samples += await read_for(driver, 0.2)

    assert [(r.address, r.count) for r in device.requests[:2]] == [(0, 32), (500, 1)]
    assert {r.count for r in device.requests[-3:]} == {1}
    assert {name: set(values(samples, name)) for name in "abc"} == {"a": {1}, "b": {2}, "c": {3}}


async def test_a_lost_link_waits_its_turn_to_be_made_anew(device: FieldDevice) -> None:
    plant = plant_of({"m": [point("a", source(0), period_s=0.05)]}, device.port)
    turn = asyncio.Semaphore(1)

    async with modbus_driver(plant, plant.connections[0], connects=turn) as driver:
        await read_until(driver, lambda seen: len(seen) >= 1)
        async with turn:
            await device.stop()
            await device.start(device.port)
            waiting = await read_for(driver, 0.3)
            connections = device.connections
        after = await read_until(driver, lambda seen: len(seen) >= 3)
        reconnects = driver.devices()["m"].counters["reconnects"]

    assert (waiting, connections) == ([], 1)
    assert set(statuses(after, "a")) == {quality.GOOD}
    assert reconnects >= 1


def test_a_text_register_is_refused_before_the_first_socket() -> None:
    with pytest.raises(EcmcError, match="point a: address 7: type string is no number"):
        driver_of(plant_of({"m": [point("a", source(7, "string"))]}, 502))


def test_an_option_of_the_wrong_kind_is_named() -> None:
    with pytest.raises(EcmcError, match="connection mb: timeout_s is 'soon', a number wanted"):
        driver_of(plant_of({"m": [point("a", source(0))]}, 502, timeout_s="soon"))
