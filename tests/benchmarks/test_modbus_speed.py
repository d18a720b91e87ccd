"""How much CPU Modbus costs: printed (`pytest -s`), never failed by time.

Everything is the CPU time of this process, the devices run in others. Run with
`pytest -s tests/benchmarks/test_modbus_speed.py`.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parents[1] / "modbus"))

from modbus_field import driver_of, plant_of, point, source

from collector.drivers.modbus import ModbusDriver
from collector.drivers.modbus.decode import DecodePlan, Reading
from collector.drivers.modbus.mbap import MbapTransport
from collector.drivers.modbus.pymodbus_transport import PymodbusTransport
from collector.drivers.modbus.transport import Transport
from collector.schedule import phase_ns
from core.plant.model import Plant

MODBUS_TESTS = Path(__file__).parents[1] / "modbus"
SERVER = """
import asyncio, struct, uvloop
ANSWER = bytes(range(250))
class Device(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        for at in range(0, len(data), 12):
            transaction, _, _, unit, function, _, count = struct.unpack_from('>HHHBBHH', data, at)
            if unit == 247:
                continue  # silent
            size = 2 * count
            self.transport.write(struct.pack('>HHHBBB', transaction, 0, size + 3, unit, function, size) + ANSWER[:size])
async def main():
    server = await asyncio.get_running_loop().create_server(Device, '127.0.0.1', 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""


@pytest.fixture
def devices() -> Iterator[int]:
    """The port of a process that answers every read, on any number of connections."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.kill()


async def cpu_us_per_request(transport: Transport, requests: int) -> float:
    await transport.connect()
    await transport.request(1, 3, 0, 120)
    began_s = time.process_time()
    for _ in range(requests):
        await transport.request(1, 3, 0, 120)
    took_s = time.process_time() - began_s
    await transport.close()
    return took_s / requests * 1e6


def test_cpu_of_a_request_of_120_registers(devices: int, tmp_path: Path) -> None:
    requests = 3000
    own, pymodbus = [], []
    for _ in range(2):
        own.append(asyncio.run(cpu_us_per_request(MbapTransport("127.0.0.1", devices), requests)))
        pymodbus.append(
            asyncio.run(cpu_us_per_request(PymodbusTransport.over_tcp("127.0.0.1", devices, 1.0), requests))
        )
    own_uvloop = min(
        uvloop.run(cpu_us_per_request(MbapTransport("127.0.0.1", devices), requests)) for _ in range(3)
    )
    print(
        f"\nCPU a request: own MBAP {min(own):.0f} us, under uvloop {own_uvloop:.0f} us; "
        f"pymodbus {min(pymodbus):.0f} us; pymodbus / own {min(pymodbus) / min(own):.1f}"
    )
    if shutil.which("cc"):
        client = tmp_path / "client"
        subprocess.run(
            ["cc", "-O2", "-o", client, MODBUS_TESTS / "libmodbus_client.c", "-lmodbus"], check=True
        )
        shown = subprocess.run(
            [client, str(devices), str(requests)], capture_output=True, text=True, check=True
        ).stdout
        libmodbus_us = float(shown) / requests * 1e6
        print(
            f"libmodbus in C {libmodbus_us:.0f} us; own / libmodbus {min(own) / libmodbus_us:.1f}, "
            f"under uvloop, as ecmc runs, {own_uvloop / libmodbus_us:.1f}"
        )


def test_decoding_of_24000_values_of_six_types() -> None:
    blocks, of_type = 400, ["uint16", "int16", "uint32", "int32", "float32", "float64"]
    words = {"uint16": 1, "int16": 1, "uint32": 2, "int32": 2, "float32": 2, "float64": 4}
    readings = []
    position = 1
    for i in range(blocks * 60):
        where = source(0, of_type[i % 6], words=words[of_type[i % 6]], scale=0.1)
        readings.append(Reading(i, where, i // 60, position, low=-1e30))
        position += 2 * where.words
    image = np.random.default_rng(1).integers(0, 256, position).astype(np.uint8)
    plan = DecodePlan(readings)
    answered, times = tuple(range(blocks)), np.arange(blocks, dtype=np.int64)
    plan.decode(image, answered, times)

    began_s = time.process_time()
    for _ in range(50):
        plan.decode(image, answered, times)
    took_s = time.process_time() - began_s

    print(f"\ndecode: {took_s / 50 / len(readings) * 1e9:.1f} ns a value")


async def collect(plants: list[Plant], seconds: float) -> tuple[float, np.ndarray, int]:
    """CPU seconds, sample times and values of all drivers over a while, after a second of settling."""
    times: list[np.ndarray] = []
    counting = False
    count = 0

    drivers = [driver_of(plant) for plant in plants]

    async def pump(driver: ModbusDriver) -> None:
        nonlocal count
        async with driver:
            while True:
                batch = await driver.read()
                if counting:
                    count += len(batch)
                    times.append(batch.time_ns[:1])

    tasks = [asyncio.create_task(pump(driver)) for driver in drivers]
    await asyncio.sleep(1.5)
    counting = True
    began_s = time.process_time()
    await asyncio.sleep(seconds)
    took_s = time.process_time() - began_s
    assert not any(task.done() for task in tasks), "a device was lost"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return took_s, np.concatenate(times), count


@pytest.mark.parametrize(("client", "in_flight"), [("mbap", 1), ("mbap", 4), ("pymodbus", 1)])
def test_saturated_60_values_a_request(devices: int, client: str, in_flight: int) -> None:
    plants = []
    for _ in range(8):
        of_ten = {
            f"m{n}": [point(f"p{n}-{i}", source(2 * i, "float32"), period_s=0.001) for i in range(60)]
            for n in range(10)
        }
        plants.append(plant_of(of_ten, devices, client=client, in_flight=in_flight, timeout_s=2.0))

    cpu_s, _, count = uvloop.run(collect(plants, 4.0))

    print(
        f"\nsaturated, {client}, {in_flight} in flight: "
        f"{count / cpu_s / 1e6:.2f} M values a core-second, {count / 4:.0f} values/s"
    )


def test_500_devices_of_100_float32_each_second(devices: int) -> None:
    plants = []
    for n in range(500):
        points = [point(f"p{n}-{i}", source(2 * i, "float32"), period_s=1.0) for i in range(100)]
        plants.append(plant_of({f"m{n}": points}, devices, timeout_s=2.0))
    before = psutil.Process().memory_info().rss

    cpu_s, times_ns, count = uvloop.run(collect(plants, 8.0))

    grid_ns = 50_000_000  # every due time lies on it, whatever the device's phase
    late_ms = np.sort(times_ns % grid_ns) / 1e6
    assert all(phase_ns(f"m{n}", 1_000_000_000) % grid_ns == 0 for n in range(500))
    print(
        f"\n500 devices, {count / 8:.0f} values/s: {cpu_s / 8 * 100:.1f} % of a core, "
        f"lateness p50 {late_ms[len(late_ms) // 2]:.1f} ms, p99 {late_ms[int(len(late_ms) * 0.99)]:.1f} ms, "
        f"{(psutil.Process().memory_info().rss - before) / 1e6:.0f} MB more, "
        f"{psutil.Process().memory_info().rss / 1e6:.0f} MB in all"
    )


def test_nine_healthy_devices_beside_a_silent_one(devices: int) -> None:
    """From the first second on, so that finding out about the silent one counts too."""
    seconds = 12.0
    units = {f"m{n}": n if n < 10 else 247 for n in range(1, 11)}
    points = {name: [point(f"p-{name}", source(0), period_s=1.0)] for name in units}
    one_gateway = [plant_of(points, devices, units=units, timeout_s=0.5)]
    ten_links = [
        plant_of({name: points[name]}, devices, units={name: unit}, timeout_s=0.5)
        for name, unit in units.items()
    ]
    for what, plants in {"one gateway": one_gateway, "ten connections": ten_links}.items():
        kept = uvloop.run(kept_polls(plants, seconds))
        del kept["m10"]
        print(
            f"\nnine beside a silent one, {what}: {sum(kept.values()) / 9 * 100:.1f} % of their polls kept, "
            f"the worst {min(kept.values()) * 100:.1f} %"
        )


async def kept_polls(plants: list[Plant], seconds: float) -> dict[str, float]:
    """Share of its due polls that each device was asked in time, by device."""
    drivers = [driver_of(plant) for plant in plants]

    async def pump(driver: ModbusDriver) -> None:
        async with driver:
            while True:
                await driver.read()

    tasks = [asyncio.create_task(pump(driver)) for driver in drivers]
    await asyncio.sleep(seconds)
    states = {name: state for driver in drivers for name, state in driver.devices().items()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    kept = {}
    for name, state in states.items():
        asked, missed = state.counters["requests"], state.counters["missed_ticks"]
        kept[name] = asked / (asked + missed) if state.up else 0.0
    return kept
