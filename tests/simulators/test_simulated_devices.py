"""Each simulated server as an independent client sees it, well and in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as paho
import pytest
from asyncua import Client, ua
from pymodbus.client import AsyncModbusTcpClient

from core.plant.model import Kind, ModbusSource, MqttSource, Order, Plant, Point
from simulators.faults import LINES, Faults
from simulators.history import delivered
from simulators.meter import Meters
from simulators.modbus import ModbusServer, Unit
from simulators.mqtt import MqttGateways
from simulators.opcua import OpcuaServer
from simulators.register import held, words
from simulators.run import Simulators


def unit(meters: Meters, device: str) -> Unit:
    points = [meters.plant.point_by_id[point] for point in meters.plant.device_by_id[device].points]
    return Unit(device, points, lambda: meters.values(device))


async def until(holds: Callable[[], bool], within_s: float = 20.0) -> None:
    """Wait for something to come true, which it does in a few steps of the loop or never."""
    for _ in range(round(within_s / 0.01)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"did not come true within {within_s} s")


async def read_until(node: Any, holds: Callable[[Any], bool]) -> Any:
    for _ in range(200):
        seen = await node.read_data_value(raise_on_bad_status=False)
        if holds(seen):
            return seen
        await asyncio.sleep(0.05)
    raise AssertionError(f"{node} did not change within 10 s, it says {seen}")


def listens(port: object) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", int(str(port)))) == 0


@pytest.fixture
async def server(meters: Meters, faults: Faults) -> AsyncIterator[ModbusServer]:
    devices = [d for d in meters.plant.devices if d.connection in ("mb-1", "mb-2")]
    units = {number: unit(meters, device.id) for number, device in enumerate(devices, 1)}
    async with ModbusServer("mb", units, faults) as running:
        yield running


@pytest.fixture
async def client(server: ModbusServer) -> AsyncIterator[AsyncModbusTcpClient]:
    connected = AsyncModbusTcpClient("127.0.0.1", port=server.port, timeout=0.4, retries=0)
    assert await connected.connect()
    yield connected
    connected.close()


async def read(client: AsyncModbusTcpClient, unit_id: int, source: ModbusSource, start: int = 0) -> list[int]:
    ask = client.read_holding_registers if source.function == 3 else client.read_input_registers
    answer = await ask(start + source.address, count=source.words, device_id=unit_id)
    assert not answer.isError(), answer
    return list(answer.registers)


def decoded(registers: list[int], source: ModbusSource) -> float:
    """A decoder of our own here, so that the encoder is not measured with its own yard-stick."""
    pairs = [struct.pack(">H" if source.byte_order is Order.BIG else "<H", word) for word in registers]
    data = b"".join(pairs if source.word_order is Order.BIG else pairs[::-1])
    if source.type == "bcd12":
        return int(data.hex()) * source.scale + source.offset
    form = {"float32": "f", "float64": "d", "int16": "h", "int32": "i", "int64": "q", "uint16": "H"}
    form |= {"uint32": "I", "acc32": "I", "enum16": "H", "bitfield16": "H"}
    return float(struct.unpack(">" + form[source.type], data)[0]) * source.scale + source.offset


async def test_every_modbus_point_of_the_demo_reads_back(
    client: AsyncModbusTcpClient, meters: Meters, plant: Plant
) -> None:
    devices = [d for d in plant.devices if d.connection in ("mb-1", "mb-2")]
    seen = 0
    for number, device in enumerate(devices, 1):
        truth = meters.values(device.id)
        for name in device.points:
            point, source = plant.point_by_id[name], plant.point_by_id[name].source
            assert isinstance(source, ModbusSource)
            start, exponent = 0, 0
            if source.sunspec_model is not None:
                head = await client.read_holding_registers(40_000, count=4, device_id=number)
                assert head.registers[:3] == [0x5375, 0x6E53, 1]
                start = 40_002 + 2 + head.registers[3]
            if source.scale_address is not None:
                scale = await client.read_holding_registers(
                    start + source.scale_address, count=1, device_id=number
                )
                exponent = struct.unpack(">h", struct.pack(">H", scale.registers[0]))[0]

            value = decoded(await read(client, number, source, start), source) * 10.0**exponent

            step = 2 * abs(source.scale) * 10.0**exponent
            near = abs(truth[name]) * 2e-7 if source.type.startswith("float") else step
            assert value == pytest.approx(truth[name], rel=0, abs=near + 1e-9), name
            assert value == pytest.approx(held(point, np.array([truth[name]]))[0], rel=1e-12, abs=1e-12)
            seen += 1
    assert seen > 150


async def test_the_inverter_says_who_it_is(client: AsyncModbusTcpClient, meters: Meters) -> None:
    devices = [d.id for d in meters.plant.devices if d.connection in ("mb-1", "mb-2")]

    texts = await client.read_holding_registers(40_004, count=64, device_id=1 + devices.index("pv"))

    wire = struct.pack(">64H", *texts.registers)
    assert [wire[at : at + 32].rstrip(b"\0") for at in (0, 32, 96)] == [b"ecmc", b"simulated device", b"pv"]


async def test_mbpoll_reads_the_grid_meter(server: ModbusServer, meters: Meters) -> None:
    if shutil.which("mbpoll") is None:
        pytest.skip("mbpoll is not installed (tests/peers/install.sh)")

    asked = await asyncio.create_subprocess_exec(
        *(
            "mbpoll",
            "-q",
            "-m",
            "tcp",
            "-a",
            "1",
            "-p",
            str(server.port),
            "-0",
            "-r",
            "3059",
            "-t",
            "4:float",
        ),
        *("-B", "-c", "1", "-1", "127.0.0.1"),
        stdout=asyncio.subprocess.PIPE,
    )
    printed = (await asked.communicate())[0].decode()

    shown = float(printed.split("[3059]:")[1].split()[0])
    assert shown == pytest.approx(meters.values("m-grid")["m-grid.active_power_total"], rel=1e-5)


async def test_an_unknown_place_and_an_unknown_unit_are_refused(client: AsyncModbusTcpClient) -> None:
    nowhere = await client.read_holding_registers(50_000, count=2, device_id=1)
    nobody = await client.read_holding_registers(3059, count=2, device_id=99)
    writing = await client.write_register(3059, 1, device_id=1)

    assert (nowhere.exception_code, nobody.exception_code, writing.exception_code) == (2, 11, 1)


async def test_a_read_longer_than_the_device_takes_is_refused(meters: Meters, faults: Faults) -> None:
    points = [meters.plant.point_by_id[point] for point in meters.plant.device_by_id["m-grid"].points]
    short = Unit("m-grid", points, lambda: meters.values("m-grid"), max_registers=20)

    async with ModbusServer("mb", {1: short}, faults) as server:
        client = AsyncModbusTcpClient("127.0.0.1", port=server.port, retries=0)
        await client.connect()
        taken = await client.read_holding_registers(3050, count=20, device_id=1)
        refused = await client.read_holding_registers(3050, count=21, device_id=1)
        client.close()

    assert not taken.isError()
    assert refused.exception_code == 3


async def test_an_exception_hits_only_the_block_it_is_set_on(
    client: AsyncModbusTcpClient, faults: Faults
) -> None:
    faults.set("m-grid", exception=4, exception_at=3203)

    energy = await client.read_holding_registers(3203, count=4, device_id=1)
    power = await client.read_holding_registers(3059, count=2, device_id=1)
    neighbour = await client.read_holding_registers(801, count=4, device_id=2)

    assert energy.exception_code == 4
    assert not power.isError()
    assert not neighbour.isError()


async def test_a_dropped_device_breaks_the_link(server: ModbusServer, faults: Faults) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    faults.set("m-grid", drop=True)

    writer.write(bytes.fromhex("000100000006 01 03 0BF3 0002"))
    said = await asyncio.wait_for(reader.read(100), 2)
    writer.close()

    assert said == b""


async def test_a_stalled_device_is_silent_and_its_neighbour_is_not(
    server: ModbusServer, faults: Faults
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    faults.set("m-grid", stall=True)

    writer.write(bytes.fromhex("000100000006 01 03 0BF3 0002"))  # the grid meter, silent
    writer.write(bytes.fromhex("000200000006 02 03 0041 0002"))  # hall 1's
    said = await asyncio.wait_for(reader.readexactly(13), 2)
    faults.clear("m-grid")
    writer.write(bytes.fromhex("000300000006 01 03 0BF3 0002"))
    back = await asyncio.wait_for(reader.readexactly(13), 2)
    writer.close()

    assert said[:2] == b"\x00\x02"
    assert back[:2] == b"\x00\x03"


async def test_a_late_reply_comes_late_and_whole(server: ModbusServer, faults: Faults) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    faults.set("m-grid", late_s=0.3)

    asked = time.monotonic()
    writer.write(bytes.fromhex("000100000006 01 03 0BF3 0002"))
    said = await asyncio.wait_for(reader.readexactly(13), 3)
    waited_s = time.monotonic() - asked
    writer.close()

    assert waited_s >= 0.3
    assert said[:9] == bytes.fromhex("0001 0000 0007 01 03 04")


def test_a_gateways_line_is_as_slow_as_the_captured_one() -> None:
    chance = random.Random(3)

    delays_s = np.array([LINES["gateway"].delay_s(chance) for _ in range(20_000)])

    assert np.median(delays_s) == pytest.approx(0.077, rel=0.05)
    assert np.quantile(delays_s, 0.95) == pytest.approx(0.498, rel=0.07)
    assert delays_s.max() == 1.13


async def test_on_a_troubled_line_every_third_request_stays_unanswered(
    server: ModbusServer, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LINES, "troubled", replace(LINES["troubled"], median_s=1e-4, worst_s=2e-4))
    faults.set("m-grid", line="troubled")
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)

    for number in range(300):
        writer.write(number.to_bytes(2, "big") + bytes.fromhex("00000006 01 03 0BF3 0002"))
    writer.write(bytes.fromhex("FFFF00000006 02 03 0041 0002"))  # a healthy one, to know when all is said
    answered = 0
    while (await asyncio.wait_for(reader.readexactly(13), 5))[:2] != b"\xff\xff":
        answered += 1
    writer.close()

    assert 170 <= answered <= 230  # 201 expected, sigma 8


def test_a_frozen_meter_repeats_itself_and_catches_up(meters: Meters, faults: Faults, clock: object) -> None:
    before = meters.values("m-press")
    faults.set("m-press", frozen=True)
    frozen = meters.values("m-press")
    meters.clock.forward(60)  # type: ignore[attr-defined]

    still = meters.values("m-press")
    faults.clear("m-press")
    awake = meters.values("m-press")

    assert before == frozen == still
    assert awake["m-press.active_energy_import_total"] > still["m-press.active_energy_import_total"] + 0.1


def test_a_counter_rolls_over_and_counts_on(meters: Meters, faults: Faults, plant: Plant) -> None:
    name = "m-welding.active_energy_import_total"
    point = plant.point_by_id[name]
    assert point.counter_modulus == pytest.approx(2**32 * 0.01 * 60)
    faults.set("m-welding", rollover=True)

    start = meters.values("m-welding")[name]
    meters.clock.forward(3600)  # type: ignore[attr-defined]
    end = meters.values("m-welding")[name]
    faults.clear("m-welding")
    stays = meters.values("m-welding")[name]

    assert start > 0.999 * point.counter_modulus
    assert end < 1_000
    assert stays == end
    flow = meters.model.state([meters.clock.now_ns() - 3600 * 10**9, meters.clock.now_ns()])
    went_by = np.diff(flow.energy_kwh["welding"])[0]
    assert end + point.counter_modulus - start == pytest.approx(went_by, abs=0.01)


def test_words_of_every_order_and_the_pattern_of_nothing() -> None:
    def point(type_: str, count: int, byte: Order, word: Order, **more: object) -> Point:
        source = ModbusSource(3, 0, type_, count, byte, word, 0.1, 0.0, **more)  # type: ignore[arg-type]
        return Point("m.x", "x", "V", Kind.GAUGE, source=source)

    big, little = Order.BIG, Order.LITTLE
    # 1,234,567.8 V in tenths is 12,345,678 = 0x00BC614E.
    assert words(point("uint32", 2, big, big), 1_234_567.8) == [0x00BC, 0x614E]
    assert words(point("uint32", 2, big, little), 1_234_567.8) == [0x614E, 0x00BC]
    assert words(point("uint32", 2, little, big), 1_234_567.8) == [0xBC00, 0x4E61]
    assert words(point("bcd32", 2, big, big), 1_234_567.8) == [0x1234, 0x5678]
    assert words(point("int16", 1, big, big), -0.1) == [0xFFFF]
    assert words(point("int16", 1, big, big), 1e9) == [
        0x7FFF
    ]  # a gauge beyond its register stands at its end
    assert words(point("uint32", 2, big, big, invalid=(0xFFFFFFFF,)), float("nan")) == [0xFFFF, 0xFFFF]
    assert words(point("bit", 1, big, big, bit=3), 0.1) == [0b1000]


async def test_the_plc_speaks_to_an_opcua_client_and_marks_bad_values(
    meters: Meters, plant: Plant, faults: Faults
) -> None:
    plc = plant.device_by_id["plc-line1"]
    url = str(plant.connection_by_id["ua-1"].options["url"])
    truth = meters.values("plc-line1")

    async with OpcuaServer(url, plc, meters) as server, Client(url) as client:
        running = asyncio.create_task(server.run())
        index = await client.get_namespace_index("urn:plant:line1")
        for name in plc.points:
            point = plant.point_by_id[name]
            tag = point.source.node_id.partition(";")[2]  # type: ignore[union-attr]
            value = await client.get_node(f"ns={index};{tag}").read_value()
            number = value[point.source.element] if isinstance(value, list) else value  # type: ignore[union-attr]
            expected = delivered(point, np.array([truth[name]]))[0]
            assert number * point.source.scale == pytest.approx(expected, rel=1e-12), name  # type: ignore[union-attr]
        energy = client.get_node(f"ns={index};s=Line1.Energy.EnergyImport")
        good = await energy.read_data_value()
        faults.set("plc-line1", exception=1, clock_ahead_s=3600)
        bad = await read_until(energy, lambda seen: not seen.StatusCode.is_good())
        faults.clear("plc-line1")
        await read_until(energy, lambda seen: seen.StatusCode.is_good())
        faults.set("plc-line1", stall=True)
        meters.clock.forward(600)  # type: ignore[attr-defined]
        await asyncio.sleep(0.7)  # longer than a tick
        stalled = await energy.read_data_value()
        faults.clear("plc-line1")
        awake = await read_until(energy, lambda seen: seen.SourceTimestamp > stalled.SourceTimestamp)
        faults.set("plc-line1", late_s=2.0)
        meters.clock.forward(600)  # type: ignore[attr-defined]
        await asyncio.sleep(0.7)
        not_yet = await energy.read_data_value()
        late = await read_until(energy, lambda seen: seen.SourceTimestamp > not_yet.SourceTimestamp)
        running.cancel()

    assert bad.StatusCode.value == ua.StatusCodes.BadDeviceFailure
    assert (bad.SourceTimestamp - good.SourceTimestamp).total_seconds() == 3600
    assert stalled.Value.Value == good.Value.Value
    assert awake.Value.Value > good.Value.Value + 1
    assert not_yet.Value.Value == awake.Value.Value
    assert late.Value.Value > awake.Value.Value + 1


@contextlib.asynccontextmanager
async def listening(port: object) -> AsyncIterator[asyncio.Queue[tuple[str, bytes]]]:
    """Everything a broker tells a paho client."""
    arrived: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
    subscribed, loop = asyncio.Event(), asyncio.get_running_loop()
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
    client.on_subscribe = lambda *_: loop.call_soon_threadsafe(subscribed.set)
    client.on_message = lambda _c, _u, m: loop.call_soon_threadsafe(arrived.put_nowait, (m.topic, m.payload))
    await asyncio.to_thread(client.connect, "127.0.0.1", int(str(port)))
    client.loop_start()
    client.subscribe("#", 1)
    await asyncio.wait_for(subscribed.wait(), 5)
    yield arrived
    client.disconnect()
    client.loop_stop()


async def test_the_gateways_publish_through_the_broker(meters: Meters, plant: Plant) -> None:
    connection = plant.connection_by_id["mq-1"]

    async with MqttGateways(connection, meters) as gateways, listening(connection.options["port"]) as arrived:
        running = asyncio.create_task(gateways.run())
        payloads = dict([await asyncio.wait_for(arrived.get(), 5) for _ in range(3)])
        running.cancel()

    light, canteen = meters.values("lighting"), meters.values("canteen")
    panel = json.loads(payloads["tele/lighting/SENSOR"])
    assert panel["Time"] == "2026-07-01T10:20:07"
    assert panel["ENERGY"]["Total"] == pytest.approx(light["lighting.active_energy_import_total"], abs=5e-4)
    assert sum(panel["ENERGY"]["Power"]) == pytest.approx(light["lighting.active_power_total"] * 1000, abs=2)
    source = plant.point_by_id["canteen.active_power_total"].source
    assert isinstance(source, MqttSource)
    power = json.loads(payloads[source.topic])
    assert power["value"] == pytest.approx(canteen["canteen.active_power_total"], abs=5e-4)
    assert power["timestamp_ms"] == meters.clock.now_ns() // 10**6


def test_a_gateway_in_trouble_writes_no_number_and_its_own_time(
    meters: Meters, plant: Plant, faults: Faults
) -> None:
    faults.set("lighting", exception=1, clock_ahead_s=-60)

    said = MqttGateways(plant.connection_by_id["mq-1"], meters).messages(plant.device_by_id["lighting"])

    panel = said["tele/lighting/SENSOR"]
    assert panel["Time"] == "2026-07-01T10:19:07"  # type: ignore[index]
    assert panel["ENERGY"]["Total"] == "--"  # type: ignore[index]


async def test_a_gateway_without_power_leaves_its_last_will_alone(
    meters: Meters, plant: Plant, faults: Faults
) -> None:
    connection = plant.connection_by_id["mq-1"]
    faults.set("lighting", drop=True)
    faults.set("canteen", stall=True)

    async with MqttGateways(connection, meters) as gateways, listening(connection.options["port"]) as arrived:
        running = asyncio.create_task(gateways.run())
        said = await asyncio.wait_for(arrived.get(), 5)
        await asyncio.sleep(0.2)
        running.cancel()

    assert said == ("tele/lighting/LWT", b"Offline")
    assert arrived.empty()


async def test_a_fault_file_unplugs_and_plugs_in(tmp_path: Path, faults: Faults) -> None:
    file = tmp_path / "faults.json"
    watching = asyncio.create_task(faults.watch(file, every_s=0.01))

    file.write_text('{"m-press": {"drop": true}, "air-2": {"late_s": 2}}')
    await until(lambda: faults.of("m-press").drop)
    file.write_text('{"m-press": {"drip": true}}')  # a slip of the pen changes nothing
    await asyncio.sleep(0.05)
    assert faults.of("m-press").drop
    assert faults.of("air-2").late_s == 2
    file.unlink()
    await until(lambda: not faults.of("m-press").drop)
    watching.cancel()


def test_an_unknown_fault_is_named(faults: Faults) -> None:
    with pytest.raises(ValueError, match=r"fault of m-press: .*unplug"):
        faults.set("m-press", unplug=True)


async def test_a_broker_goes_away_and_comes_back(meters: Meters, plant: Plant, faults: Faults) -> None:
    connection = plant.connection_by_id["mq-1"]

    async with MqttGateways(connection, meters) as gateways:
        running = asyncio.create_task(gateways.run())
        assert listens(connection.options["port"])
        faults.set("mq-1", drop=True)
        await until(lambda: not listens(connection.options["port"]))
        faults.clear("mq-1")
        await until(lambda: listens(connection.options["port"]))
        running.cancel()


async def test_the_whole_plant_serves_and_leaves_nothing_behind(plant: Plant, tmp_path: Path) -> None:
    urls = [str(connection.options.get("url", "")) for connection in plant.connections]
    ports = [connection.options.get("port") for connection in plant.connections]
    ports = [port or url.rsplit(":", 1)[1].partition("/")[0] for port, url in zip(ports, urls, strict=True)]
    file = tmp_path / "faults.json"
    file.write_text('{"mb-1": {"drop": true}, "ua-1": {"drop": true}}')

    async with Simulators(plant, fault_file=file) as simulators:
        running = asyncio.create_task(simulators.run())
        assert all(listens(port) for port in ports)
        await until(lambda: not listens(ports[2]))  # the PLC, unplugged by the file
        reader, writer = await asyncio.open_connection("127.0.0.1", int(str(ports[0])))
        assert await asyncio.wait_for(reader.read(1), 2) == b""
        writer.close()
        file.write_text("{}")
        await until(lambda: listens(ports[2]))
        assert not running.done()
        running.cancel()

    assert not any(listens(port) for port in ports)
