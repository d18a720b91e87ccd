"""How much CPU Modbus costs: printed (`pytest -s`), never failed by time.

Everything is the CPU time of this process, the devices run in others. Run with
`pytest -s tests/benchmarks/test_modbus_speed.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
from collector.spool import Spool
from core.plant.model import Plant

MODBUS_TESTS = Path(__file__).parents[1] / "modbus"
SERVER = """
import asyncio, struct, sys, uvloop
SLOW_S = float(sys.argv[1])
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
            answer = struct.pack('>HHHBBB', transaction, 0, size + 3, unit, function, size) + ANSWER[:size]
            if SLOW_S:
                asyncio.get_running_loop().call_later(SLOW_S, self.transport.write, answer)
            else:
                self.transport.write(answer)
async def main():
    server = await asyncio.get_running_loop().create_server(Device, '127.0.0.1', 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""


@contextlib.contextmanager
def answering(after_s: float = 0.0) -> Iterator[int]:
    """The port of a process that answers every read after a while, on any number of connections."""
    words = [sys.executable, "-c", SERVER, str(after_s)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield int(server.stdout.readline())
        server.kill()


@pytest.fixture
def devices() -> Iterator[int]:
    """The port of a process that answers every read at once."""
    with answering() as port:
        yield port


@pytest.fixture(scope="module")
def libmodbus(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], float]:
    """CPU microseconds of a request of 120 registers by libmodbus in C, from a port and a number of requests."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    client = tmp_path_factory.mktemp("libmodbus") / "client"
    subprocess.run(["cc", "-O2", "-o", client, MODBUS_TESTS / "libmodbus_client.c", "-lmodbus"], check=True)

    def measured(port: int, requests: int) -> float:
        shown = subprocess.run([client, str(port), str(requests)], capture_output=True, text=True, check=True)
        return float(shown.stdout) / requests * 1e6

    return measured


async def cpu_us_per_request(transport: Transport, requests: int) -> float:
    await transport.connect()
    await transport.request(1, 3, 0, 120)
    began_s = time.process_time()
    for _ in range(requests):
        await transport.request(1, 3, 0, 120)
    took_s = time.process_time() - began_s
    await transport.close()
    return took_s / requests * 1e6


def test_cpu_of_a_request_of_120_registers(devices: int, libmodbus: Callable[[int, int], float]) -> None:
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
    in_c = libmodbus(devices, requests)
    print(
        f"\nCPU a request: own MBAP {min(own):.0f} us, under uvloop {own_uvloop:.0f} us; "
        f"pymodbus {min(pymodbus):.0f} us; pymodbus / own {min(pymodbus) / min(own):.1f}\n"
        f"libmodbus in C {in_c:.0f} us; own / libmodbus {min(own) / in_c:.1f}, "
        f"under uvloop, as ecmc runs, {own_uvloop / in_c:.1f}"
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


async def collect(
    plants: list[Plant], seconds: float, spool: Spool | None = None
) -> tuple[float, np.ndarray, int]:
    """CPU seconds, lateness of every poll (s) and values of all drivers over a while, after some settling.

    Lateness is from a device's due time to the middle between its question and its answer.
    """
    late_s: list[np.ndarray] = []
    counting = False
    count = 0

    async def pump(plant: Plant, driver: ModbusDriver) -> None:
        nonlocal count
        period_ns = round(plant.points[0].period_s * 1e9)
        phase = phase_ns(plant.devices[0].id, period_ns)
        async with driver:
            while True:
                batch = await driver.read()
                if spool is not None:
                    await spool.append(batch)
                if counting:
                    count += len(batch)
                    late_s.append((batch.time_ns[:1] - phase) % period_ns * 1e-9)

    drivers = [driver_of(plant) for plant in plants]
    tasks = [asyncio.create_task(pump(*both)) for both in zip(plants, drivers, strict=True)]
    await asyncio.sleep(1.5)
    counting = True
    began_s = time.process_time()
    await asyncio.sleep(seconds)
    took_s = time.process_time() - began_s
    assert not any(task.done() for task in tasks), "a device was lost"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return took_s, np.sort(np.concatenate(late_s)), count


@pytest.mark.parametrize(("client", "in_flight"), [("mbap", 1), ("mbap", 4), ("pymodbus", 1)])
def test_saturated_60_values_a_request(
    devices: int, client: str, in_flight: int, libmodbus: Callable[[int, int], float]
) -> None:
    plants = []
    for _ in range(8):
        of_ten = {
            f"m{n}": [point(f"p{n}-{i}", source(2 * i, "float32"), period_s=0.001) for i in range(60)]
            for n in range(10)
        }
        plants.append(plant_of(of_ten, devices, client=client, in_flight=in_flight, timeout_s=2.0))

    cpu_s, _, count = uvloop.run(collect(plants, 4.0))

    in_c = 60 / libmodbus(devices, 20_000)  # millions of values a core-second, words only, nothing decoded
    print(
        f"\nsaturated, {client}, {in_flight} in flight: "
        f"{count / cpu_s / 1e6:.2f} M values a core-second, {count / 4:.0f} values/s; "
        f"libmodbus in C, words only, {in_c:.1f} M, ratio {count / cpu_s / 1e6 / in_c:.2f}"
    )


def of_500_devices(port: int, client: str) -> list[Plant]:
    plants = []
    for n in range(500):
        points = [point(f"p{n}-{i}", source(2 * i, "float32"), period_s=1.0) for i in range(100)]
        plants.append(plant_of({f"m{n}": points}, port, client=client, timeout_s=2.0))
    return plants


@pytest.mark.parametrize("to_disk", [False, True])
def test_500_devices_of_100_float32_each_second(devices: int, tmp_path: Path, to_disk: bool) -> None:
    async def run(client: str, seconds: float) -> tuple[float, np.ndarray, int]:
        async with contextlib.AsyncExitStack() as stack:
            spool = await stack.enter_async_context(Spool(tmp_path / client)) if to_disk else None
            return await collect(of_500_devices(devices, client), seconds, spool)

    cpu_s, late_s, count = uvloop.run(run("mbap", 8.0))
    rss_mb = psutil.Process().memory_info().rss / 1e6
    peer_cpu_s, _, peer_count = uvloop.run(run("pymodbus", 4.0))

    late_ms = 1e3 * late_s
    print(
        f"\n500 devices, {count / 8:.0f} values/s {'onto the disk' if to_disk else 'to columns'}: "
        f"{cpu_s / 8 * 100:.1f} % of a core, lateness p50 {late_ms[len(late_ms) // 2]:.1f} ms, "
        f"p99 {late_ms[int(len(late_ms) * 0.99)]:.1f} ms, {rss_mb:.0f} MB in all; "
        f"by pymodbus {(peer_cpu_s / peer_count) / (cpu_s / count):.1f} times the CPU a value"
    )


def test_150_points_of_a_device_that_takes_10_ms_an_answer() -> None:
    """At 1 Hz, scattered over as many registers again; the peer asks for each point by itself."""
    seconds = 8.0
    points = [point(f"p{i}", source(2 * i), period_s=1.0) for i in range(150)]
    with answering(0.01) as port:
        plant = plant_of({"m": points}, port, timeout_s=2.0)
        _, _, count = uvloop.run(collect([plant], seconds))
        one_by_one = uvloop.run(asked_one_by_one(port, 150, seconds))
    print(
        f"\n10 ms an answer, 150 points at 1 Hz: {count / seconds:.1f} values/s of 150; "
        f"asked for one by one {one_by_one:.1f}, ratio {count / seconds / one_by_one:.1f}"
    )


async def asked_one_by_one(port: int, points: int, seconds: float) -> float:
    """Values a second of a client that asks for one register after the other."""
    transport = MbapTransport("127.0.0.1", port)
    await transport.connect()
    asked = 0
    ends_s = time.monotonic() + seconds
    while time.monotonic() < ends_s:
        await transport.request(1, 3, 2 * (asked % points), 1)
        asked += 1
    await transport.close()
    return asked / seconds


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
