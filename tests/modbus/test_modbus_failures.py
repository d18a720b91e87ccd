"""The failure table: whatever a Modbus device does, no wrong value comes out as a good one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import random
import struct
from collections import Counter

import pytest
from modbus_field import (
    FieldDevice,
    Request,
    Sample,
    crc16,
    driver_of,
    plant_of,
    point,
    read_for,
    read_until,
    rows,
    source,
    statuses,
    values,
)

from collector.drivers.modbus import driver as driver_module
from core import quality
from core.errors import DeviceUnreachable
from core.plant.model import Protocol
from core.samples import NS_PER_S


def good(samples, name: str) -> list[float]:
    return [value for who, _, value, status in samples if who == name and status == quality.GOOD]


async def test_a_short_reply_is_bad_and_never_a_value(device: FieldDevice, client: str) -> None:
    device.words = {0: 1, 1: 2}

    async def one_register_short(request: Request) -> None:
        request.send(bytes((3, 2, 0, 1)))

    device.answer = one_register_short
    plant = plant_of({"m": [point("a", source(0)), point("b", source(1))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 2)

    assert statuses(samples, "a") == [quality.BAD_COMMUNICATION_ERROR]
    assert statuses(samples, "b") == [quality.BAD_COMMUNICATION_ERROR]
    assert all(math.isnan(value) for value in values(samples, "a"))


async def test_a_late_reply_is_not_taken_for_the_answer_to_the_retry(
    device: FieldDevice, client: str
) -> None:
    async def first_answer_comes_after_the_retry(request: Request) -> None:
        if len(device.requests) == 1:
            device.words = {0: 111}
            late = device.pdu(request)
            asyncio.get_running_loop().call_later(0.4, request.send, late)
        elif len(device.requests) == 2:
            await asyncio.sleep(0.15)
            device.words = {0: 222}
            request.send(device.pdu(request))
        else:
            request.send(device.pdu(request))

    device.answer = first_answer_comes_after_the_retry
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client, retries=1)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(good(seen, "a")) >= 5)

    assert 111 not in good(samples, "a")
    assert len({request.transaction for request in device.requests}) == len(device.requests)


async def test_a_reply_after_the_timeout_is_not_taken_for_another_registers(
    device: FieldDevice, client: str
) -> None:
    device.words = {0: 111, 500: 222}

    async def slow_once(request: Request) -> None:
        if request.address == 0 and sum(r.address == 0 for r in device.requests) == 1:
            asyncio.get_running_loop().call_later(0.32, request.send, device.pdu(request))
        elif request.address == 500:
            asyncio.get_running_loop().call_later(0.12, request.send, device.pdu(request))
        else:
            request.send(device.pdu(request))

    device.answer = slow_once
    plant = plant_of({"m": [point("a", source(0)), point("b", source(500))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(good(seen, "b")) >= 3 and good(seen, "a"))

    assert set(good(samples, "b")) == {222}
    assert set(good(samples, "a")) == {111}


async def test_duplicates_and_strangers_are_ignored(device: FieldDevice, client: str) -> None:
    device.words = {0: 7}

    async def noisy(request: Request) -> None:
        stranger = bytes((3, 2, 0xBA, 0xD0))
        request.send(stranger, transaction=(request.transaction + 77) % 65536)
        request.send(stranger, unit=request.unit + 1)
        request.send(device.pdu(request))
        request.send(stranger)

    device.answer = noisy
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 5)
        strays = driver.counters.get("stray_replies", 0)

    assert set(good(samples, "a")) == {7}
    assert len(good(samples, "a")) == len(samples)
    assert client == "pymodbus" or strays >= 2 * len(samples)  # pymodbus does not say


async def test_fragmented_frames_are_put_together(device: FieldDevice, client: str) -> None:
    device.words = {0: 42}

    async def byte_by_byte(request: Request) -> None:
        for byte in request.frame(device.pdu(request)):
            request.writer.write(bytes((byte,)))
            await request.writer.drain()
            await asyncio.sleep(0.002)

    device.answer = byte_by_byte
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 3)

    assert good(samples, "a") == [42, 42, 42]


async def test_coalesced_answers_reach_their_requests(device: FieldDevice) -> None:
    device.words = {0: 1, 1000: 2, 2000: 3, 3000: 4}
    held: list[Request] = []

    async def all_at_once_and_backwards(request: Request) -> None:
        held.append(request)
        if len(held) == 4:
            request.writer.write(b"".join(each.frame(device.pdu(each)) for each in reversed(held)))
            held.clear()

    device.answer = all_at_once_and_backwards
    points = [point(f"p{address}", source(address)) for address in device.words]
    plant = plant_of({"m": points}, device.port, in_flight=4)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 8)

    for address, word in device.words.items():
        assert set(good(samples, f"p{address}")) == {word}


async def test_a_peer_that_closes_mid_request_fails_it_at_once(device: FieldDevice, client: str) -> None:
    async def hang_up(request: Request) -> None:
        request.writer.close()

    device.answer = hang_up
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client, timeout_s=5.0)
    loop = asyncio.get_running_loop()

    async with driver_of(plant) as driver:
        began_s = loop.time()
        samples = await read_until(driver, lambda seen: len(seen) >= 1)
        with pytest.raises(DeviceUnreachable):
            await driver.read()
        took_s = loop.time() - began_s

    assert statuses(samples, "a") == [quality.BAD_NO_COMMUNICATION]
    assert took_s < 2.0


async def test_a_gateway_that_hangs_up_over_one_unit_keeps_serving_the_others(
    device: FieldDevice, client: str
) -> None:
    device.words = {0: 5}

    async def hang_up_over_unit_2(request: Request) -> None:
        if request.unit == 2:
            request.writer.close()
        else:
            request.send(device.pdu(request))

    device.answer = hang_up_over_unit_2
    devices = {"m": [point("a", source(0))], "gone": [point("b", source(0))]}
    plant = plant_of(devices, device.port, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(good(seen, "a")) >= 8)

    assert statuses(samples, "a") == [quality.GOOD] * len(statuses(samples, "a"))
    assert set(statuses(samples, "b")) == {quality.BAD_NO_COMMUNICATION}


async def test_a_peer_that_closes_idle_connections_is_read_without_a_gap(
    device: FieldDevice, client: str
) -> None:
    device.words = {0: 5}

    async def answer_and_hang_up(request: Request) -> None:
        request.send(device.pdu(request))
        await request.writer.drain()
        request.writer.close()

    device.answer = answer_and_hang_up
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(seen) >= 4)

    assert good(samples, "a") == [5, 5, 5, 5]
    assert device.connections >= 4


async def test_a_silent_device_says_so_once_and_comes_back_by_itself(
    device: FieldDevice, client: str
) -> None:
    device.words = {0: 9}
    silent = False

    async def sometimes_silent(request: Request) -> None:
        if not silent:
            request.send(device.pdu(request))

    device.answer = sometimes_silent
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        await read_until(driver, lambda seen: len(seen) >= 1)
        silent = True
        down = await read_for(driver, 1.0)
        state_down = driver.devices()["m"]
        silent = False
        back = await read_until(driver, lambda seen: len(good(seen, "a")) >= 2)
        state_back = driver.devices()["m"]

    assert statuses(down, "a")[-1] == quality.BAD_NO_COMMUNICATION
    assert statuses(down, "a").count(quality.BAD_NO_COMMUNICATION) == 1
    assert not state_down.up
    assert state_down.counters["timeouts"] >= 2
    assert good(back, "a")[:2] == [9, 9]
    assert state_back.up


async def test_a_link_that_died_without_a_word_is_made_anew(device: FieldDevice, client: str) -> None:
    device.words = {0: 4}

    async def only_new_links_work(request: Request) -> None:
        if device.connections >= 2 or len(device.requests) == 1:
            request.send(device.pdu(request))

    device.answer = only_new_links_work
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(good(seen, "a")) >= 3)

    assert good(samples, "a") == [4, 4, 4]
    assert device.connections == 2


async def test_a_cut_line_is_reported_and_healed_by_opening_again(device: FieldDevice, client: str) -> None:
    device.words = {0: 3}
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client)
    driver = driver_of(plant)

    async with driver:
        await read_until(driver, lambda seen: len(seen) >= 1)
        await device.stop()
        cut = await read_until(driver, lambda seen: bool(seen) and seen[-1][3] < 0)
        with pytest.raises(DeviceUnreachable):
            await driver.read()
    with pytest.raises(DeviceUnreachable):
        async with driver:
            pass
    await device.start(device.port)
    async with driver:
        back = await read_until(driver, lambda seen: len(seen) >= 1)

    assert statuses(cut, "a")[-1] == quality.BAD_NO_COMMUNICATION
    assert good(back, "a") == [3]


async def test_an_exception_on_the_second_block_shifts_no_name(device: FieldDevice, client: str) -> None:
    """A rival put the values of registers 40..59 under the names r20..r39 here."""
    device.words = {address: 1000 + address for address in range(60)}

    async def second_block_refused(request: Request) -> None:
        if request.address < 40 and request.address + request.count > 20:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = second_block_refused
    points = [point(f"r{address}", source(address)) for address in range(60)]
    plant = plant_of({"m": points}, device.port, device_options={"m": {"max_registers": 20}}, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(good(seen, "r59")) >= 3)

    for address in range(60):
        if 20 <= address < 40:
            assert good(samples, f"r{address}") == []
            assert statuses(samples, f"r{address}") == [quality.BAD_CONFIGURATION_ERROR]
        else:
            assert set(good(samples, f"r{address}")) == {1000 + address}


async def test_a_single_refused_register_is_found_and_the_rest_read_on_in_few_requests(
    device: FieldDevice, client: str
) -> None:
    device.words = {address: address for address in range(100)}

    async def one_hole(request: Request) -> None:
        if request.address <= 37 < request.address + request.count:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = one_hole
    points = [point(f"r{address}", source(address)) for address in range(100)]
    plant = plant_of({"m": points}, device.port, client=client)

    async with driver_of(plant) as driver:
        await read_until(driver, lambda seen: len(good(seen, "r99")) >= 1)
        learned = len(device.requests)
        samples = await read_until(driver, lambda seen: len(good(seen, "r99")) >= 3)

    assert learned < 30
    assert {(r.address, r.count) for r in device.requests[learned:]} == {(0, 37), (38, 62)}
    assert good(samples, "r37") == []
    assert {value for a in range(100) if a != 37 for value in good(samples, f"r{a}")} == set(range(100)) - {
        37
    }


async def test_a_device_that_refuses_much_does_not_hold_up_its_neighbour(
    device: FieldDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forty refused registers are eighty questions of 10 ms; the neighbour is due every 0.2 s meanwhile."""
    monkeypatch.setattr(driver_module, "TICK_S", 0.05)
    monkeypatch.setattr(driver_module, "RECHECK_NS", NS_PER_S // 2)
    device.words = {0: 7, 99: 8}
    asked: Counter[int] = Counter()

    async def refusing(request: Request) -> None:
        await asyncio.sleep(0.01)
        if request.unit == 1 and request.address < 40:
            asked[request.address] += request.count == 1
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = refusing
    wrong = [point(f"r{a}", source(a), period_s=0.1) for a in range(40)] + [
        point("right", source(99), period_s=0.1)
    ]
    plant = plant_of({"m": wrong, "n": [point("n", source(0), period_s=0.2)]}, device.port)

    async with driver_of(plant) as driver:
        samples = await read_until(
            driver, lambda seen: bool(values(seen, "right")) and bool(statuses(seen, "r39"))
        )
        samples += await read_until(driver, lambda seen: all(asked[a] >= 2 for a in range(40)))

    runs = [len(list(run)) for unit, run in itertools.groupby(request.unit for request in device.requests)]
    assert max(runs) < 40  # of either unit without the other; a period of the neighbour is twenty
    assert len(good(samples, "n")) >= 5
    assert set(values(samples, "right")) == {8}
    assert {status for a in range(40) for status in statuses(samples, f"r{a}")} == {
        quality.BAD_CONFIGURATION_ERROR
    }


async def test_a_refused_register_is_said_to_be_so_again_after_an_outage(device: FieldDevice) -> None:
    silent = False

    async def one_refused(request: Request) -> None:
        if silent:
            return
        if request.address + request.count > 50:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = one_refused
    plant = plant_of({"m": [point("a", source(0)), point("b", source(50))]}, device.port, timeout_s=0.1)

    async with driver_of(plant) as driver:
        before = await read_until(driver, lambda seen: bool(statuses(seen, "b")) and bool(good(seen, "a")))
        silent = True
        outage = await read_until(driver, lambda seen: bool(statuses(seen, "b")))
        silent = False
        after = await read_until(driver, lambda seen: bool(good(seen, "a")))

    assert statuses(before, "b") == [quality.BAD_CONFIGURATION_ERROR]
    assert statuses(outage, "b") == [quality.BAD_NO_COMMUNICATION]
    assert statuses(after, "b") == [quality.BAD_CONFIGURATION_ERROR]


async def test_an_unreadable_hole_is_learned_and_not_asked_for_again(
    device: FieldDevice, client: str
) -> None:
    device.words = {0: 10, 20: 30}

    async def hole(request: Request) -> None:
        if request.address < 20 and request.address + request.count > 5:
            request.refuse(2)
        else:
            request.send(device.pdu(request))

    device.answer = hole
    plant = plant_of({"m": [point("a", source(0)), point("b", source(20))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: len(good(seen, "b")) >= 3)

    assert [(r.address, r.count) for r in device.requests[:3]] == [(0, 21), (0, 1), (20, 1)]
    assert (0, 21) not in [(r.address, r.count) for r in device.requests[1:]]
    assert set(good(samples, "a")) == {10}
    assert set(good(samples, "b")) == {30}
    assert all(status == quality.GOOD for *_, status in samples)


@pytest.mark.parametrize("hangs_up", [False, True])
async def test_a_device_that_says_nothing_of_registers_it_does_not_have_is_read_around_them(
    device: FieldDevice, client: str, hangs_up: bool
) -> None:
    """A hole of the map read along, and one wrong register among twenty; not refused, but silence or a hang-up."""
    device.words = {address: 1000 + address for address in range(400)}

    async def silent_about_some(request: Request) -> None:
        end = request.address + request.count
        if not any(request.address <= absent < end for absent in (20, 215)):
            request.send(device.pdu(request))
        elif hangs_up:
            request.writer.close()

    device.answer = silent_about_some
    names = [*range(15, 20), *range(25, 30), *range(213, 218), 390]
    points = [point(f"r{a}", source(a), period_s=0.05) for a in names]
    plant = plant_of({"m": points}, device.port, client=client, timeout_s=0.05)

    driver = driver_of(plant)
    samples: list[Sample] = []
    async with asyncio.timeout(15.0):
        while quality.BAD_CONFIGURATION_ERROR not in statuses(samples, "r215"):
            with contextlib.suppress(
                DeviceUnreachable
            ):  # until it has answered anything, a hang-up ends the link
                async with driver:
                    while quality.BAD_CONFIGURATION_ERROR not in statuses(samples, "r215"):
                        samples += rows(await driver.read())
                    samples += await read_until(driver, lambda seen: bool(good(seen, "r214")))
                    settled = await read_for(driver, 0.4)
                    state = driver.devices()["m"]

    assert state.up
    assert "r215" in state.detail or "address 215" in state.detail
    assert {status for _, _, _, status in settled} == {quality.GOOD}
    assert all(value == 1000 + int(name[1:]) for name, _, value, status in samples if status == quality.GOOD)
    assert all(good(settled, f"r{a}") for a in names if a != 215)


async def test_a_device_whose_only_request_touches_a_register_it_is_silent_about_is_found(
    device: FieldDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collector.schedule.PROBE_LAST_NS", NS_PER_S // 50)
    device.words = {address: 1000 + address for address in range(20)}

    async def silent_about_seven(request: Request) -> None:
        if not request.address <= 7 < request.address + request.count:
            request.send(device.pdu(request))

    device.answer = silent_about_seven
    points = [point(f"r{a}", source(a), period_s=0.05) for a in range(20)]
    plant = plant_of({"m": points}, device.port, timeout_s=0.05)

    async with driver_of(plant) as driver:
        samples = await read_until(
            driver,
            lambda seen: (
                all(good(seen, f"r{a}") for a in range(20) if a != 7)
                and quality.BAD_CONFIGURATION_ERROR in statuses(seen, "r7")
            ),
            15.0,
        )

    assert all(value == 1000 + int(name[1:]) for name, _, value, status in samples if status == quality.GOOD)


async def test_a_device_that_answers_only_short_requests_is_learned(device: FieldDevice) -> None:
    device.words = {address: address for address in range(100)}

    async def at_most_thirty(request: Request) -> None:
        if request.count > 30:
            request.refuse(3)
        else:
            request.send(device.pdu(request))

    device.answer = at_most_thirty
    points = [point(f"r{address}", source(address)) for address in range(100)]

    async with driver_of(plant_of({"m": points}, device.port)) as driver:
        samples = await read_until(driver, lambda seen: len(good(seen, "r99")) >= 2, timeout_s=8.0)

    assert all(status == quality.GOOD for *_, status in samples)
    assert set(good(samples, "r50")) == {50}


async def test_a_gateways_exception_eleven_is_the_device_not_answering(
    device: FieldDevice, client: str
) -> None:
    device.words = {0: 1}

    async def unit_two_is_dead(request: Request) -> None:
        if request.unit == 2:
            request.refuse(11)
        else:
            request.send(device.pdu(request))

    device.answer = unit_two_is_dead
    plant = plant_of(
        {"m": [point("a", source(0))], "dead": [point("b", source(0))]}, device.port, client=client
    )

    async with driver_of(plant) as driver:
        samples = await read_until(driver, lambda seen: bool(statuses(seen, "b")))
        states = driver.devices()

    assert statuses(samples, "b") == [quality.BAD_NO_COMMUNICATION]
    assert states["m"].up
    assert not states["dead"].up
    assert "exception 11" in states["dead"].detail


async def test_a_device_failure_is_bad_while_it_lasts(device: FieldDevice, client: str) -> None:
    device.words = {0: 1}
    failing = True

    async def failing_inside(request: Request) -> None:
        if failing:
            request.refuse(4)
        else:
            request.send(device.pdu(request))

    device.answer = failing_inside
    plant = plant_of({"m": [point("a", source(0))]}, device.port, client=client)

    async with driver_of(plant) as driver:
        first = await read_until(driver, lambda seen: len(seen) >= 1)
        failing = False
        then = await read_until(driver, lambda seen: len(seen) >= 1)

    assert statuses(first, "a") == [quality.BAD_DEVICE_FAILURE]
    assert good(then, "a") == [1]


async def test_a_register_whose_reading_fails_in_the_device_does_not_take_its_neighbours_along(
    device: FieldDevice,
) -> None:
    """Exception 4 where others say 2: the whole request would fail for ever."""
    device.words = {address: 1000 + address for address in range(20)}

    async def failing_at_seven(request: Request) -> None:
        if request.address <= 7 < request.address + request.count:
            request.refuse(4)
        else:
            request.send(device.pdu(request))

    device.answer = failing_at_seven
    points = [point(f"r{a}", source(a), period_s=0.02) for a in range(20)]

    async with driver_of(plant_of({"m": points}, device.port)) as driver:
        first = await read_until(driver, lambda seen: len(seen) >= 20)
        samples = await read_until(
            driver,
            lambda seen: (
                all(good(seen, f"r{a}") for a in range(20) if a != 7)
                and quality.BAD_CONFIGURATION_ERROR in statuses(seen, "r7")
            ),
        )

    assert {status for _, _, _, status in first} == {quality.BAD_DEVICE_FAILURE}
    assert all(value == 1000 + int(name[1:]) for name, _, value, status in samples if status == quality.GOOD)


async def test_one_silent_device_does_not_keep_the_others_from_their_polls(
    device: FieldDevice, client: str
) -> None:
    device.words = {0: 1}

    async def unit_ten_is_silent(request: Request) -> None:
        if request.unit != 10:
            request.send(device.pdu(request))

    device.answer = unit_ten_is_silent
    devices = {f"m{n}": [point(f"p{n}", source(0), period_s=0.3)] for n in range(1, 11)}
    plant = plant_of(devices, device.port, client=client)

    async with driver_of(plant) as driver:
        await read_until(driver, lambda seen: bool(statuses(seen, "p10")))
        before = {name: state.counters["missed_ticks"] for name, state in driver.devices().items()}
        samples = await read_for(driver, 2.0)
        after = {name: state.counters["missed_ticks"] for name, state in driver.devices().items()}

    for n in range(1, 10):
        assert after[f"m{n}"] == before[f"m{n}"]
        assert len(good(samples, f"p{n}")) >= 6
    assert statuses(samples, "p10") == []


async def test_a_slow_device_loses_nothing_when_asked_in_blocks(device: FieldDevice, client: str) -> None:
    """150 registers from a device that takes 10 ms an answer; a rival got 30 to 60 values/s here."""
    device.words = {address: address for address in range(150)}

    async def ten_ms(request: Request) -> None:
        await asyncio.sleep(0.01)
        request.send(device.pdu(request))

    device.answer = ten_ms
    points = [point(f"r{address}", source(address), period_s=0.25) for address in range(150)]

    async with driver_of(plant_of({"m": points}, device.port, client=client)) as driver:
        samples = await read_for(driver, 1.1)
        missed = driver.devices()["m"].counters["missed_ticks"]

    assert missed == 0
    assert len(samples) >= 4 * 150


@pytest.mark.parametrize("function", [1, 2, 3, 4])
async def test_only_reading_functions_ever_leave(device: FieldDevice, client: str, function: int) -> None:
    async def mixed_manners(request: Request) -> None:
        manners = len(device.requests) % 5
        if manners == 0:
            request.refuse(2)
        elif manners == 1:
            request.writer.close()
        elif manners != 2:
            request.send(device.pdu(request))

    device.answer = mixed_manners
    kind = "bit" if function in (1, 2) else "uint16"
    points = [point(f"r{a}", source(a, kind, function=function)) for a in range(0, 300, 7)]
    driver = driver_of(plant_of({"m": points}, device.port, client=client))

    for _ in range(2):
        with contextlib.suppress(DeviceUnreachable):
            async with driver:
                await read_for(driver, 0.25)

    assert len(device.requests) >= 5
    stream = bytes(device.received)
    while stream:
        length = int.from_bytes(stream[4:6], "big")
        assert stream[7] == function
        stream = stream[6 + length :]


@pytest.mark.parametrize("function", [0, 5, 6, 8, 15, 16, 22, 23, 43])
async def test_a_transport_refuses_to_send_anything_else(
    device: FieldDevice, client: str, function: int
) -> None:
    driver = driver_of(
        plant_of({"m": [point("a", source(0, function=function))]}, device.port, client=client)
    )

    async with driver:
        with pytest.raises(ValueError, match="does not read"):
            await read_for(driver, 1.0)

    assert bytes(device.received) == b""


async def test_on_a_serial_line_a_late_answer_is_not_taken_for_the_next_devices_or_registers() -> None:
    """RTU frames have no transaction id: only waiting keeps a late answer away from the next question."""
    asked: list[int] = []

    async def gateway(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                frame = await reader.readexactly(8)
                asked.append(frame[3])
                answer = bytes((frame[0], 3, 2, 0, frame[3]))  # the word is the low byte of its address
                delay_s = 0.3 if len(asked) == 1 else 0.02
                asyncio.get_running_loop().call_later(delay_s, writer.write, answer + crc16(answer))

    server = await asyncio.start_server(gateway, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    points = [point("a", source(10)), point("b", source(210))]
    plant = plant_of({"m": points}, port, protocol=Protocol.MODBUS_RTU_TCP, retries=0)
    async with driver_of(plant) as driver:
        samples = await read_until(
            driver, lambda seen: len(good(seen, "a")) >= 2 and len(good(seen, "b")) >= 2
        )
        pauses = driver.counters["line_pauses"]
    server.close()

    assert set(good(samples, "a")) == {10}
    assert set(good(samples, "b")) == {210}
    assert pauses >= 1


async def test_a_device_out_of_its_mind_never_gets_a_wrong_value_taken_for_good(
    device: FieldDevice, client: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every register holds its own address; answers are right, cut, swapped, doubled, refused or missing by chance."""
    monkeypatch.setattr("collector.schedule.PROBE_FIRST_NS", NS_PER_S // 50)
    monkeypatch.setattr("collector.schedule.PROBE_LAST_NS", NS_PER_S // 10)
    monkeypatch.setattr(driver_module, "RECHECK_NS", NS_PER_S // 5)
    chance = random.Random(7)

    async def out_of_its_mind(request: Request) -> None:
        right = device.pdu(request)
        noise = chance.randbytes(chance.randint(1, 12))
        match chance.randrange(12):
            case 0:
                request.send(right[:-2])
            case 1:
                request.send(bytes((right[0], right[1] - 2)) + right[2:-2])
            case 2:
                request.send(right + noise[:2])
            case 3:
                request.refuse(chance.choice([1, 2, 3, 4, 6, 10, 11, 200]))
            case 4:
                request.send(bytes((request.function ^ 7,)) + right[1:])
            case 5:
                request.send(noise)
            case 6:
                request.send(bytes((right[0], right[1])) + right[:0:-1][: right[1]], transaction=9999)
                request.send(right)
            case 7:
                request.send(right)
                request.send(right)
            case 8:
                request.writer.write(noise)
            case 9:
                request.writer.close()
            case _:
                request.send(right)

    device.words = {address: address for address in range(400)}
    device.answer = out_of_its_mind
    points = [point(f"r{a}", source(a), period_s=0.02) for a in range(0, 400, 9)]
    driver = driver_of(plant_of({"m": points}, device.port, client=client, timeout_s=0.05, in_flight=2))
    samples = []

    async with asyncio.timeout(20):
        while len(device.requests) < 200:
            with contextlib.suppress(DeviceUnreachable):
                async with driver:
                    while len(device.requests) < 200:
                        samples += rows(await driver.read())

    taken = [(name, value) for name, _, value, status in samples if status == quality.GOOD]
    assert len(taken) > 50
    assert all(name == f"r{value:.0f}" for name, value in taken)
    assert not [record for record in caplog.records if record.name == "asyncio"]


async def test_noise_on_a_serial_line_never_makes_a_wrong_value_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every register holds its own address; answers come right, flipped, cut, behind noise, from others or not at all."""
    monkeypatch.setattr("collector.schedule.PROBE_FIRST_NS", NS_PER_S // 50)
    monkeypatch.setattr("collector.schedule.PROBE_LAST_NS", NS_PER_S // 10)
    monkeypatch.setattr(driver_module, "RECHECK_NS", NS_PER_S // 5)
    chance = random.Random(5)
    asked = 0

    async def line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                unit, function, address, count, _ = struct.unpack(">BBHHH", await reader.readexactly(8))
                asked += 1
                words = struct.pack(f">{count}H", *range(address, address + count))
                frame = bytes((unit, function, 2 * count)) + words
                answer = bytearray(frame + crc16(frame))
                match chance.randrange(8):
                    case 0:
                        answer[chance.randrange(len(answer))] ^= 1 << chance.randrange(8)
                    case 1:
                        del answer[chance.randrange(len(answer)) :]
                    case 2:
                        answer = bytearray(chance.randbytes(chance.randint(1, 6))) + answer
                    case 3:
                        other = bytes((unit + 1,)) + frame[1:]
                        answer = bytearray(other + crc16(other))
                writer.write(answer)

    server = await asyncio.start_server(line, "127.0.0.1", 0)
    points = [point(f"r{a}", source(a), period_s=0.02) for a in (*range(0, 30, 3), *range(200, 230, 3))]
    plant = plant_of(
        {"m": points},
        server.sockets[0].getsockname()[1],
        protocol=Protocol.MODBUS_RTU_TCP,
        timeout_s=0.03,
        retries=1,
    )
    driver = driver_of(plant)
    samples: list[Sample] = []
    async with asyncio.timeout(20):
        while asked < 60:
            with contextlib.suppress(DeviceUnreachable):
                async with driver:
                    while asked < 60:
                        samples += rows(await driver.read())
    server.close()

    taken = [(name, value) for name, _, value, status in samples if status == quality.GOOD]
    assert len(taken) > 100
    assert all(name == f"r{value:.0f}" for name, value in taken)
